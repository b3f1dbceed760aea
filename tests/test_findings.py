"""Findings: each kind of script shows its defect on its own, and nothing once the subject is right."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_reduction import SUBJECTS, first_failure
from zoo import RIGHT

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify.finding import Finding, make_finding
from moeproof.verify.literals import repeated, source, wrapped
from moeproof.verify.reduce.engine import Reduced, reduce_case
from moeproof.verify.repro import render_script, tensor_call
from moeproof.verify.subject import find
from moeproof.verify.violation import PENDING, Violation

SCRIPTS = {
    "tie_order": ("gate-tie-higher-id", "right-gate"),
    "weights": ("gate-weights-swapped", "right-gate-float32"),
    "nan_policy": ("gate-nan-weight", "right-gate"),
    "ids_invalid": ("gate-shared-id-off-by-one", "right-gate"),
    "unwritten": ("gate-last-element-unwritten", "right-gate"),
    "guard_zone": ("gate-write-past-end", "right-gate"),
    "input_modified": ("gate-writes-input", "right-gate"),
    "nondeterminism": ("align-claims-bitwise", "right-align-backwards"),
    "align_layout": ("align-minus-one-wrapped", "right-align"),
    "domain": ("gate-raises-inside", "right-gate"),
}
DRIVER = """
import os, runpy, sys
import torch
import moeproof.verify.subject
torch.set_num_threads(1)
for path in sys.argv[1:]:
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        sys.argv = [path]
        status = 99
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    print("status", os.path.basename(path), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def statuses(scripts: list[Path]) -> dict[str, int]:
    """Run scripts, each in a process of its own that finds torch imported, and return how they exit."""
    command = [sys.executable, "-c", DRIVER, *map(str, scripts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("status ")]
    found = {name: int(status) for _, name, status in lines}
    assert len(found) == len(scripts), done.stdout + done.stderr
    return found


def _finding(slug: str, check: str) -> Finding:
    executor, case, violation = first_failure(SUBJECTS[slug], check)
    result = reduce_case(executor, case, violation, seconds=300)
    actual = executor.outputs(result.case)
    return make_finding(SUBJECTS[slug], result, refusal=False, device="cpu", actual=actual)


def _made(subject: str, case: Case, check: str, message: str = "wrong", *, refusal: bool = False) -> Finding:
    reduced = Reduced(case, Violation(check, message), 10, 10, 1, 0.1, True)
    (found,) = (s for s in (*RIGHT, *SUBJECTS.values()) if s.name == f"zoo:{subject}")
    return make_finding(found, reduced, refusal=refusal, device="cpu", actual={})


def gate(shape: tuple[int, int], rows: tuple[tuple[float, ...], ...], **params: int | float | str) -> Case:
    return Case(
        "fused_gate",
        {"topk": 1, "renormalize": False, **params},
        {"logits": TensorSpec("float32", shape, rows)},
    )


def _others() -> dict[str, Finding]:
    """Return findings that need no search: of processes that end, of bad input, of layouts."""
    ids = TensorSpec("int32", (6, 1), rows=((0,), (1,)))
    order = Case("moe_align_block_size", {"num_experts": 2, "block_size": 4}, {"topk_ids": ids})
    sentinel = Case(
        "moe_align_block_size",
        {"num_experts": 2, "block_size": 2},
        {"topk_ids": TensorSpec("int32", (3, 1), rows=((-1,), (0,), (-1,)))},
    )
    weights = TensorSpec("bfloat16", (2, 1), rows=((-0.0,), (1.0,)))
    append = Case(
        "append_shared_experts",
        {"num_experts": 4, "num_fused_shared_experts": 1},
        {
            "topk_ids": TensorSpec("int64", (2, 1), rows=((1,), (2,))),
            "topk_weights": weights,
            "shared_weights": TensorSpec("float32", (), rows=(0.3,)),
        },
    )
    strided = TensorSpec("float32", (2, 3), rows=((0.0, 1.0, 2.0), (5.0, 4.0, 3.0)), strides=(4, 1), offset=1)
    hang = gate((1, 13), ((0.0,) * 13,))
    append_rows = append.but(
        topk_ids=TensorSpec("int64", (4, 1), rows=((1,), (2,))),
        topk_weights=TensorSpec("bfloat16", (4, 1), rows=((0.0,),)),
        shared_weights=TensorSpec("float32", (4, 1), rows=((1.0,), (2.0,), (3.0,), (4.0,))),
    )
    row = tuple(0.3 * i for i in range(8))
    sums = gate((2, 8), (row,), topk=7, renormalize=True)
    narrow = sums.but(logits=TensorSpec("bfloat16", (2, 8), rows=((0.0, 0.3125, 0.625, 0.8125, 1.25, 1.5, 1.75, 2.0),)))
    padded = gate((4, 8), (row,), topk=7, renormalize=True).but(num_token_non_padded=TensorSpec("int32", (), rows=(3,)))
    many = Case(
        "moe_align_block_size",
        {"num_experts": 2, "block_size": 4},
        {"topk_ids": TensorSpec("int32", (64, 1), rows=((0,), (1,)))},
    )
    tied = gate((1, 4), ((5.0, 5.0, 1.0, 1.0000001192092896),), topk=3)
    labels = order.but(topk_ids=TensorSpec("int32", (1, 1), rows=((1,),)))
    misread = _made("gate-misread-strided", gate((2, 2), ((1.0, 0.0), (0.0, 1.0))), "layout_variance")
    text = "logits misaligned, its rows 5 elements apart: selection: row 1: ids"
    misread = replace(misread, violation=Violation("layout_variance", text, extras=("layout",)))
    return {
        "hang": _made("gate-hangs", hang, "hang"),
        "signal": _made("gate-segfaults", gate((7, 1), ((0.0,),)), "cuda_error"),
        "exit": _made("gate-exits", gate((5, 1), ((0.0,),)), "cuda_error"),
        "refusal": _made("gate-accepts-outside", gate((1, 9), ((0.0,) * 9,), topk=9), "domain", refusal=True),
        "batch_variance": _made("gate-tokens-over-512", gate((514, 2), ((1.0, 0.0), (0.0, 1.0))), "batch_variance"),
        "padded batch": _made("gate-sum-last-row", padded, "batch_variance"),
        "append batch": _made("append-odd-tokens", append_rows, "batch_variance"),
        "align batch": _made("align-over-64-ids", many, "batch_variance"),
        "any order batch": _made("align-claims-bitwise", many, "batch_variance"),
        "layout": _made("gate-sum-strided", sums, "layout_variance"),
        "dtype": _made("gate-sum-bfloat16", narrow, "dtype_variance"),
        "label": _made("align-first-expert-cut", labels, "label_variance"),
        "misread": misread,
        "near": replace(_made("gate-last-expert-lost", NEAR, "selection"), actual={"indices": [[1, 0]]}),
        "near tie": replace(_made("gate-tie-higher-id", tied, "tie_order"), actual={"indices": [[1, 0, 3]]}),
        "long": _made("gate-tie-higher-id", gate((128, 2), ((0.0, 1.0), (1.0, 1.0))), "tie_order"),
        "launch": _made("gate-raises-inside", gate((0, 2), ()), "cuda_error", f"{PENDING}: CUDA error"),
        "any order": _made("align-claims-bitwise", order, "align_layout"),
        "sentinel": _made("align-sentinel-dropped", sentinel, "align_layout"),
        "append": _made("append-zero-sign-lost", append, "weights"),
        "append ids": _made("append-id-off-by-one", append, "ids_invalid"),
        "strided": _made("gate-bias-ignored", replace(hang, tensors={"logits": strided}), "selection"),
    }


RIGHT_OTHERS = {
    "hang": "right-gate",
    "signal": "right-gate",
    "exit": "right-gate",
    "refusal": "gate-hangs",  # its domain ends at topk 4, and it says so
    "batch_variance": "right-gate",
    "padded batch": "right-gate",
    "append batch": "right-append",
    "align batch": "right-align",
    "any order batch": "right-align-backwards",
    "layout": "right-gate-float32",
    "dtype": "right-gate-float32",
    "label": "right-align",
    "misread": "right-gate",
    "launch": "right-gate",
    "long": "right-gate",
    "near": "right-gate-float32",
    "near tie": "right-gate-float32",
    "any order": "right-align-backwards",
    "sentinel": "right-align-sentinel",
    "append": "right-append",
    "append ids": "right-append",
    "strided": "right-gate",
}


@pytest.fixture(scope="module")
def findings() -> dict[str, Finding]:
    return {check: _finding(slug, check) for check, (slug, _) in SCRIPTS.items()} | _others()


@pytest.fixture(scope="module")
def scripts(findings: dict[str, Finding], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """Return by kind the script of the wrong subject, and the same one with a right subject in its place."""
    folder = tmp_path_factory.mktemp("scripts")
    made: dict[str, dict[str, Path]] = {}
    for kind, finding in findings.items():
        limit = f"SECONDS = {4 if kind == 'hang' else 60}"
        text = (finding.write(folder) / "repro.py").read_text().replace("SECONDS = 60", limit)
        right = SCRIPTS[kind][1] if kind in SCRIPTS else RIGHT_OTHERS[kind]
        assert text.count(f':{finding.subject.name}"') == 1
        made[kind] = {}
        pairs = (("wrong", text), ("right", text.replace(f':{finding.subject.name}"', f':zoo:{right}"')))
        for name, content in pairs[: 1 if kind in ("hang", "signal") else 2]:  # these take seconds each
            made[kind][name] = folder / f"{kind.replace(' ', '-')}-{name}.py"
            made[kind][name].write_text(content)
    return made


def test_scripts_exit_with_1_for_a_wrong_subject_and_0_for_a_right_one(
    scripts: dict[str, dict[str, Path]],
) -> None:
    found = statuses([path for pair in scripts.values() for path in pair.values()])
    # Nothing is wrong with how the subject of this one reads strides, nor with its order: only the layout is shown.
    # The failed launch is not there without a GPU.
    fine = ("strided", "any order", "any order batch", "launch")
    expected = {p["wrong"].name: int(kind not in fine) for kind, p in scripts.items()}
    expected |= {pair["right"].name: 0 for pair in scripts.values() if "right" in pair}
    assert found == expected


def test_a_script_runs_as_a_program_of_its_own(scripts: dict[str, dict[str, Path]]) -> None:
    done = subprocess.run([sys.executable, scripts["tie_order"]["wrong"]], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "expected [[0]]\n  actual   [[1]]" in done.stdout
    assert done.stdout.endswith("WRONG\n")


def test_a_script_prints_of_long_results_where_they_begin_to_differ(scripts: dict[str, dict[str, Path]]) -> None:
    done = subprocess.run([sys.executable, scripts["long"]["wrong"]], capture_output=True, text=True, check=False)
    assert "indices[1:]\n  expected [[0], [1], [0]," in done.stdout, done.stderr
    assert len(done.stdout) < 3000


def test_a_script_is_made_where_the_contract_gives_no_result(findings: dict[str, Finding]) -> None:
    assert "expected = {\n}" in render_script(findings["tie_order"], {}, None)


def test_scripts_hold_nothing_that_they_do_not_use(scripts: dict[str, dict[str, Path]]) -> None:
    for pair in scripts.values():
        tree = ast.parse(pair["wrong"].read_text())
        defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                defined |= {alias.asname or alias.name for alias in node.names}
            elif isinstance(node, ast.Assign):
                defined |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        assert defined - used == set(), pair["wrong"].name
        assert max(map(len, pair["wrong"].read_text().splitlines()[9:])) <= 120


def test_a_page_says_what_a_person_needs(findings: dict[str, Finding], tmp_path: Path) -> None:
    place = findings["tie_order"].write(tmp_path)
    page = (place / "finding.md").read_text()
    for words in (
        "zoo:gate-tie-higher-id",
        "`tie_order` (severity medium)",
        "10 of 10 runs",
        "**Rule.** Experts with equal scores are ordered by id, lower first.",
        "| `indices` | `[[0]]` | `[[1]]` |",
        f"moeproof replay {findings['tie_order'].identity}",
    ):
        assert words in page
    summary = json.loads((place / "finding.json").read_text())
    assert (summary["check"], summary["complete"], summary["failed"]) == ("tie_order", True, 10)


NEAR = gate((1, 3), ((1.0, 1.0000001192092896, 5.0),), topk=2)
"""Experts 0 and 1 are so near that float32 may take either; expert 2 is far ahead."""


@pytest.mark.parametrize(
    ("case", "check", "seen", "fine", "wrong"),
    [
        (NEAR, "selection", [1, 0], [[2, 1], [2, 0]], [[1, 0], [0, 2]]),
        (NEAR.but(topk=3), "selection", [1, 0, 2], [[2, 1, 0], [2, 0, 1]], [[0, 2, 1]]),
        (
            gate((1, 4), ((5.0, 5.0, 1.0, 1.0000001192092896),), topk=3),
            "tie_order",
            [1, 0, 3],
            [[0, 1, 2], [0, 1, 3]],
            [[1, 0, 3], [1, 0, 2]],
        ),
        (
            gate((1, 4), ((float("nan"),) * 4,), topk=2, num_expert_group=2, topk_group=1),
            "tie_order",
            [1, 0],
            [[2, 3], [0, 1]],
            [[1, 0], [3, 2]],
        ),
    ],
)
def test_a_script_leaves_open_what_the_oracle_does(
    case: Case, check: str, seen: list[int], fine: list[list[int]], wrong: list[list[int]], tmp_path: Path
) -> None:
    finding = replace(_made("right-gate", case, check), actual={"indices": [seen]})
    tree = ast.parse((finding.write(tmp_path) / "repro.py").read_text())
    names = {"low_rank, high_rank", "ties"}
    tree.body = [
        n
        for n in tree.body
        if (isinstance(n, ast.FunctionDef) and n.name == "misplaced")
        or (isinstance(n, ast.Assign) and ast.unparse(n.targets[0]).strip("()") in names)
    ]
    space: dict[str, Any] = {"inf": float("inf")}
    exec(compile(tree, "repro.py", "exec"), space)
    rows = [space[n][0] for n in ("ties", "low_rank", "high_rank") if n in space]
    assert [space["misplaced"](*rows, ids) for ids in fine] == [False] * len(fine)
    assert [space["misplaced"](*rows, ids) for ids in wrong] == [True] * len(wrong)


def test_a_script_compares_ids_where_one_answer_is_right(tmp_path: Path) -> None:
    finding = replace(_made("right-gate", gate((1, 2), ((0.0, 1.0),)), "selection"), actual={"indices": [[0]]})
    assert "misplaced" not in (finding.write(tmp_path) / "repro.py").read_text()
    # What was seen is no id, or is right as far as anyone can tell.
    for seen in ([[7, 1]], [[2, 0]]):
        finding = replace(_made("right-gate", NEAR, "selection"), actual={"indices": seen})
        assert "misplaced" not in (finding.write(tmp_path) / "repro.py").read_text()


def test_a_launch_error_that_passes_is_not_called_a_death(findings: dict[str, Finding], tmp_path: Path) -> None:
    pending = findings["launch"]
    assert "a launch fails, and its error comes out of a later call (T=0" in pending.title
    assert "the CUDA context is lost, or the process dies (T=7" in findings["signal"].title
    text = (pending.write(tmp_path) / "repro.py").read_text()
    assert "died" not in text
    assert "except RuntimeError as error:" in text


def test_identity_tells_checks_and_flags_apart_and_nothing_else() -> None:
    case = gate((1, 2), ((0.0, 0.0),))
    one = _made("gate-tie-higher-id", case, "tie_order", "row 0").identity
    assert one == _made("gate-tie-higher-id", gate((1, 3), ((1.0,) * 3,)), "tie_order", "row 7").identity
    others = {
        _made("gate-tie-higher-id", case, "selection").identity,
        _made("gate-tie-unstable", case, "tie_order").identity,
        _made("gate-tie-higher-id", case.but(scoring="softmax"), "tie_order").identity,
        _made("gate-tie-higher-id", gate((1, 2), ((float("nan"), 0.0),)), "tie_order").identity,
        _made("gate-tie-higher-id", gate((999, 2), ((0.0, 0.0),)), "tie_order").identity,
        _made("gate-tie-higher-id", gate((0, 2), ((0.0, 0.0),)), "tie_order").identity,
    }
    assert len(others | {one}) == 7
    grouped = [
        _made("gate-tie-higher-id", case.but(num_expert_group=g, topk_group=kept), "tie_order").identity
        for g, kept in ((1, 1), (2, 1), (8, 3), (9, 1), (16, 2), (256, 8))
    ]
    assert grouped[0] == one
    assert grouped[1] == grouped[2]
    assert grouped[3] == grouped[4]
    assert len(set(grouped)) == 4
    outside = [_made("right-gate", gate((1, e), ((0.0,) * e,), topk=99), "domain", refusal=True) for e in (1, 20)]
    assert outside[0].identity == outside[1].identity
    assert outside[0].case.note.startswith("topk is 99")


def test_a_case_of_the_wrong_shape_makes_a_finding_too(tmp_path: Path) -> None:
    flat = Case("fused_gate", {"topk": 1}, {"logits": TensorSpec("float32", (3,), rows=(0.0,))})
    finding = _made("gate-accepts-outside", flat, "domain", refusal=True)
    compile((finding.write(tmp_path) / "repro.py").read_text(), "repro.py", "exec")


def test_a_snippet_stands_alone(tmp_path: Path) -> None:
    snippet = """
import torch
import os


def run(args, outputs):
    outputs["indices"].fill_(1)
    outputs["weights"].fill_(len(os.sep) / 2)
"""
    finding = _made("gate-tie-higher-id", gate((1, 2), ((0.0, 0.0),)), "tie_order")
    finding = replace(finding, subject=replace(finding.subject, repro=snippet))
    script = finding.write(tmp_path) / "repro.py"
    text = script.read_text()
    assert "import moeproof" not in text
    assert "from moeproof" not in text
    assert text.count("import torch\n") == text.count("import os\n") == 1
    assert statuses([script]) == {"repro.py": 1}


VALUES = [
    [0.0] * 384,
    [1.0, *[0.0] * 300, float("inf"), -1.5],
    [*range(64)],
    [[0.0] * 40] * 7,
    [-0.0, 0.0, -0.0, 0.0, 1e-45, 3.4028234663852886e38],
    [],
    [True, 2, "nan", "-inf"],
    {"low": [[0.5] * 9]},
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_python_source_means_what_it_stands_for(value: object) -> None:
    names = {"nan": "nan", "inf": float("inf")}
    text = wrapped(source(value), 8)
    if "-inf" not in text:
        assert repr(eval(f"({text})", names)) == repr(value)
    assert max(map(len, text.splitlines())) <= 100


def test_long_rows_are_short_source() -> None:
    assert source([0.0] * 384) == "[0.0] * 384"
    assert source([1.0, *[0.0] * 383]) == "[1.0] + [0.0] * 383"
    assert source([*range(5, 105)]) == "[*range(5, 105)]"
    assert repeated(((1, 2),), 513) == "[[1, 2]] * 513"
    assert repeated(((1,), (2,)), 5) == "([[1], [2]] * 3)[:5]"


@pytest.mark.parametrize("strides", [None, (0, 1), (1, 3), (7, 1)])
@pytest.mark.parametrize("offset", [0, 3])
def test_the_script_s_tensors_are_the_case_s(
    strides: tuple[int, int] | None, offset: int, findings: dict[str, Finding], tmp_path: Path
) -> None:
    spec = TensorSpec(
        "bfloat16", (3, 4), rows=((0.1, 1.0, 2.0, 3.0), (4.0, 5.0, 6.0, 7.0)), strides=strides, offset=offset
    )
    case = Case("fused_gate", {"topk": 1}, {"logits": spec})
    script = _made("right-gate", case, "selection").write(tmp_path) / "repro.py"
    namespace: dict[str, object] = {"torch": torch, "DEVICE": "cpu"}
    tree = ast.parse(script.read_text())
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "tensor"]
    exec(compile(tree, "repro.py", "exec"), namespace)
    made = eval(f"({tensor_call(spec)})", namespace)
    view, storage = spec.build("cpu")
    assert torch.equal(made, view)
    assert made.stride() == view.stride()
    assert made.storage_offset() == view.storage_offset()
    assert made.untyped_storage().tolist() == storage.untyped_storage().tolist()


def test_subjects_of_files_are_loaded_from_them() -> None:
    assert find([SUBJECTS["gate-tie-higher-id"].source])[0].name == "zoo:gate-tie-higher-id"
