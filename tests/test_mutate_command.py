"""`moeproof mutate` as a user runs it, and the judge on the SIMT executor."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest

pytest.importorskip("tree_sitter_cuda")

from mutation_kit import TOY, ToyJudge
from typer.testing import CliRunner

from moeproof.kernels.gate_plan import FILE, plan
from moeproof.strategies.domain import GateDomain
from moeproof.verify import corpus
from moeproof.verify.cli import app
from moeproof.verify.mutate import simt_cases, simt_judge
from moeproof.verify.mutate.judge import Attempt, JudgeError, NotCompiled
from moeproof.verify.mutate.simt_judge import SimtJudge
from moeproof.verify.simt.devices import PLAIN

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="mutants are compiled with g++")
KERNELS = Path(simt_judge.__file__).parents[2] / "kernels"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "toy.cu").write_text(TOY)
    monkeypatch.setattr(simt_judge, "SimtJudge", ToyJudge)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["mutate", *words])
    return result.exit_code, result.output


def test_mutants_are_listed(toy: Path) -> None:
    code, text = run("toy.cu", "--list")
    assert code == 0
    lines = text.splitlines()
    assert any("toy.cu:12 count_ids: last_skipped: i < n → i < n - 1" in line for line in lines)
    code, text = run("toy.cu", "--list", "--json", "--op", "relational")
    assert code == 0
    found = json.loads(text)
    assert {m["operator"] for m in found} == {"relational"}
    assert found[0]["id"] in "".join(lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.cu"], "path is 'none.cu'; allowed"),
        (["toy.cu", "--op", "nonsense"], "op is 'nonsense'; allowed: barrier_removed"),
        (["toy.cu", "--equivalents", "none.toml"], "equivalents is 'none.toml'; allowed"),
    ],
)
def test_bad_words_are_refused(toy: Path, words: list[str], message: str) -> None:
    code, text = run(*words)
    assert (code, message in text) == (2, True)


@needs_compiler
def test_the_exit_code_tells_the_score_from_the_floor(toy: Path) -> None:
    words = ["toy.cu", "--op", "last_skipped", "--op", "first_skipped", "--cases", "10", "--out", "out"]
    code, text = run(*words)
    assert (code, "score 100.0% of 4 mutants" in text) == (0, True)
    assert json.loads((toy / "out" / "report.json").read_text())["summary"]["score"] == 1.0
    code, text = run("toy.cu", "--op", "accumulation", "--cases", "10", "--out", "out")
    assert (code, "survived" in text, "below the floor of 97%" in text) == (1, True, True)
    assert run("toy.cu", "--op", "accumulation", "--cases", "10", "--out", "out", "--floor", "10")[0] == 0


@needs_compiler
def test_a_stale_entry_fails_the_run(toy: Path) -> None:
    entry = (
        'file = "toy.cu"\nfunction = "gone"\noperator = "literal"\nnode = "1"\nreason = "a function that is no more"\n'
    )
    (toy / "equivalent_mutants.toml").write_text(f"[[mutant]]\n{entry}")
    code, text = run("toy.cu", "--op", "last_skipped", "--cases", "10", "--out", "out")
    assert (code, "stale: toy.cu gone: literal: 1" in text) == (1, True)


@needs_compiler
def test_broken_kernels_end_the_run_with_their_case(toy: Path) -> None:
    (toy / "toy.cu").write_text(TOY.replace("counts[at] += 1", "counts[at] += 2"))
    code, text = run("toy.cu", "--op", "last_skipped", "--cases", "10", "--out", "out")
    assert (code, "unmutated kernels fail" in text, '"moeproof_case"' in text) == (2, True, True)


def test_a_panel_holds_each_template_argument_while_there_is_room() -> None:
    builds = [f"a.cu:f<{i}, {j}>" for i in range(4) for j in range(4)] + ["a.cu:g"] * 2
    chosen = simt_cases.panel(builds, 5)
    assert len(chosen) == 5
    assert {b.partition("<")[2][0] for b in chosen if "<" in b} == set("0123")
    assert {b[-2] for b in chosen if "<" in b} == set("0123")
    assert "a.cu:g" in chosen
    assert simt_cases.panel(builds, 100) == set(builds)
    assert simt_cases.panel(builds, 1, builds[5:7]) == set(builds[5:7])
    (third,) = simt_cases.panel(builds, 3, builds[5:7]) - set(builds[5:7])
    assert third in {"a.cu:f<0, 0>", "a.cu:f<0, 3>", "a.cu:f<2, 0>", "a.cu:f<2, 3>", "a.cu:f<3, 0>", "a.cu:f<3, 3>"}


def test_foci_on_many_rows_give_a_team_several() -> None:
    domains = [f.domain for f in simt_cases.foci("fused_gate") if f.compiled]
    assert len(domains) >= 3
    for domain in domains:
        assert isinstance(domain, GateDomain)
        for experts, tokens in itertools.product(domain.experts, (domain.tokens[0], domain.tokens[-1])):
            chosen = plan(tokens, experts, biased=domain.bias == "required", sm_count=PLAIN.sm_count)
            assert chosen.file == FILE
            assert tokens > chosen.grid * chosen.teams * 32 // chosen.lanes


def test_small_cases_of_the_corpus_are_tried_in_other_batches() -> None:
    entries, _ = corpus.load([corpus.SHIPPED])
    small = [e.case for e in entries if e.case.op == "fused_gate" and 0 < math.prod(e.case.main.shape) <= 1 << 12]
    found = simt_cases.cases("fused_gate", 10, seed=0)
    assert len(small) > 40
    assert [a.case for a in found[: len(small)]] == small
    assert any(a.case.tensors["bias"].strides == (2,) for a in found if "bias" in a.case.tensors)
    assert {"alone", "halves", "permuted"} <= set(found[0].extras)


@pytest.mark.parametrize("op", ["fused_gate", "moe_align_block_size"])
def test_cases_are_repeatable_and_spread_over_builds(op: str) -> None:
    found = simt_cases.cases(op, 40, seed=5)
    assert found == simt_cases.cases(op, 40, seed=5)
    builds = {a.build for a in found}
    assert len(builds) >= 3
    assert all(part.partition(":")[0].endswith(".cu") for b in builds for part in b.split(";"))
    assert Attempt.from_json(found[0].to_json()) == found[0]


def test_every_kernel_file_belongs_to_an_op() -> None:
    judge = SimtJudge()
    assert {op for p in KERNELS.glob("*.cu") for op in judge.ops(p.name)} == {"fused_gate", "moe_align_block_size"}
    with pytest.raises(JudgeError, match=r"file is 'other\.cu'; allowed on the executor"):
        judge.ops("other.cu")


@needs_compiler
def test_the_executor_tells_a_mutant_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = SimtJudge()
    if (reason := judge.missing()) is not None:
        pytest.skip(reason)
    monkeypatch.setitem(simt_cases.BUILDS, "fused_gate", 1)
    monkeypatch.setattr(corpus, "SHIPPED", tmp_path / "none")
    attempts = simt_cases.cases("fused_gate", 12, seed=2)
    session = judge.load(KERNELS, None)
    session.prepare(attempts[0])
    assert [session.run(a) for a in attempts] == [None] * len(attempts)
    for path in KERNELS.glob("*.cu*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    written = (KERNELS / "gate_row.cuh").read_text(encoding="utf-8")
    wrong = written.replace("(long long)row * p.places", "(long long)row + p.places")
    assert wrong != written
    (tmp_path / "gate_row.cuh").write_text(wrong, encoding="utf-8")
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("MOEPROOF_CACHE_DIR", str(cache))
    mutated = judge.load(tmp_path, cache)
    mutated.prepare(attempts[0])
    failed = [f for a in attempts if (f := mutated.run(a)) is not None]
    assert failed
    (tmp_path / "gate_row.cuh").write_text("nonsense")
    with pytest.raises(NotCompiled):
        judge.load(tmp_path, cache).prepare(attempts[0])
