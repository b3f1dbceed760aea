"""The lane from end to end, with a stand-in for compute-sanitizer and subjects that make up its reports."""

from __future__ import annotations

import datetime
import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sanitize import fake, planted, stand_ins

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify import corpus
from moeproof.verify.coordinator import Summary, tee
from moeproof.verify.events import Event
from moeproof.verify.ledger import append, read
from moeproof.verify.ledger.check import Checker, Status
from moeproof.verify.replaying import Replay, replay_paths
from moeproof.verify.sanitize import tools
from moeproof.verify.sanitize.executor import SanitizedChild, ToolError
from moeproof.verify.sanitize.lane import Lane, LaneRun, Work, generated_work, work_of_files
from moeproof.verify.subject import Subject
from moeproof.verify.violation import SANITIZERS

pytestmark = pytest.mark.slow

MEMCHECK = tools.TOOLS["memcheck"]


def gate(tokens: int, experts: int) -> Case:
    logits = TensorSpec("float32", (tokens, experts), rows=(tuple(float(e) for e in range(experts)),))
    return Case("fused_gate", {"topk": 1, "scoring": "sigmoid", "renormalize": False}, {"logits": logits})


@dataclass
class Ran:
    """A lane that has run."""

    summary: Summary
    events: list[Event]

    @property
    def notes(self) -> list[str]:
        return [e.data["text"] for e in self.events if e.kind == "note"]

    def of(self, subject: Subject) -> list[dict[str, Any]]:
        return [f for f in self.summary.findings.values() if f["subject"] == subject.name]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a program that behaves like compute-sanitizer."""
    path = tmp_path_factory.mktemp("bin") / tools.PROGRAM
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(fake.__file__).resolve()} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def run(
    program: Path, out: Path, *work: tuple[Subject, list[Case]], names: tuple[str, ...] = ("memcheck",), **limits: float
) -> Ran:
    chosen = tuple(tools.TOOLS[name] for name in names)
    lane = Lane(program, tuple(Work(s, chosen, tuple(c)) for s, c in work), out, **{"reduce_seconds": 3, **limits})
    ran = Ran(Summary(), [])
    LaneRun(lane, tee(ran.summary, [ran.events.append])).run()
    return ran


@pytest.fixture(scope="module")
def loud(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Return a lane with reports."""
    many = [gate(2, 3), gate(3, 40), gate(4, 33), gate(6, 15)]
    return run(program, tmp_path_factory.mktemp("out"), (stand_ins.ODD, many), (stand_ins.TWO, [gate(5, 4)]))


def test_right_subjects_pass_and_what_they_raise_is_left_to_fuzz(program: Path, tmp_path: Path) -> None:
    cases = [gate(2, 3), gate(0, 4), gate(5, 9)]
    names = ("memcheck", "racecheck")
    work = [(stand_ins.RIGHT, cases), (stand_ins.RAISES, cases[:2]), (stand_ins.ABSENT, cases)]
    work += [(stand_ins.TORCH, cases[:2])]
    ran = run(program, tmp_path, *work, names=names)
    assert ran.summary.unavailable == {stand_ins.ABSENT.name: "not on this machine"}
    assert ran.summary.exit_code() == 0, ran.summary
    assert ran.summary.subjects[stand_ins.RIGHT.name].cases == len(cases) * len(names)
    assert sum("raised on 1 cases" in note for note in ran.notes) == len(names)
    assert [n.partition(":")[0] for n in ran.notes if "3 of 3 cases" in n] == list(names)
    assert sum("in at::native::vectorized_elementwise_kernel" in note for note in ran.notes) == 1


def test_a_report_becomes_one_reduced_finding(loud: Ran) -> None:
    assert loud.summary.exit_code() == 1, loud.summary
    (found,) = loud.of(stand_ins.ODD)
    assert loud.summary.failures[stand_ins.ODD.name] == {"memcheck": 2}
    assert (found["check"], found["severity"]) == ("memcheck", "critical")
    assert "T=1, E=9, k=1" in found["title"]
    assert found["message"] == (
        "Invalid __global__ write of 4 bytes in gate_kernel by thread (0,0,0) in block (0,0,0), "
        "1 bytes after indices (4 bytes); 3 reports"
    )
    assert (found["failed"], found["runs"]) == (10, 10)
    text = (Path(found["folder"]) / "finding.md").read_text()
    assert "1 bytes after the nearest allocation" in text
    assert f"`moeproof sanitize {found['identity']}`" in text


def test_two_defects_in_one_case_are_two_findings_each_with_its_own_case(loud: Ran) -> None:
    first, second = sorted(loud.of(stand_ins.TWO), key=lambda f: str(f["message"]))
    assert " in first " in first["message"]
    assert " in second " in second["message"]
    assert "T=1" in first["title"]
    assert "T=3" in second["title"]


def test_a_finding_asks_for_its_own_tool_and_subject(loud: Ran) -> None:
    (found,) = loud.of(stand_ins.ODD)
    (work,) = work_of_files([Path(found["folder"]) / "case.json"], None, [])
    assert (work.subject.name, [t.name for t in work.tools]) == (stand_ins.ODD.name, ["memcheck"])
    with pytest.raises(ValueError, match="belongs to no finding"):
        work_of_files([next((corpus.SHIPPED / "fused_gate").glob("*.json"))], None, [])


