"""Subjects on the executor: own kernels, a user's own file as docs/simt.md has it, what is said without a compiler."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, find, settings
from simt import FOLDER, needs_compiler
from typer.testing import CliRunner

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify.child import Inline
from moeproof.verify.cli import _default_subjects, app
from moeproof.verify.contract import arguments
from moeproof.verify.execute import Runner
from moeproof.verify.explore import beyond, explore, inside
from moeproof.verify.finding import reduce_to_finding
from moeproof.verify.simt import Program, Schedule, Session, SimtError, own, schedules, toolchain
from moeproof.verify.simt.subjects import SOURCES
from moeproof.verify.subject import Subject, SubjectError, Unavailable, all_subjects, load_file
from moeproof.verify.violation import Violation

DOCS = Path(__file__).parent.parent / "docs" / "simt.md"
CPU = torch.device("cpu")
QUIET = settings(database=None, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
"""The same examples every time, however slow the machine."""
ELEMENTS = {"fused_gate": 1 << 11, "moe_align_block_size": 1 << 9}


def _violations(subject: Subject, cases: int, elements: int, seed: int = 1) -> list[Violation]:
    runner, found = Runner(subject, CPU), []
    strategy = inside(subject.op, subject.domain, max_elements=elements)
    explore(strategy, lambda case: found.extend(runner.run(case).violations), start=seed, count=cases)
    return found


def test_own_subjects_are_registered_and_run_by_default() -> None:
    names = {s.name for s in all_subjects()}
    assert {"own:fused_gate@simt", "own:moe_align_block_size@simt"} <= names
    if not torch.cuda.is_available():
        assert "own:*@simt" in _default_subjects()


def test_an_op_without_cuda_sources_is_refused() -> None:
    with pytest.raises(SubjectError, match=r"op is 'append_shared_experts'; allowed .*fused_gate"):
        own("append_shared_experts")


@needs_compiler
@pytest.mark.parametrize("op", ELEMENTS)
def test_own_kernels_are_right(op: str) -> None:
    assert not _violations(own(op), 12, ELEMENTS[op])


@needs_compiler
@pytest.mark.parametrize("op", ELEMENTS)
def test_what_is_outside_their_domains_is_refused(op: str) -> None:
    subject, seen = own(op), set()
    runner = Runner(subject, CPU)

    def refused(case: Case) -> None:
        seen.add(case.note.partition(" is ")[0])
        assert not runner.run(case, refusal=True).violations

    explore(beyond(subject.domain), refused, start=3, count=200)
    assert {"the number of tokens" if op == "fused_gate" else "block_size", "topk"} <= seen


@needs_compiler
@pytest.mark.parametrize("pair", [(0.4947119653224945, 0.4949711859226227), (1.9270703792572021, 1.9276200532913208)])
def test_groups_whose_best_two_cancel_are_told_apart_exactly(pair: tuple[float, float]) -> None:
    """Biases of +-1024 leave of each score a multiple of 2^-13, here the same; an estimate can miss by one."""
    logits = torch.full((9, 64), -torch.inf)
    logits[:, 0], logits[:, 32] = pair
    bias = torch.full((64,), -1024.0)
    bias[[0, 32]] = 1024.0
    rows = TensorSpec("float32", (9, 64), rows=(tuple(logits[0].tolist()),))
    case = Case(
        "fused_gate",
        {"topk": 1, "num_expert_group": 2, "topk_group": 1, "renormalize": False},
        {"logits": rows, "bias": TensorSpec("float32", (64,), rows=tuple(bias.tolist()))},
    )
    tensors, _ = case.build("cpu")
    made = own("fused_gate").load()(arguments(case, tensors), {})
    assert made is not None
    assert made["indices"].flatten().tolist() == [0] * 9


@needs_compiler
@pytest.mark.parametrize(("tokens", "experts", "step"), [(1, 1024, 512), (3, 2048, 256), (9, 256, 64), (1, 256, 128)])
def test_a_lane_that_owns_all_winners_loses_none(tokens: int, experts: int, step: int) -> None:
    """Eight winners in two vectors of one lane, where a row has a lane, a warp or a block of several warps."""
    winners = [base + i for base in (step, 0) for i in range(4)]
    # Distinct and spread over the lanes: many candidates beside the winners would leave the row to exact_row.
    logits = (torch.arange(experts) * 397 % experts / experts - 2).repeat(tokens, 1)
    logits[:, winners] = torch.arange(8, 0, -1).float()
    outputs = {"weights": torch.empty(tokens, 8), "indices": torch.empty(tokens, 8, dtype=torch.int32)}
    own("fused_gate").load()({"logits": logits, "bias": torch.zeros(experts), "topk": 8}, outputs)
    assert outputs["indices"].tolist() == [winners] * tokens, "a lane's candidates are lost on the way to their slots"


@needs_compiler
@pytest.mark.parametrize(
    ("op", "barrier"), [("fused_gate", "__syncwarp();"), ("moe_align_block_size", "__syncthreads();")]
)
def test_a_mutant_of_the_sources_is_caught(op: str, barrier: str, tmp_path: Path) -> None:
    for file in SOURCES.iterdir():
        if file.suffix in (".cu", ".cuh"):
            (tmp_path / file.name).write_text(file.read_text().replace(barrier, ";"))
    found = _violations(own(op, tmp_path), 4, ELEMENTS[op])
    assert {v.check for v in found} & {"race", "unwritten"}


def _written(folder: Path, remove: str = "") -> Subject:
    """Write the example of docs/simt.md into a folder and return its subject."""
    text = DOCS.read_text()
    for language, name in (("cuda", "topk_gate.cu"), ("python", "gates.py")):
        block = re.search(rf"`{name}`.*?```{language}\n(.*?)```", text, re.DOTALL)
        assert block is not None
        source = block[1]
        if name.endswith(".cu") and remove:
            assert remove in source
            source = source.replace(remove, "")
        (folder / name).write_text(source)
    return load_file(folder / "gates.py")[0]


@needs_compiler
def test_the_example_of_the_docs_is_right(tmp_path: Path) -> None:
    subject = _written(tmp_path)
    assert not _violations(subject, 60, 512)


@needs_compiler
def test_the_example_of_the_docs_runs_from_the_command_line(tmp_path: Path) -> None:
    _written(tmp_path)
    arguments = ["fuzz", "--subject", str(tmp_path / "gates.py"), "--cases", "10", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "no findings" in result.output


@needs_compiler
def test_a_race_becomes_a_finding_of_the_least_size(tmp_path: Path) -> None:
    subject = _written(tmp_path, remove=" % 32) scores[at] = -1.f;  // the lane that reads it")
    source = tmp_path / "topk_gate.cu"
    source.write_text(source.read_text().replace("if (lane == at", "if (lane == 0) scores[at] = -1.f;"))
    shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    executor, failing = Inline(subject), []

    def body(case: object) -> None:
        if not failing:
            failing.extend((case, v) for v in executor.run(case).violations if v.check == "race")

    explore(inside("fused_gate", subject.domain, max_elements=512), body, start=5, count=200)
    finding = reduce_to_finding(executor, *failing[0], refusal=False, seconds=20)
    assert finding.violation.check == "race"
    assert finding.failed == finding.runs
    assert finding.case.main.shape[0] == 1
    assert finding.case.params["topk"] == 1
    assert re.search(r"scores\[\d+\].*topk_gate.cu:\d+, block 0 thread \d+", finding.violation.message)
    place = finding.write(tmp_path / "findings")
    assert "nothing orders them" in (place / "finding.md").read_text()
    messages = {executor.run(finding.case).violations[0].message for _ in range(3)}
    assert messages == {finding.violation.message}


@needs_compiler
def test_hypothesis_shrinks_a_schedule() -> None:
    program = Program(FOLDER / "races.cu", "reused_too_early<true>")

    def fails(schedule: Schedule) -> bool:
        out = torch.empty(16, dtype=torch.int32)
        try:
            with Session({}, {"out": out}, schedule=schedule):
                program.launch("reused_too_early<true>", 1, 128, out, 16)
        except SimtError:
            return True
        return False

    assert find(schedules(), fails, settings=QUIET) == Schedule("round_robin", 0)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEPROOF_CXX", "no-such-compiler")
    toolchain.compiler.cache_clear()
    yield
    monkeypatch.undo()
    toolchain.compiler.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_without_a_compiler_it_says_so() -> None:
    with pytest.raises(Unavailable, match=r"needs a C\+\+ compiler: no-such-compiler is not on PATH"):
        toolchain.compiler()
    result = CliRunner().invoke(app, ["doctor"])
    assert "missing" in result.output
    assert "SIMT executor: the SIMT executor needs a C++ compiler" in result.output


@needs_compiler
def test_a_source_that_does_not_compile_shows_the_compilers_words(tmp_path: Path) -> None:
    (tmp_path / "wrong.cu").write_text("__global__ void wrong(int* out) { out[0] = missing; }\n")
    out = torch.empty(1, dtype=torch.int32)
    with Session({}, {"out": out}), pytest.raises(toolchain.BuildError, match=r"wrong.cu \(wrong\) does not compile"):
        Program(tmp_path / "wrong.cu").launch("wrong", 1, 1, out)


@needs_compiler
def test_what_is_built_is_kept_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEPROOF_CACHE_DIR", str(tmp_path / "cache"))
    source = "__global__ void one(int* out) { out[0] = VALUE; }\n"
    results = []
    for folder, value in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one.cu").write_text(source)
        out = torch.empty(1, dtype=torch.int32)
        with Session({}, {"out": out}):
            Program(tmp_path / folder / "one.cu", defines=[f"VALUE={value}"]).launch("one", 1, 1, out)
        results.append(out.item())
    assert results == [1, 1, 2]
    kept = [p for p in (tmp_path / "cache" / "simt").iterdir() if p.name.startswith("one-")]
    assert len(kept) == 2, kept
