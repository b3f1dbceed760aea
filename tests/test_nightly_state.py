"""How a night's work is spread, and what its state on disk keeps through losses, reboots and further nights."""

from __future__ import annotations

import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moeproof.verify.events import Event, JsonLines
from moeproof.verify.nightly.layout import set_aside
from moeproof.verify.nightly.schedule import BONUS_LIMIT, Spent, Unit, choose
from moeproof.verify.nightly.store import TRIES, Store
from moeproof.verify.nightly.stream import Stream

PLAN: dict[str, Any] = {"devices": ["0", "1"], "corpus": [], "examples": {}}


def unit(lane: str, name: str = "", **fields: Any) -> Unit:
    name = name or f"family-{lane}:op"
    return Unit(lane, name, name, "fused_gate", **{"checks": ("fuzz",), "slice_seconds": 10.0, **fields})


def spread(units: list[Unit], slices: int, found: dict[str, float] | None = None) -> Counter[str]:
    """Return how many of so many slices each unit gets, from one worker."""
    spent: dict[str, Spent] = {}
    count: Counter[str] = Counter()
    for _ in range(slices):
        chosen = choose(units, spent, found or {}, warm=())
        assert chosen is not None
        had = spent.get(chosen.key, Spent())
        spent[chosen.key] = Spent(had.seconds + chosen.slice_seconds, had.cases + 100)
        count[chosen.key] += 1
    return count


# -- spreading -------------------------------------------------------------------------------------------------------


def test_lanes_get_time_by_weight_however_many_subjects_they_have() -> None:
    one, many = unit("one", weight=3), [unit("many", f"f{i}:op", weight=1) for i in range(5)]
    count = spread([one, *many], 400)
    assert count[one.key] == pytest.approx(300, abs=2)
    assert [count[u.key] for u in many] == pytest.approx([20] * 5, abs=1)


def test_shares_hold_for_slices_of_unlike_length() -> None:
    short, long = unit("short", slice_seconds=5), unit("long", slice_seconds=50)
    count = spread([short, long], 330)
    assert count[short.key] / count[long.key] == pytest.approx(10, rel=0.1)


def test_what_found_bugs_lately_gets_more_of_its_lane_and_none_of_others() -> None:
    quiet, busy, other = unit("a", "quiet:op"), unit("a", "busy:op"), unit("b", "other:op")
    count = spread([quiet, busy, other], 400, {"busy:op": 1.0})
    assert count[busy.key] / count[quiet.key] == pytest.approx(2, rel=0.1)
    assert count[other.key] == pytest.approx(200, abs=2)
    count = spread([quiet, busy], 400, {"busy:op": 1000.0})
    assert count[busy.key] / count[quiet.key] == pytest.approx(1 + BONUS_LIMIT, rel=0.1)


def test_budgets_end_a_lane_and_a_unit() -> None:
    limited, counted, free = unit("l", lane_seconds=30), unit("c", cases=200), unit("f")
    count = spread([limited, counted, free], 60)
    assert (count[limited.key], count[counted.key]) == (3, 2)
    spent = {limited.key: Spent(30), counted.key: Spent(1, 200)}
    assert choose([limited, counted], spent, {}, ()) is None


def test_of_equals_the_family_that_is_loaded_comes_first() -> None:
    cold, warm = unit("a", "cold:op"), unit("a", "warm:op")
    assert choose([cold, warm], {}, {}, ("warm",)) == warm
    assert choose([cold, warm], {warm.key: Spent(100)}, {}, ("warm",)) == cold


# -- state -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state.sqlite")


def begun(store: Store, *units: Unit, seconds: float = 600.0) -> int:
    run = store.open_run(seconds, seed=7)
    store.prepare(run.id, PLAN, units, seconds, replay_seconds=30.0)
    store.restart(run.id)
    return run.id


def test_the_corpus_comes_first_once_for_each_subject(store: Store) -> None:
    checks = ("corpus", "fuzz")
    units = [unit("a", "x:op", preset=p, checks=checks) for p in ("", "kimi-k2")] + [unit("b", "y:op", checks=checks)]
    run = begun(store, *units)
    worker = store.join("gw0", 1, [])
    kinds = []
    for _ in range(4):
        work = store.take(worker.id)
        assert work is not None
        kinds.append((work.kind, work.unit.name))
        store.done(work.id, 10.0, 5)
    assert kinds[:2] == [("corpus", "x:op"), ("corpus", "y:op")]
    assert {kind for kind, _ in kinds[2:]} == {"fuzz"}
    store.prepare(run, PLAN, units, 600.0, replay_seconds=30.0)  # after a reboot it is not replayed again
    work = store.take(worker.id)
    assert work is not None
    assert work.kind == "fuzz"


