"""Whole nights with planted accidents: a lost worker, a hang, a reboot, and the same defect night after night."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner
from zoo.entry import FRONT_DOOR

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify import corpus
from moeproof.verify.cli import app
from moeproof.verify.coordinator import Summary
from moeproof.verify.coverage import Coverage
from moeproof.verify.events import Event
from moeproof.verify.history.record import from_events, read_events
from moeproof.verify.lanes.reader import load_lanes
from moeproof.verify.lanes.schema import Examples
from moeproof.verify.nightly import slices, supervisor
from moeproof.verify.nightly.examples import chain
from moeproof.verify.nightly.layout import state_file
from moeproof.verify.nightly.plan import default_workers, make_units
from moeproof.verify.nightly.results import judge, promote
from moeproof.verify.nightly.schedule import Unit
from moeproof.verify.nightly.store import Slice, Store
from moeproof.verify.nightly.supervisor import Night, NightlyError, Request
from moeproof.verify.nightly.tests_slice import run_tests
from moeproof.verify.subject import find

pytestmark = pytest.mark.slow

TIE, RIGHT = (f"{FRONT_DOOR}:zoo:{slug}" for slug in ("gate-tie-higher-id", "right-gate"))
PATIENCE = 120.0


def lanes_file(folder: Path, *, wrong: int, right: int) -> Path:
    """Write lanes whose budgets are so many cases."""
    path = folder / "lanes.toml"
    path.write_text(
        '[defaults]\nmax_elements = 512\nslice_seconds = 2\nreduce_seconds = 60\nchecks = ["fuzz"]\n'
        f'[lane.wrong]\nsubjects = ["{TIE}"]\ncases = {wrong}\n'
        f'[lane.right]\nsubjects = ["{RIGHT}"]\ncases = {right}\nweight = 2\n',
        encoding="utf-8",
    )
    return path


def nightly(lanes: Path, out: Path, seconds: float, *more: str) -> tuple[int, str]:
    """Run the command in this process and return its exit code and all that it printed."""
    arguments = ["nightly", "--lanes", str(lanes), "--out", str(out), "--seconds", f"{seconds:.0f}", "--workers", "1"]
    result = CliRunner().invoke(app, [*arguments, *more])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def wait_for(what: Callable[[], Any], process: subprocess.Popen[bytes]) -> Any:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        found = what()
        if found:
            return found
        time.sleep(0.1)
    pytest.fail(f"the run ended with {process.poll()}, or nothing came of it in {PATIENCE:.0f} s")


def family_of(pid: int) -> list[int]:
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += family_of(child)
    return found


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    end = time.monotonic() + 60
    while any(map(running, pids)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not [pid for pid in pids if running(pid)]


@pytest.mark.timeout(600)
def test_a_night_outlives_a_lost_worker_and_a_reboot_and_tells_a_defect_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOEPROOF_HISTORY", f"sqlite:///{tmp_path / 'history.db'}")
    out, lanes = tmp_path / "out", lanes_file(tmp_path, wrong=10, right=10**6)
    command = [sys.executable, "-m", "moeproof.verify.cli", "nightly", "--lanes", str(lanes), "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--seconds", "300", "--workers", "1"], stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(lambda: list(out.glob("findings/*/finding.json")), process)
        store = Store(state_file(out))
        (first,) = store.workers(1)

        # A worker is killed while it has a slice: another takes that slice up.
        taken = wait_for(lambda: [r for r in store.slices(1) if r["state"] == "taken"], process)[0]
        os.kill(first.pid, signal.SIGKILL)
        wait_for(lambda: [r for r in store.slices(1) if r["id"] >= taken["id"] and r["tries"] == 2], process)
        (second,) = store.workers(1)
        assert second.id != first.id
        wait_for(lambda: [r for r in store.slices(1) if r["tries"] == 2 and r["state"] == "done"], process)

        # The machine goes down.
        family = family_of(process.pid)
        assert len(family) >= 4  # the command, pytest, a worker, its child
    finally:
        process.kill()
    process.wait()
    wait_until_gone(family)
    before = store.slices(1)
    cases = sum(r["cases"] for r in before if r["unit"].startswith("right|"))
    spent = store.tick(1, 0.0).spent
    store.close()

    # The same command goes on; a little more is left to do.
    lanes_file(tmp_path, wrong=15, right=cases + 30)
    code, text = nightly(lanes, out, spent + 100, "--resume")
    assert code == 1, text
    assert "nightly run 1" in text
    assert "goes on where it was cut short" in text
    assert "1 new findings, 0 reported before" in text
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert [f["check"] for f in result["new"]] == ["tie_order"]
    assert any("was lost; its work is taken up by another" in note for note in result["notes"])
    assert result["cases"] >= 15 + cases + 30
    assert not result["errors"]
    (run,) = from_events(read_events(out / "runs" / "0001" / "events.jsonl"))
    assert (run.job, run.exit, run.status(time.time())) == ("nightly", 1, "finished")
    assert run.cases == result["cases"]
    for name in ("report.html", "junit.xml", "summary.md"):
        assert "zoo:gate-tie-higher-id" in (out / name).read_text(encoding="utf-8")
    (kept,) = (out / "promote" / "corpus").rglob("*.json")
    assert corpus.read_case(kept).op == "fused_gate"
    assert kept.stem in (out / "promote" / "README.md").read_text(encoding="utf-8")

    # The next night sees the defect again, and does not report it again.
    lanes_file(tmp_path, wrong=10, right=10)
    code, text = nightly(lanes, out, 100)
    assert code == 0, text
    assert "nightly run 2" in text
    assert "0 new findings, 1 reported before" in text


# -- watching over ---------------------------------------------------------------------------------------------------


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    lanes = load_lanes(lanes_file(tmp_path, wrong=5, right=5))
    return Request(lanes, lanes.lanes, 60.0, tmp_path / "out", 1, [], seed=1)


def test_a_worker_that_hangs_is_killed_and_its_replacement_is_not(
    request_: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    night = Night(request_, None)
    night._prepare()
    workers = [subprocess.Popen(["sleep", "600"], start_new_session=True) for _ in range(2)]
    session = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        ids = [night.store.join(f"gw{n}", worker.pid, []).id for n, worker in enumerate(workers)]
        now = [time.time()]
        monkeypatch.setattr(supervisor.time, "time", lambda: now[0])
        monkeypatch.setattr(session, "wait", lambda seconds=None: _timeout())
        monkeypatch.setattr(supervisor, "GRACE", -1e9)  # one look at a time
        for _ in range(10):
            now[0] += supervisor.STALL_SECONDS / 5
            night.store.seen(ids[1])  # the second one is alive
            night._watch(session)
        assert workers[0].wait(60) == -signal.SIGKILL
        assert workers[1].poll() is None
    finally:
        monkeypatch.undo()
        for worker in (*workers, session):
            worker.kill()
            worker.wait()
    night._pump()
    assert any("gave no sign of life" in note for note in night.summary.notes)
    night.close()


def _timeout() -> int:
    raise subprocess.TimeoutExpired("sleep", 0)


def test_two_runs_never_share_a_folder(request_: Request) -> None:
    night = Night(request_, None)
    with pytest.raises(NightlyError, match="another nightly run uses; allowed: one at a time"):
        Night(request_, None)
    night.close()
    again = Night(request_, None)
    assert again.resumed
    again.close()


def test_resume_does_nothing_where_nothing_was_cut_short(tmp_path: Path) -> None:
    code, text = nightly(lanes_file(tmp_path, wrong=5, right=5), tmp_path / "out", 60, "--resume")
    assert code == 0
    assert "holds no run that was cut short" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lane", "nothing"], "lane is 'nothing'; allowed by"),
        (["--lanes", "no.toml"], "lanes is 'no.toml'"),
        (["--seconds", "0"], "--seconds"),
        (["--fresh", "--resume"], "fresh and resume are both given; allowed: one of them"),
        (["--redis", "redis://127.0.0.1:port"], "redis is 'redis://127.0.0.1:port'"),
        (["--ledger", "no.toml"], "ledger is 'no.toml'"),
        (["--out", "/dev/null/out"], "out is '/dev/null/out'"),
        (["--history", "mysql://x/y"], "history"),
    ],
)
def test_usage_errors_name_the_argument_and_exit_with_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    given = ["nightly", "--lanes", str(lanes_file(tmp_path, wrong=5, right=5)), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*given, "--seconds", "10", *arguments])
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


# -- parts -----------------------------------------------------------------------------------------------------------


def test_a_preset_outside_a_subject_s_domain_gives_no_unit(tmp_path: Path) -> None:
    path = tmp_path / "lanes.toml"
    path.write_text('[lane.a]\nsubjects = ["numpy"]\npresets = ["any", "kimi-vl"]\nops = ["fused_gate"]\n')
    lanes = load_lanes(path)
    units = make_units(lanes, lanes.lanes, seconds=3600, workers=4)
    assert [(u.name, u.preset, u.slice_seconds) for u in units] == [
        ("numpy:fused_gate", "", 60.0),
        ("numpy:fused_gate", "kimi-vl", 60.0),
    ]
    # A short run: each unit still gets its turns.
    assert {u.slice_seconds for u in make_units(lanes, lanes.lanes, seconds=30, workers=1)} == {5.0}


def test_workers_follow_gpus_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    assert [default_workers(gpus, None) for gpus in (0, 1, 2, 8)] == [8, 4, 8, 8]
    assert default_workers(2, 3) == 6


def _progress(name: str, cases: int, failures: int) -> Event:
    coverage = Coverage().to_json() | {"cases": cases, "rows": 10 * cases}
    subjects = {name: {**coverage, "failures": {"weights": failures}}}
    return Event("progress", {"subjects": subjects, "spent": {name: 2.0}, "seconds": 3.0, "reducing": 1.0})


def test_a_worker_s_slices_add_up_to_one_stream() -> None:
    events: list[Event] = []
    reporter = slices.Reporter(7, events.append)
    # Failures are counted on by the campaigns themselves, through the worker's memory.
    for name, cases, failures in (("a:op", 5, 1), ("b:op", 2, 0), ("a:op", 4, 3)):
        reporter(Event("subject", {"subject": name}))
        reporter(_progress(name, cases - 1, failures))
        reporter(Event("failure", {"subject": name, "check": "weights"}))
        reporter(_progress(name, cases, failures))
        assert reporter.cases == cases
        reporter.end_slice()
    last = [e for e in events if e.kind == "progress"][-1].data
    assert {n: (c["cases"], c["rows"], c["failures"]) for n, c in last["subjects"].items()} == {
        "a:op": (9, 90, {"weights": 3}),
        "b:op": (2, 20, {"weights": 0}),
    }
    assert (last["spent"], last["seconds"], last["reducing"]) == ({"a:op": 4.0, "b:op": 2.0}, 9.0, 3.0)
    assert {e.data["worker"] for e in events} == {7}
    assert [e.kind for e in events].count("subject") == 2
    assert [e.kind for e in events].count("failure") == 2


def test_a_child_that_still_owes_an_answer_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck:
        def __init__(self, *arguments: Any) -> None:
            self.states = [SimpleNamespace(pending="a case")]

        def run(self) -> None:
            children.of(find([RIGHT])[0], 1.0)
            raise RuntimeError("odd")

    monkeypatch.setattr(slices, "SliceCampaign", Stuck)
    children = slices.Children(tmp_path, 1)
    work = Slice(1, "fuzz", Unit("a", RIGHT, "zoo:right-gate", "fused_gate"), 5.0, time.time() + 60)
    with pytest.raises(RuntimeError, match="odd"):
        slices.run_slice(
            work, lambda event: None, out=tmp_path, corpus=(), seed=1, children=children,
            memory=slices.Memory(), examples=chain(tmp_path, Examples(), print), store=Store(tmp_path / "state.sqlite"),
        )  # fmt: skip
    assert children.families == ()


def _finding(identity: str, **fields: Any) -> dict[str, Any]:
    data = {"identity": identity, "subject": "zoo:x", "title": "zoo:x: wrong | odd", "check": "weights", "known": False}
    return data | {"severity": "high", "folder": "f", "version": "1"} | fields


def test_the_verdict_fails_on_what_is_new_only() -> None:
    summary = Summary(subjects={"zoo:x": Coverage()})
    assert judge(summary, ()).exit_code == 2  # nothing ran
    summary.subjects["zoo:x"].cases = 3
    assert judge(summary, ()).exit_code == 0
    assert judge(summary, ("test_mine.py",)).exit_code == 1
    summary.findings = {"a": _finding("a", known=True), "b": _finding("b", listed="as documented")}
    verdict = judge(summary, ())
    assert ([f["identity"] for f in verdict.known], [f["identity"] for f in verdict.listed]) == (["a"], ["b"])
    assert verdict.exit_code == 0
    summary.findings["c"] = _finding("c")
    assert judge(summary, ()).exit_code == 1
    summary.errors.append("out of memory")
    assert judge(summary, ()).exit_code == 2


def test_only_reduced_cases_of_this_run_that_no_corpus_has_are_promoted(tmp_path: Path) -> None:
    logits = TensorSpec("float32", (1, 2), rows=((0.0, 0.0),))
    case = Case("fused_gate", {"topk": 1}, {"logits": logits})
    for name in ("new", "old", "other", "raw-12", "fault-3"):
        corpus.keep(tmp_path / "corpus", name, case)
    corpus.keep(tmp_path / "committed", "old", case)
    summary = Summary(findings={n: _finding(n) for n in ("new", "old", "raw")})
    copies = promote(tmp_path, judge(summary, ()), [tmp_path / "committed"])
    assert copies == [tmp_path / "promote" / "corpus" / "fused_gate" / "new.json"]
    assert corpus.read_case(copies[0]) == case
    text = (tmp_path / "promote" / "README.md").read_text(encoding="utf-8")
    assert "| `corpus/fused_gate/new.json` | `zoo:x` | wrong \\| odd |" in text
    assert promote(tmp_path, judge(Summary(), ()), []) == []
    assert not (tmp_path / "promote").exists()


MINE = """
from hypothesis import given, settings, strategies as st
from moeproof.references import gold
from moeproof.testing import GateDomain, parity, subject


