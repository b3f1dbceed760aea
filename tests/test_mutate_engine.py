"""A whole mutation run on a toy kernel: verdicts, equivalents, resuming, reports, and what ends a run."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tree_sitter_cuda")

from mutation_kit import TOY, ToyJudge
from rich.console import Console

from moeproof.verify.mutate import equivalent, instrument, report
from moeproof.verify.mutate.console import ConsoleWatcher, print_outcome
from moeproof.verify.mutate.engine import ALIVE, REFUSED, SAME_CODE, UNREACHED, Engine, Outcome, Plan, Watcher
from moeproof.verify.mutate.judge import DOES_NOT_COMPILE, EQUIVALENT, KILLED, SURVIVED, TIMED_OUT, JudgeError, Verdict
from moeproof.verify.mutate.mutant import Mutant, mutants_of
from moeproof.verify.mutate.pool import Job, run_jobs
from moeproof.verify.mutate.source import Source

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the toy kernel needs g++")

ENTRY = """\
[[mutant]]
file = "toy.cu"
function = "bucket"
operator = "guard_dropped"
node = "id < 0 || id >= experts"
replacement = "{replacement}"
reason = "a reason that is long enough to stand"
"""


def plan_of(tmp_path: Path, text: str = TOY, **more: Any) -> Plan:
    folder = tmp_path / "kernels"
    folder.mkdir(exist_ok=True)
    (folder / "toy.cu").write_text(text)
    settings: dict[str, Any] = {
        "cases": 20,
        "out": tmp_path / "out",
        "equivalents": folder / equivalent.FILE,
        "jobs": 2,
    }
    return Plan((folder / "toy.cu",), **{**settings, **more})


class Recorder(Watcher):
    def __init__(self) -> None:
        self.tried: list[str] = []
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def judged(self, mutant: Mutant, verdict: Verdict) -> None:
        self.tried.append(mutant.id)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return Engine(plan_of(tmp_path_factory.mktemp("mutate")), ToyJudge()).run()


def verdict(outcome: Outcome, operator: str, part: str) -> Verdict:
    (found,) = [v for m, v in outcome.verdicts if m.operator == operator and part in m.title]
    return found


def test_mutants_are_sorted_by_what_became_of_them(outcome: Outcome) -> None:
    assert len(outcome.verdicts) > 30
    killed = verdict(outcome, "last_skipped", "i < n")
    assert (killed.status, killed.check) == (KILLED, "align_layout")
    assert 1 <= killed.cases <= 6  # in five of the twenty cases the last id counts nowhere
    assert verdict(outcome, "relational", "id >= experts").check == "guard_zone"
    assert verdict(outcome, "accumulation", "counts[0] += n").message == UNREACHED
    assert (v := verdict(outcome, "literal", "7 → 6")).status == EQUIVALENT
    assert v.message == SAME_CODE
    assert verdict(outcome, "guard_dropped", "→ id < 0").status == KILLED


def test_what_the_device_compiler_refuses_is_not_counted(tmp_path: Path) -> None:
    outcome = Engine(plan_of(tmp_path, operators=("literal",)), ToyJudge(refused="UNUSED = 6")).run()
    assert (v := verdict(outcome, "literal", "7 → 6")).status == DOES_NOT_COMPILE
    assert v.message == REFUSED


def test_reports_say_the_same(outcome: Outcome) -> None:
    data = report.as_json(outcome)
    figures = data["summary"]
    counts = figures["statuses"]
    dead = counts[KILLED] + counts[TIMED_OUT]
    assert figures["score"] == dead / (dead + counts[SURVIVED])
    assert sum(figures["checks"].values()) == dead
    survivors = [r for r in data["mutants"] if r["status"] == SURVIVED]
    assert survivors
    assert all(r["diff"].startswith("--- a/toy.cu") for r in survivors)
    text = report.as_markdown(outcome)
    assert f"**{report.percent(figures['score'])}**" in text
    assert text.count("```diff") == len(survivors)
    assert SAME_CODE in text
    console = Console(width=150, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    print_outcome(console, outcome)
    assert f"score {report.percent(figures['score'])}" in console.export_text()


def test_a_score_is_never_rounded_up_to_all() -> None:
    assert report.percent(0.99999) == "99.9%"
    assert report.percent(1.0) == "100.0%"
    assert report.percent(None) == "–"


def test_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, operators=("relational", "guard_dropped"))
    first, second, third = Recorder(), Recorder(), Recorder()
    complete = Engine(plan, ToyJudge(), first).run()
    results = plan.out / "results.jsonl"
    lines = [line for line in results.read_text().splitlines(keepends=True) if ALIVE not in line]
    # As a kill leaves it: two verdicts, and half a line.
    results.write_text("".join(lines[:2]) + lines[2][:20])
    resumed = Engine(plan, ToyJudge(), second).run()
    assert len(first.tried) == len(complete.verdicts)
    assert len(second.tried) == len(first.tried) - 2
    assert not any("unmutated" in n for n in second.notes)  # the baseline was kept
    strip = [(m.id, v.status, v.check) for m, v in complete.verdicts]
    assert [(m.id, v.status, v.check) for m, v in resumed.verdicts] == strip
    # Other sources, other verdicts.
    changed = plan_of(tmp_path, TOY + "// changed\n", operators=("relational",))
    Engine(changed, ToyJudge(), third).run()
    assert third.tried


def test_ctrl_c_keeps_what_is_judged(tmp_path: Path) -> None:
    class Impatient(Recorder):
        def judged(self, mutant: Mutant, verdict: Verdict) -> None:
            super().judged(mutant, verdict)
            if len(self.tried) == 2:
                raise KeyboardInterrupt

    watcher = Impatient()
    result = Engine(plan_of(tmp_path, operators=("relational", "literal")), ToyJudge(), watcher).run()
    assert len(result.verdicts) == 2
    assert result.untried > 0
    assert "interrupted" in watcher.notes[-1]


def test_kernels_that_fail_without_a_mutation_abort_the_run(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TOY.replace("counts[at] += 1", "counts[at] += 2"))
    with pytest.raises(JudgeError, match=r"unmutated kernels fail.*align_layout"):
        Engine(plan, ToyJudge()).run()
    plan = plan_of(tmp_path, TOY.replace("counts[at] += 1", "counts[at] += nothing"))
    with pytest.raises(JudgeError, match="can't be compiled"):
        Engine(plan, ToyJudge()).run()


def test_a_mutant_that_never_ends_is_killed_by_the_clock(tmp_path: Path) -> None:
    text = TOY.replace("  if (n > 1000)", "  volatile int w = n;\n  while (w == 12345) w = w;\n  if (n > 1000)")
    # Negated, the loop goes on for ever.
    plan = plan_of(tmp_path, text, operators=("condition_negated", "relational"))
    result = Engine(plan, ToyJudge()).run()
    (found,) = [v for m, v in result.verdicts if m.node == "w == 12345"]
    assert (found.status, found.check) == (TIMED_OUT, "hang")
    assert found.dead


def test_listed_mutants_need_a_reason_and_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Which cases a share leaves is a matter of their measured times.
    monkeypatch.setattr("moeproof.verify.mutate.engine.LISTED_SHARE", 1)
    plan = plan_of(tmp_path, operators=("guard_dropped", "logical"))
    right = ENTRY.format(replacement="id >= experts")
    plan.equivalents.write_text(right)
    # With ids that are never negative nothing could tell; the toy's cases hold a -1, which `counts[-1]` shows.
    result = Engine(plan, ToyJudge()).run()
    statuses = {m.replacement: v.status for m, v in result.verdicts if m.operator == "guard_dropped"}
    survived = statuses["id >= experts"] == EQUIVALENT
    assert survived or result.refuted
    plan.equivalents.write_text(right + ENTRY.format(replacement="no such thing"))
    result = Engine(plan, ToyJudge()).run()
    assert len(result.stale) == 1
    assert "no such thing" in result.stale[0]
    plan.equivalents.write_text(ENTRY.format(replacement="id < 0"))
    result = Engine(plan, ToyJudge()).run()
    assert len(result.refuted) == 1
    assert "The list of equivalent mutants is wrong" in report.as_markdown(result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("a reason that is long enough to stand", "same"), "reason is 'same'"),
        (lambda t: t.replace('"guard_dropped"', '"guards"'), "operator is 'guards'"),
        (lambda t: t.replace("function", "method"), "allowed: file, function"),
        (lambda t: t + "ordinal = '1'\n", "ordinal is '1'"),
        (lambda t: t.replace('"guard_dropped"', "3"), "operator is 3"),
        (lambda t: t.replace("[[mutant]]", "[[mutants]]"), "allowed: tables"),
        (lambda t: t + "?", "mutants.toml"),
    ],
)
def test_a_malformed_list_is_refused(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    path = tmp_path / equivalent.FILE
    path.write_text(change(ENTRY.format(replacement="id < 0")))
    with pytest.raises(equivalent.EquivalentError, match=message.replace(".", r"\.")):
        equivalent.load(path)


def test_a_table_may_list_operators_and_nodes(tmp_path: Path) -> None:
    path = tmp_path / equivalent.FILE
    text = ENTRY.format(replacement="id < 0").replace('"guard_dropped"', '["guard_dropped", "logical"]')
    path.write_text(text.replace('node = "id < 0 || id >= experts"', 'node = ["a", "b"]'))
    entries = equivalent.load(path)
    assert [(e.node, e.operator) for e in entries] == [(n, ("guard_dropped", "logical")) for n in "ab"]


def test_an_entry_may_name_one_mutant_or_all_alike() -> None:
    source = Source("k.cu", b"void f(int n) { x = n + 31; x = n + 31; }\n")
    found = mutants_of(source, ["literal"])
    entry = equivalent.Entry("k.cu", "f", ("index", "literal"), "31", "a reason that is long enough")
    assert [entry.names(m) for m in found] == [True] * 2
    one = equivalent.Entry("k.cu", "f", ("literal",), "31", "a reason that is long enough", "30", 1)
    assert [one.names(m) for m in found] == [False, True]


def test_branches_are_marked_and_mutants_switched(tmp_path: Path) -> None:
    plan = plan_of(tmp_path)
    source = Source("toy.cu", TOY.encode())
    found = mutants_of(source)
    made = instrument.instrument(plan.folder, tmp_path / "marked", found)
    text = (tmp_path / "marked" / "toy.cu").read_text()
    assert "constexpr int UNUSED = 7;" in text
    assert "device__ int never(int x) { return x + 1; }" in text
    assert text.count("moeproof_reach(") == len(made.regions) + 1
    at = TOY.index("counts[0] += n")
    mark = instrument.innermost(made.regions, "toy.cu", at, at + 5)
    region = next(r for r in made.regions if r.mark == mark)
    assert TOY[region.start : region.end] == "counts[0] += n;"
    assert instrument.innermost(made.regions, "toy.cu", 0, 3) is None
    # What is at file scope can't be switched; all else of the toy can.
    assert {m.function for m in found if m.id not in made.numbers} == {""}
    assert sorted(made.numbers.values()) == list(range(1, len(made.numbers) + 1))
    assert sorted(i for ids in made.lines.values() for i in ids) == sorted(made.numbers)


def test_a_switched_mutant_behaves_as_one_compiled_alone(tmp_path: Path, outcome: Outcome) -> None:
    plan = plan_of(tmp_path)
    engine = Engine(plan, ToyJudge())
    alone = [m for m in engine.chosen if m.operator in ("relational", "literal", "index", "loop_removed")]
    engine.chosen = alone
    engine._instrument = lambda marked, attempts: instrument.instrument(plan.folder, marked)  # type: ignore[method-assign]
    # Which check fails first may depend on what lies beside an array.
    dead = {m.id: v.dead for m, v in engine.run().verdicts}
    assert dead == {m.id: v.dead for m, v in outcome.verdicts if m.id in dead}


def test_mutants_that_no_switch_can_hold_are_compiled_alone(tmp_path: Path) -> None:
    text = TOY.replace("  if (n > 1000)", "  __builtin_prefetch(ids, 0, 1);\n  if (n > 1000)")
    watcher = Recorder()
    engine = Engine(plan_of(tmp_path, text, operators=("literal", "arithmetic")), ToyJudge(), watcher)
    result = engine.run()
    assert any("can't be switched" in n for n in watcher.notes)
    assert 0 < len(engine.made.numbers) < len(result.verdicts)
    assert any(m.node == "0" and m.id in engine.made.numbers for m, _ in result.verdicts)


def test_a_terminal_shows_survivors(outcome: Outcome) -> None:
    console = Console(width=150, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    watcher = ConsoleWatcher(console)
    watcher.start(len(outcome.verdicts), 0)
    for mutant, found in outcome.verdicts:
        watcher.judged(mutant, found)
    watcher.close()
    assert console.export_text().count("survived") == sum(v.status == SURVIVED for _, v in outcome.verdicts)


def _odd_job(payload: str, tell: Callable[[int, float], None]) -> int:
    tell(1, 0.5 if payload == "spins" else 600.0)
    if payload == "dies":
        os.abort()
    if payload == "raises":
        raise RuntimeError("on purpose")
    while payload == "spins":
        pass
    for step in range(1000 if payload == "dawdles" else 2):
        tell(step, 600.0)
        time.sleep(0.05)
    return len(payload)


def test_jobs_that_die_hang_or_raise_harm_no_other() -> None:
    names = ["fine", "dies", "raises", "spins", "dawdles", "good"]
    done = {d.tag: d for d in run_jobs((Job(n, n, 4.0 if n == "dawdles" else 600.0) for n in names), _odd_job, 3)}
    assert (done["fine"].result, done["good"].result) == (4, 4)
    assert done["dies"].error.startswith("died")
    assert "on purpose" in done["raises"].error
    assert (done["spins"].error, done["spins"].step) == ("stuck", 1)
    assert done["dawdles"].error == "out of time"