def test_a_lane_with_a_slow_corpus_does_not_hold_up_the_others(store: Store) -> None:
    slow = [unit("slow", f"s{n}:op", checks=("corpus",)) for n in range(3)]
    quick = [unit("quick", f"q{n}:op", checks=("corpus",)) for n in range(3)]
    begun(store, *slow, *quick)
    worker = store.join("gw0", 1, [])
    names = []
    for _ in range(6):
        work = store.take(worker.id)
        assert work is not None
        names.append(work.unit.name)
        store.done(work.id, 50.0 if work.unit.lane == "slow" else 1.0, 5)
    assert names == ["s0:op", "q0:op", "q1:op", "q2:op", "s1:op", "s2:op"]


def test_a_lost_worker_s_slice_goes_to_another_and_its_gpu_too(store: Store) -> None:
    run = begun(store, unit("a"))
    first, second = store.join("gw0", 11, ["0", "1"]), store.join("gw1", 12, ["0", "1"])
    assert (first.device, second.device) == ("0", "1")
    had, other = store.take(first.id), store.take(second.id)
    assert had is not None
    assert other is not None
    assert had.id != other.id
    assert store.left("gw0") is not None
    assert store.left("gw0") is None  # said once
    third = store.join("gw2", 13, ["0", "1"])
    assert (third.slot, third.device) == (0, "0")
    again = store.take(third.id)
    assert again is not None
    assert (again.id, again.unit) == (had.id, had.unit)
    assert [w.pid for w in store.workers(run)] == [12, 13]


def test_a_slice_that_kills_every_worker_is_given_up(store: Store) -> None:
    run = begun(store, unit("a", cases=1))
    for number in range(TRIES):
        worker = store.join(f"gw{number}", number, [])
        work = store.take(worker.id)
        assert work is not None
        assert work.id == 1
        store.left(f"gw{number}")
    worker = store.join("gw9", 9, [])
    work = store.take(worker.id)
    assert work is not None
    assert work.id == 2
    assert [row["state"] for row in store.slices(run)] == ["lost", "taken"]


def test_a_run_that_was_cut_short_goes_on_with_what_is_left(store: Store, tmp_path: Path) -> None:
    run = begun(store, unit("a"))
    work = store.take(store.join("gw0", 1, []).id)
    assert work is not None
    store.tick(run, 590.0)
    store.close()

    again = Store(tmp_path / "state.sqlite")
    found = again.unfinished()
    assert found is not None
    assert (found.id, found.spent, found.seed) == (run, 590.0, 7)
    again.prepare(run, PLAN, [unit("a")], 600.0, replay_seconds=30.0)
    again.restart(run)
    assert again.workers(run) == []
    next_work = again.take(again.join("gw0", 2, []).id)
    assert next_work is not None
    assert next_work.id == work.id
    fresh = again.take(again.join("gw1", 3, []).id)
    assert fresh is not None
    assert 5 < fresh.seconds <= 10
    again.stop(run)
    assert again.take(1) is None
    again.finish(run)
    assert again.unfinished() is None


def test_a_subject_that_is_absent_is_left_out_until_the_run_starts_again(store: Store) -> None:
    units = [unit("a", "gone:op"), unit("a", "here:op")]
    run = begun(store, *units)
    worker = store.join("gw0", 1, [])
    store.absent("gone:op", "the GPU fell off")
    names = set()
    for _ in range(4):
        work = store.take(worker.id)
        assert work is not None
        names.add(work.unit.name)
        store.done(work.id, 10.0, 1)
    assert names == {"here:op"}
    store.prepare(run, PLAN, units, 600.0, replay_seconds=30.0)
    work = store.take(worker.id)
    assert work is not None
    assert work.unit.name == "gone:op"