def test_a_known_finding_under_a_tool_without_a_summary_and_with_little_time(
    loud: Ran, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MODE", "silent")
    (found,) = loud.of(stand_ins.ODD)
    cases = [gate(2, 9), *(gate(1, 2 * e) for e in range(1, 32))]
    ran = run(program, Path(found["folder"]).parent.parent, (stand_ins.ODD, cases), seconds=0.2)
    assert [f["known"] for f in ran.summary.findings.values()] == [True]
    assert ran.summary.exit_code() == 2
    assert ran.summary.errors == ["memcheck ended with exit status 86 and printed no summary"]
    said = next(note for note in ran.notes if "cases in" in note)
    assert 1 <= int(said.split(": ")[2].split(" of ")[0]) < len(cases)  # its time was up


def test_what_is_no_pass(program: Path, tmp_path: Path) -> None:
    """A report that does not come again, a process that dies or hangs, nothing but errors; other cases run on."""
    cases = [gate(1, 8), gate(1, 3)]
    work = [(stand_ins.ONCE, cases), (stand_ins.DIES, cases), (stand_ins.RAISES, [gate(2, 3)])]
    ran = run(program, tmp_path, *work, (stand_ins.HANGS, cases[:1]), case_seconds=3)
    assert ran.summary.exit_code() == 2
    once, died, raised, hung = ran.summary.errors
    assert "reported once, not again" in once
    assert "the process died" in died
    assert "raised on every case under memcheck" in raised
    assert "no answer within 3 s, and again in a new process" in hung
    assert sum("2 of 2 cases" in note for note in ran.notes) == 2
    assert len(list((tmp_path / "corpus" / "fused_gate").glob("lost-*.json"))) == 1  # the same case twice


def test_a_process_lost_once_is_told_and_its_case_judged_in_a_new_one(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_MARK", str(tmp_path / "mark"))
    ran = run(program, tmp_path, (stand_ins.DIES_ONCE, [gate(1, 8), gate(1, 3)]))
    assert ran.summary.exit_code() == 0, ran.summary
    (told,) = [note for note in ran.notes if "the process died" in note]
    assert "not so in a new process" in told
    assert len(list((tmp_path / "corpus" / "fused_gate").glob("lost-*.json"))) == 1


def test_a_tool_that_does_not_start_is_no_pass(program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_MODE", "dies")
    ran = run(program, tmp_path, (stand_ins.RIGHT, [gate(1, 9)]), names=("memcheck", "initcheck"))
    words = "can't start a process: exit status 1\nDevice not supported"
    assert ran.summary.errors == [f"memcheck {words}", f"initcheck {words}"]
    assert ran.summary.exit_code() == 2
    with pytest.raises(ToolError, match="can't start a process"):
        SanitizedChild(tmp_path / "nothing", MEMCHECK, 1.0).load(stand_ins.RIGHT)


def test_cases_come_from_the_corpus_and_from_generation() -> None:
    (work,), problems = generated_work([stand_ins.RIGHT], [MEMCHECK], folders=[corpus.SHIPPED], cases=7, seed=3)
    entries, _ = corpus.load([corpus.SHIPPED])
    assert not problems
    assert 7 < len(work.cases) <= 7 + len(entries)
    again, _ = generated_work([stand_ins.RIGHT], [MEMCHECK], folders=[corpus.SHIPPED], cases=7, seed=3)
    assert again[0].cases == work.cases


def test_the_cost_is_known_before_the_start(tmp_path: Path) -> None:
    chosen = tuple(tools.TOOLS.values())
    work = (Work(stand_ins.RIGHT, chosen, (gate(1, 2),) * 3), Work(planted.right, chosen, ()))
    lane = Lane(tmp_path, work, tmp_path)
    assert (lane.processes, lane.runs) == (8, 12)


def test_the_script_of_a_finding_runs_the_tool(loud: Ran, program: Path) -> None:
    (found,) = loud.of(stand_ins.ODD)
    script = Path(found["folder"]) / "repro.py"
    environment = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "WRONG"), done.stdout + done.stderr
    assert "Invalid __global__ write" in done.stdout


def test_the_ledger_and_replay_leave_a_finding_to_its_tool(
    loud: Ran, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    path = tmp_path / "ledger.toml"
    kept, gone = loud.of(stand_ins.ODD)[0], loud.of(stand_ins.TWO)[0]
    for finding in (kept, gone):
        today = datetime.date(2026, 1, 31)
        append(path, Path(finding["folder"]), reason="r", upstream="", version=None, title=None, date=today)
    case = tmp_path / gone["identity"] / "case.json"
    case.write_text(gate(0, 2).dumps())  # this one passes
    assert [(c.entry.identity, c.status) for c in Checker(30).check(read(path))] == [
        (kept["identity"], Status.THERE),
        (gone["identity"], Status.GONE),
    ]
    (skipped,) = replay_paths([case], None, 5.0)
    assert skipped.status is Replay.SKIPPED
    assert "memcheck found it: `moeproof sanitize" in skipped.lines[0]


def test_check_classes_bear_the_names_of_the_tools() -> None:
    assert tuple(tools.TOOLS) == SANITIZERS
