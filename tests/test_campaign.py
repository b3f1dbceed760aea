"""A run of fuzzing: what it finds is kept once, what was kept runs first, and nothing is lost on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from zoo.entry import FRONT_DOOR

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify import campaign as module
from moeproof.verify import corpus
from moeproof.verify.child import HarnessError, Inline, NoMemoryError
from moeproof.verify.config import Config, ConfigError
from moeproof.verify.console import LiveConsole
from moeproof.verify.coordinator import Summary, run
from moeproof.verify.events import Event, JsonLines
from moeproof.verify.execute import Outcome
from moeproof.verify.subject import Unavailable

torch.set_num_threads(1)  # several test processes share the cores
TIE = "gate-tie-higher-id"
PATIENCE = 300.0
"""How long to wait for what is sure to come."""


@pytest.fixture(autouse=True)
def _no_shipped_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SHIPPED", tmp_path / "none")


def zoo(slug: str) -> str:
    return f"{FRONT_DOOR}:zoo:{slug}"


def fuzz(out: Path, *slugs: str, **settings: Any) -> tuple[Summary, list[Event]]:
    """Run a short campaign inside this process."""
    events: list[Event] = []
    fields: dict[str, Any] = {
        "cases": 40,
        "seed": 3,
        "isolate": False,
        "max_elements": 1024,
        "reduce_seconds": 120.0,  # none is cut short, however slow the machine
    }
    config = Config(subjects=tuple(zoo(s) for s in slugs), out=out, **(fields | settings))
    return run(config, [events.append]), events


def kinds(events: list[Event]) -> set[str]:
    return {event.kind for event in events}


def tie_case(experts: int = 5) -> Case:
    logits = TensorSpec("float32", (1, experts), rows=((0.5,) * experts,))
    params: dict[str, bool | int | float | str] = {"topk": 1, "scoring": "sigmoid", "renormalize": False}
    return Case("fused_gate", params, {"logits": logits})


def test_a_finding_is_written_whole_and_found_again_under_the_same_name(tmp_path: Path) -> None:
    first, events = fuzz(tmp_path / "a", TIE)
    second, _ = fuzz(tmp_path / "b", TIE, seed=4)
    assert first.failures[f"zoo:{TIE}"]["tie_order"] > 3
    assert list(first.findings) == list(second.findings)
    assert len(first.findings) == 1
    (identity,) = first.findings
    place = tmp_path / "a" / "findings" / identity
    assert {p.name for p in place.iterdir()} == {"case.json", "finding.json", "finding.md", "repro.py"}
    assert corpus.read_case(place / "case.json") == corpus.read_case(
        tmp_path / "a" / "corpus" / "fused_gate" / f"{identity}.json"
    )
    assert [e.data["identity"] for e in events if e.kind == "finding"] == [identity]
    assert (first.exit_code(), first.findings[identity]["known"]) == (1, False)
    # No raw case is left beside the reduced one.
    assert len(list((tmp_path / "a" / "corpus").rglob("*.json"))) == 1

    again, events = fuzz(tmp_path / "a", TIE, seed=5)
    assert list(again.findings) == [identity]
    assert again.findings[identity]["known"]
    assert "finding" not in kinds(events)
    assert again.exit_code() == 1


def test_the_corpus_runs_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus.keep(tmp_path / "more", "mine", tie_case())
    ran: list[Case] = []
    real = Inline.run

    def spy(self: Inline, case: Case, *args: Any, **kwargs: Any) -> Any:
        ran.append(case)
        return real(self, case, *args, **kwargs)

    monkeypatch.setattr(Inline, "run", spy)
    fuzz(tmp_path / "out", "right-gate", cases=2, corpus=(tmp_path / "more",))
    assert ran[0] == tie_case()
    assert len(ran) == 3


def test_bad_corpus_files_are_said_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "bad.json").write_text("[" * 100_000, encoding="utf-8")
    summary, _ = fuzz(tmp_path / "out", "right-gate", cases=2, corpus=(tmp_path / "more",))
    assert any("bad.json" in note for note in summary.notes)
    assert summary.exit_code() == 0


def _in_flight(out: Path, slug: str, case: Case, name: str = "0-zoo") -> Path:
    path = out / "inflight" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"subject": zoo(slug), "case": case.to_json(), "extras": [], "refusal": False}))
    return path


def test_a_case_in_flight_at_a_kill_runs_first_and_only_for_its_subject(tmp_path: Path) -> None:
    path = _in_flight(tmp_path, TIE, tie_case())
    aside = tmp_path / "inflight" / "interrupted"
    summary, _ = fuzz(tmp_path, "right-gate", cases=2)
    assert not summary.findings
    assert not path.exists()
    assert len(list(aside.glob("*.json"))) == 1  # its subject did not run: it waits
    summary, events = fuzz(tmp_path, TIE, cases=1)
    assert any("was in flight" in note for note in summary.notes)
    failures = [e for e in events if e.kind == "failure"]
    assert failures[0].data["check"] == "tie_order"
    assert not list(aside.glob("*.json"))


def test_what_is_no_request_in_flight_is_said(tmp_path: Path) -> None:
    (tmp_path / "inflight").mkdir()
    (tmp_path / "inflight" / "0-zoo.json").write_text('{"case": 3')
    summary, _ = fuzz(tmp_path, "right-gate", cases=2)
    assert any("can't be read" in note for note in summary.notes)


def test_the_case_as_found_survives_an_interrupted_reduction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "reduce_to_finding", interrupted)
        summary, events = fuzz(tmp_path, TIE)
    assert summary.interrupted
    assert events[-1].kind == "end"
    (raw,) = (tmp_path / "corpus").rglob("raw-*.json")
    assert corpus.read_case(raw).op == "fused_gate"
    summary, _ = fuzz(tmp_path, TIE, cases=1)
    assert len(summary.findings) == 1
    assert not raw.exists()


def _cases(events: list[Event]) -> Any:
    return [e for e in events if e.kind == "progress"][-1].data["subjects"]


def test_a_seed_gives_the_same_cases_again_and_another_gives_others(tmp_path: Path) -> None:
    runs = [_cases(fuzz(tmp_path / str(i), "right-gate", seed=s)[1]) for i, s in enumerate((8, 8, 9))]
    assert runs[0] == runs[1] != runs[2]


def test_the_budget_of_cases_is_kept_for_each_subject(tmp_path: Path) -> None:
    summary, _ = fuzz(tmp_path, "right-gate", "right-align", cases=70)
    assert {name: c.cases for name, c in summary.subjects.items()} == {
        "zoo:right-gate": 70,
        "zoo:right-align": 70,
    }


def test_a_time_limit_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    real = Inline.run

    def run(self: Inline, *args: Any, **kwargs: Any) -> Any:
        clock[0] += 0.125
        return real(self, *args, **kwargs)

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(Inline, "run", run)
    summary, _ = fuzz(tmp_path, "right-gate", "right-append", cases=None, seconds=10.0)
    # The case that is under way when a subject's turn is over is brought to its end.
    assert 10.0 <= clock[0] <= 10.0 + 0.125 * 2 * module.ROUNDS
    assert all(c.cases == pytest.approx(40, abs=2 * module.ROUNDS) for c in summary.subjects.values())


@pytest.mark.parametrize(("each", "cases"), [(0.0625, 80), (50.0, 0)])
def test_what_is_compiled_counts_as_time_only_past_as_much_again(
    each: float, cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, events = [0.0], []
    config = Config(subjects=(zoo("right-append"),), seconds=10.0, seed=3, out=tmp_path, isolate=False)
    campaign = module.Campaign(config, events.append)
    real = Inline.run

    def run(self: Inline, *args: Any, **kwargs: Any) -> Any:
        campaign.note_build("its kernel", None)
        campaign.note_build("its kernel", each)
        clock[0] += 0.125 + each
        return real(self, *args, **kwargs)

    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(Inline, "run", run)
    campaign.run()
    last = [e for e in events if e.kind == "progress"][-1].data
    ran = last["subjects"]["zoo:right-append"]["cases"]
    assert last["building"] == pytest.approx(ran * each)
    assert clock[0] <= 20.0 + module.ROUNDS * (0.125 + each)
    assert ran == pytest.approx(cases, abs=2 * module.ROUNDS)


def test_kept_cases_are_replayed_subject_by_subject_before_the_time_to_fuzz(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PROGRESS_SECONDS", 0.0)
    for experts in (3, 4):
        corpus.keep(tmp_path / "corpus", f"case-{experts}", tie_case(experts))
    _, events = fuzz(tmp_path, "right-gate", "right-gate-float32", cases=2)
    counts = [
        tuple(s["cases"] for s in e.data["subjects"].values())
        for e in events
        if e.kind == "progress" and e.data["replaying"]
    ]
    assert counts == [(1, 0), (2, 0), (2, 1), (2, 2)]
    assert not events[-2].data["replaying"]
    console = Console(file=StringIO(), width=200)
    live = LiveConsole(console, 60.0)
    shown = []
    for event in [Event("building", {"what": "its kernel"}), *events]:
        live(event)
        shown.append(live._line())
    assert shown[0].endswith("compiling its kernel")
    replays = [line for line in shown if line.endswith("replaying kept cases")]
    assert len(replays) >= 4
    assert not [line for line in replays if "left" in line]
    assert " s left; fuzz runs" in shown[-1]
    assert console.file.getvalue().count("the time to fuzz does not run") == 1


def _fails_on(op: str, error: Exception) -> Callable[..., Any]:
    real = Inline.run

    def broken(self: Inline, case: Case, *args: Any, **kwargs: Any) -> Any:
        if case.op == op:
            raise error
        return real(self, case, *args, **kwargs)

    return broken


def test_a_subject_that_is_lost_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inline, "run", _fails_on("fused_gate", Unavailable("the GPU fell off")))
    summary, events = fuzz(tmp_path, "right-gate", "right-align", cases=3)
    assert summary.unavailable == {"zoo:right-gate": "the GPU fell off"}
    assert [e.kind for e in events].count("unavailable") == 1
    assert summary.subjects["zoo:right-align"].cases >= 3
    assert summary.exit_code() == 0


def test_a_fault_of_the_harness_keeps_its_case_and_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inline, "run", _fails_on("fused_gate", HarnessError("KeyError: 'x'")))
    summary, _ = fuzz(tmp_path, "right-gate", "right-align", cases=3)
    assert "KeyError" in summary.errors[0]
    assert list((tmp_path / "corpus" / "fused_gate").glob("fault-*.json"))
    assert summary.subjects["zoo:right-align"].cases >= 3
    assert summary.exit_code() == 2


def test_reductions_that_end_with_their_time_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.reduce_to_finding
    monkeypatch.setattr(module, "reduce_to_finding", lambda *a, **k: replace(real(*a, **k), complete=False))
    summary, events = fuzz(tmp_path, "gate-tie-higher-id", cases=300, reduce_seconds=0.1)
    assert summary.failures["zoo:gate-tie-higher-id"]["tie_order"] >= 1 << module.MAX_CUT_SHORT
    started = [e for e in events if e.kind == "reducing" and e.data["check"] == "tie_order"]
    assert len(started) == module.MAX_CUT_SHORT
    monkeypatch.setattr(module, "MAX_CUT_SHORT", 99)
    _, events = fuzz(tmp_path / "more", "gate-tie-higher-id", cases=300, reduce_seconds=0.1)
    assert len([e for e in events if e.kind == "reducing" and e.data["check"] == "tie_order"]) > len(started)


def test_a_case_without_memory_is_passed_over_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, count = Inline.run, 0

    def short(self: Inline, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
        nonlocal count
        count += 1
        if count % 3 == 0:
            raise NoMemoryError("CUDA out of memory")
        return run(self, case, extras, refusal=refusal)

    monkeypatch.setattr(Inline, "run", short)
    summary, _ = fuzz(tmp_path, "right-gate", cases=30)
    assert summary.exit_code() == 0
    assert any("cases of zoo:right-gate were passed over for want of memory" in note for note in summary.notes)
    assert summary.subjects["zoo:right-gate"].cases >= 30


def test_a_subject_that_always_lacks_memory_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Inline, "run", _fails_on("fused_gate", NoMemoryError("CUDA out of memory")))
    summary, _ = fuzz(tmp_path, "right-gate", "right-align", cases=3)
    assert "memory does not suffice for 20 cases in a row" in summary.unavailable["zoo:right-gate"]
    assert not summary.findings


def test_a_preset_outside_a_domain_leaves_that_subject_out(tmp_path: Path) -> None:
    summary, _ = fuzz(tmp_path, "gate-only-192-6", "right-gate", cases=2, preset="kimi-k2")
    assert "preset is 'kimi-k2'" in summary.unavailable["zoo:gate-only-192-6"]
    assert summary.subjects["zoo:right-gate"].cases == 2


def test_bad_arguments_that_are_accepted_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OUTSIDE_EVERY", 1)

    from moeproof.verify.subject import find

    subject = replace(find([zoo("gate-accepts-outside")])[0], refuses=True)
    monkeypatch.setattr(module, "find", lambda patterns: [subject])
    summary, _ = fuzz(tmp_path, "gate-accepts-outside", cases=80)
    assert {f["check"] for f in summary.findings.values()} == {"domain"}
    assert all(f["outside_domain"] for f in summary.findings.values())
    texts = [p.read_text() for p in (tmp_path / "findings").rglob("repro.py")]
    assert texts
    assert all("the subject claims to refuse this" in text for text in texts)
    # Such cases are no corpus: no subject is asked to support them.
    assert not (tmp_path / "corpus").exists() or not list((tmp_path / "corpus").rglob("*.json"))


def test_a_crashing_subject_is_found_and_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REDUCTIONS", 1)
    tokens = TensorSpec("float32", (5, 1), rows=((0.0,),))
    corpus.keep(tmp_path / "more", "five", tie_case().but(logits=tokens))
    settings = {"isolate": True, "cases": 1, "reduce_seconds": 1.0, "corpus": (tmp_path / "more",)}
    summary, _ = fuzz(tmp_path / "out", "gate-exits", "right-align", **settings)
    assert "cuda_error" in {f["check"] for f in summary.findings.values()}
    assert summary.subjects["zoo:right-align"].cases > 0
    assert not summary.errors


def test_workers_share_the_work(tmp_path: Path) -> None:
    _in_flight(tmp_path, TIE, tie_case(), "7-zoo")
    settings = {"isolate": True, "workers": 2, "cases": 15, "seed": 2, "reduce_seconds": 3.0}
    summary, events = fuzz(tmp_path, TIE, "right-align", **settings)
    assert not summary.errors
    assert {f["check"] for f in summary.findings.values()} >= {"tie_order"}
    assert {e.data.get("worker") for e in events if e.kind == "progress"} == {0, 1}
    assert summary.subjects["zoo:right-align"].cases >= 30
    assert not list((tmp_path / "inflight").rglob("*.json"))
    assert any("was in flight" in note for note in summary.notes)


def test_workers_die_with_a_killed_coordinator(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "moeproof.verify.cli", "fuzz", "-s", zoo("right-gate"), "--workers", "2"]
    process = subprocess.Popen([*command, "--out", str(tmp_path), "--seconds", "1000"], stdout=subprocess.DEVNULL)
    try:
        log, end = tmp_path / "events.jsonl", time.monotonic() + PATIENCE
        while not (log.exists() and '"progress"' in log.read_text()):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        family = _descendants(process.pid)
        assert len(family) >= 2
    finally:
        process.kill()
        process.wait()
    end = time.monotonic() + PATIENCE
    while (left := [p for p in family if _running(p)]) and time.monotonic() < end:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            # multiprocessing's resource tracker ends by itself when its pipe closes
            found += [child, *_descendants(child)]
    return found


def _running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seconds": None, "cases": None}, "neither seconds nor cases"),
        ({"seconds": 0.0}, "seconds is 0.0; allowed: 0.1 to"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"cases": 0}, "cases is 0"),
        ({"workers": 0}, "workers is 0; allowed: 1 to 256"),
        ({"seed": -1}, "seed is -1"),
        ({"corpus": (Path("/no/such"),)}, "corpus is '/no/such'; allowed: an existing folder"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(**({"subjects": ("numpy",), "cases": 1} | change))


def test_events_are_lines_of_json_that_later_runs_add_to(tmp_path: Path) -> None:
    for number in (1, 2):
        log = JsonLines(tmp_path / "logs" / "events.jsonl")
        log(Event("note", {"text": f"run {number}"}))
        log.close()
    lines = (tmp_path / "logs" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["run 1", "run 2"]


def test_a_subject_of_which_no_case_can_be_drawn_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only cases end this campaign: without an error it would draw for ever."""
    monkeypatch.setattr("moeproof.verify.explore.CHOICES", 1)
    summary, _ = fuzz(tmp_path, TIE)
    assert not summary.findings
    assert "no case of its domain can be drawn: 1 random bytes were too few" in summary.unavailable[f"zoo:{TIE}"]