def test_many_workers_at_once_share_by_weight_and_never_a_slice(store: Store, tmp_path: Path) -> None:
    begun(store, unit("a", weight=3), unit("b", weight=1))
    taken: list[tuple[int, str]] = []

    def work(name: str) -> None:
        mine = Store(tmp_path / "state.sqlite")
        worker = mine.join(name, 1, [])
        for _ in range(10):
            got = mine.take(worker.id)
            assert got is not None
            taken.append((got.id, got.unit.lane))
            mine.done(got.id, 10.0, 1)
        mine.close()

    threads = [threading.Thread(target=work, args=(f"gw{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({number for number, _ in taken}) == 40
    assert Counter(lane for _, lane in taken)["a"] == pytest.approx(30, abs=2)


def test_findings_of_late_count_less_each_night(store: Store) -> None:
    run = begun(store, unit("a", "x:op"))
    store.defect("aa", "x:op")
    store.defect("aa", "x:op")
    assert store._found(store._db, run) == {"x:op": 1.0}
    assert store.reported() == set()
    store.finish(run)
    assert store.reported() == {"aa"}
    later = begun(store, unit("a", "x:op"))
    assert store._found(store._db, later) == {"x:op": 0.5}


def test_a_given_up_run_leaves_its_defects_to_be_reported(store: Store) -> None:
    begun(store, unit("a"))
    store.defect("aa", "x:op")
    store.open_run(60.0, seed=1)
    assert store.reported() == set()


def test_cases_in_flight_of_a_lost_worker_are_set_aside_and_no_others(tmp_path: Path) -> None:
    folder = tmp_path / "inflight"
    folder.mkdir()
    for name in ("1-own.json", "11-own.json", "2-own.json"):
        (folder / name).write_text("{}", encoding="utf-8")
    set_aside(tmp_path, 1)
    assert sorted(p.name for p in folder.glob("*.json")) == ["11-own.json", "2-own.json"]
    assert [p.name for p in (folder / "interrupted").iterdir()] == ["1-own.json"]


# -- events ----------------------------------------------------------------------------------------------------------


def finding(identity: str, kind: str = "finding", **more: str) -> Event:
    return Event(kind, {"identity": identity, "subject": "x:op", "version": "1", "worker": 1, **more})


def written(folder: Path, name: str, *events: Event) -> None:
    log = JsonLines(folder / name)
    for event in events:
        log(event)
    log.close()


def passed(stream: Stream) -> list[Event]:
    events: list[Event] = []
    stream.pump([events.append])
    return events


def test_a_defect_is_passed_on_once_and_as_what_it_is_to_the_run(tmp_path: Path) -> None:
    written(tmp_path, "00001.jsonl", finding("new"), finding("old", "known"))
    # A worker saw its folder first and took it for known; the finder died before it could say so.
    written(tmp_path, "00002.jsonl", finding("new", "known"), finding("lost", "known"), finding("old"))
    stream = Stream(tmp_path, "night", reported={"old"}, ledger=None)
    events = passed(stream)
    assert Counter((e.kind, e.data["identity"]) for e in events) == {
        ("finding", "new"): 1,
        ("known", "old"): 1,
        ("finding", "lost"): 1,
    }
    assert {e.run for e in events} == {"night"}
    written(tmp_path, "00003.jsonl", finding("new"))
    assert passed(stream) == []
    again = Stream(tmp_path, "night", reported={"old"}, ledger=None)  # after a reboot: all of it, once
    assert len(passed(again)) == 3


def test_one_that_an_earlier_night_had_cut_short_is_known(tmp_path: Path) -> None:
    names = ("old", "never reported")
    written(tmp_path, "1.jsonl", *(finding(f"whole {name}", instead_of=name) for name in names))
    stream = Stream(tmp_path, "night", reported={"old"}, ledger=None)
    assert [e.kind for e in passed(stream)] == ["known", "finding"]


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    stream = Stream(tmp_path, "night", reported=set(), ledger=None)
    text = json.dumps({"kind": "note", "time": 1.0, "text": "é"}).encode() + b"\n"
    path = tmp_path / "00001.jsonl"
    path.write_bytes(text + text[:9])
    assert len(passed(stream)) == 1
    path.write_bytes(text + text)
    assert len(passed(stream)) == 1


def test_events_of_all_workers_come_in_the_order_of_time(tmp_path: Path) -> None:
    for number in (3, 1, 2):
        written(tmp_path, f"{number}.jsonl", replace(Event("note", {"text": str(number)}), time=float(number)))
    stream = Stream(tmp_path, "night", reported=set(), ledger=None)
    assert [e.data["text"] for e in passed(stream)] == ["1", "2", "3"]