def doubled(**args):
    weights, ids = gold.fused_gate(**args)
    return 2 * weights, ids


domain = GateDomain(experts=range(4, 5), topk=range(2, 3), tokens=range(1, 3), groups="none", shared=range(1))
mine = subject(doubled, op="fused_gate", device="cpu", domain=domain, batch_invariant=False)
test_mine = parity(mine, examples=20)


@settings(max_examples=5)
@given(st.integers())
def test_profile(number):
    assert settings().database is not None and settings.get_current_profile_name() == "nightly"
"""


def test_a_lane_s_own_tests_run_with_the_run_s_databases_and_findings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CI", "true")
    path = tmp_path / "test_mine.py"
    path.write_text(MINE, encoding="utf-8")
    out = tmp_path / "out"
    store = Store(state_file(out))
    run = store.open_run(60.0, seed=1)
    unit = Unit("mine", str(path), "tests:test_mine.py", "", checks=("tests",))
    store.prepare(run.id, {"devices": [], "corpus": [], "examples": {}}, [unit], 600.0, replay_seconds=30.0)
    store.restart(run.id)
    work = store.take(store.join("gw0", 1, []).id)
    assert work is not None
    assert work.kind == "tests"
    store.close()
    events: list[Event] = []
    run_tests(work, events.append, out=out)
    notes = [e.data["text"] for e in events if e.kind == "note"]
    assert not notes, notes
    found = [e.data for e in events if e.kind == "finding"]
    assert {(f["subject"], f["check"]) for f in found} == {("test_mine:doubled", "weights")}
    assert {Path(f["folder"]).parent for f in found} == {out / "findings"}
    assert list((out / "examples").rglob("*"))  # Hypothesis remembers
