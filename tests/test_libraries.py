"""The adapters of released libraries: what they declare, what they say is missing, one plain case each."""

from __future__ import annotations

import ast
import collections
import dataclasses
import importlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from moeproof.strategies import align, append, gate
from moeproof.strategies.case import Case, TensorSpec
from moeproof.strategies.domain_check import why_outside
from moeproof.verify.execute import Runner
from moeproof.verify.libraries import ADAPTERS, adapter, locate
from moeproof.verify.subject import Subject, Unavailable, all_subjects

SUBJECTS = [
    subject for name in ADAPTERS for subject in importlib.import_module(f"moeproof.verify.libraries.{name}").subjects()
]
each = pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.name)
CASES = {
    "fused_gate": gate.cases,
    "moe_align_block_size": align.cases,
    "append_shared_experts": append.cases,
}
LIBRARY = {
    "sglang-kernel": "sglang-kernel",
    "sglang": "sglang",
    "vllm": "vllm",
    "flashinfer": "flashinfer-python",
}


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(locate.ENVIRONMENT, raising=False)
    monkeypatch.setattr(locate, "_install", lambda library: None)


@pytest.fixture
def bare_files(nothing_installed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return a folder with empty files in all places where bare files are looked for."""
    for library in locate.LIBRARIES.values():
        for pattern in library.files:
            file = tmp_path / pattern.replace("sm*", "sm90").replace("*", "x")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    monkeypatch.setenv(locate.ENVIRONMENT, str(tmp_path))
    return tmp_path


def test_the_subjects_are_registered_under_names_of_their_own() -> None:
    names = [s.name for s in SUBJECTS]
    assert len(set(names)) == len(names)
    assert set(names) <= {s.name for s in all_subjects()}


@each
def test_without_the_library_loading_says_what_to_install(subject: Subject, nothing_installed: None) -> None:
    library = LIBRARY[subject.name.partition(":")[0]]
    with pytest.raises(Unavailable, match=f"{library}.*pip install {library}=={locate.LIBRARIES[library].pin}"):
        subject.load()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@each
def test_without_a_gpu_loading_says_so(subject: Subject, bare_files: Path) -> None:
    with pytest.raises(Unavailable, match=f"{subject.name} needs a CUDA device"):
        subject.load()


def test_report_without_libraries(nothing_installed: None) -> None:
    reports = locate.report()
    assert [r.name for r in reports] == list(locate.LIBRARIES)
    assert all((r.version, r.where) == ("", "") and r.missing.startswith("pip install") for r in reports)


def test_report_of_a_folder_that_does_not_exist(nothing_installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(locate.ENVIRONMENT, "/no/such/folder")
    for found in locate.report():
        assert found.missing.startswith("MOEPROOF_LIBRARIES is '/no/such/folder'; allowed: an existing folder")


def test_report_of_an_empty_folder(nothing_installed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(locate.ENVIRONMENT, str(tmp_path))
    for found in locate.report():
        assert found.where == ""
        assert "which holds none of it; pip install" in found.missing


def test_report_of_bare_files(bare_files: Path) -> None:
    assert all((r.where, r.missing) == (str(bare_files), "") for r in locate.report())
    assert locate.version("vllm") == "bare files, expected 0.33.0"
    (bare_files / "sglang_kernel-9.8.7.dist-info").mkdir()
    assert locate.version("sglang-kernel") == "9.8.7"


def test_report_names_the_bare_files_that_are_lacking(bare_files: Path) -> None:
    (bare_files / "sglang/kernels/ops/moe/moe_fused_gate.py").unlink()
    found = locate.find("sglang")
    assert found.where == str(bare_files)
    assert found.missing == f"{bare_files} lacks sglang/kernels/ops/moe/moe_fused_gate.py"


def test_a_full_install_is_found_without_being_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(locate.ENVIRONMENT, raising=False)
    monkeypatch.setitem(locate.LIBRARIES, "pytest", locate.Library("pytest", "pytest", "1", ("none",)))
    found = locate.find("pytest")
    assert (found.version, found.missing) == (pytest.__version__, "")
    assert Path(found.where, "__init__.py").is_file()


@each
def test_the_script_needs_torch_and_the_library_only(subject: Subject) -> None:
    tree = ast.parse(subject.repro)
    assert "moeproof" not in subject.repro
    assert [n.name for n in tree.body if isinstance(n, ast.FunctionDef)][-1] == "run"
    roots = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            roots.add(str(node.module).partition(".")[0])
    standard = {"contextlib", "importlib", "os", "pathlib", "sys", "tempfile", "types", "zipfile"}
    assert roots <= standard | {"torch", "tvm_ffi", "flashinfer"}


def test_the_loader_runs_the_snippet(monkeypatch: pytest.MonkeyPatch, bare_files: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    call = adapter.loader("vllm:x", ("vllm",), "def run(args, outputs):\n    return {'ids': args}\n")()
    assert call({"a": 1}, {}) == {"ids": {"a": 1}}
    with pytest.raises(Unavailable, match=r"vllm bare files, expected 0\.33\.0 can't be loaded .*undefined symbol"):
        adapter.loader("vllm:x", ("vllm",), "raise OSError('undefined symbol')")()


def test_snippets_find_bare_files_first_and_name_a_missing_package(bare_files: Path) -> None:
    namespace: dict[str, Any] = {}
    exec(adapter.PACKAGE, namespace)
    assert namespace["package"]("vllm") == bare_files / "vllm"
    assert namespace["package"]("pytest") == Path(pytest.__file__).parent
    with pytest.raises(ImportError, match="no_such_package is not installed"):
        namespace["package"]("no_such_package")


@each
def test_cases_are_drawn_inside_the_domain(subject: Subject) -> None:
    seen: collections.Counter[bool] = collections.Counter()

    @settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
    @given(CASES[subject.op](subject.domain))  # type: ignore[operator]
    def draw(case: Case) -> None:
        why = why_outside(case, subject.domain)
        seen[why is None] += 1
        assert why is None or subject.domain.extra is not None, why
        if subject.path is not None:
            assert subject.path(case)

    draw()
    assert seen[True] > seen.total() / 3, "`extra` turns most drawn cases away"


# As the released binaries print them: sglang-kernel 0.4.3 and vllm 0.33.0.
SCHEMAS = {
    "sglang-kernel:fused_gate@kimi_k2": "kimi_k2_moe_fused_gate(Tensor input, Tensor bias, int topk, "
    "bool renormalize, float routed_scaling_factor, bool apply_routed_scaling_factor_on_output) "
    "-> Tensor[]",
    "sglang-kernel:fused_gate@moe_fused_gate": "moe_fused_gate(Tensor input, Tensor bias, "
    "int num_expert_group, int topk_group, int topk, int num_fused_shared_experts, "
    "float routed_scaling_factor, bool apply_routed_scaling_factor_on_output) -> Tensor[]",
    "sglang-kernel:fused_gate@topk_sigmoid": "topk_sigmoid(Tensor topk_weights, Tensor topk_indices, "
    "Tensor gating_output, bool renormalize, Tensor? correction_bias) -> ()",
    "sglang-kernel:fused_gate@topk_softmax": "topk_softmax(Tensor topk_weights, Tensor topk_indices, "
    "Tensor gating_output, bool renormalize, float moe_softcapping, Tensor? correction_bias) -> ()",
    "sglang-kernel:moe_align_block_size": "moe_align_block_size(Tensor topk_ids, int num_experts, "
    "int block_size, Tensor sorted_token_ids, Tensor experts_ids, Tensor num_tokens_post_pad, "
    "Tensor cumsum_buffer, bool pad_sorted_token_ids) -> ()",
    "vllm:fused_gate@grouped_topk": "grouped_topk(Tensor scores, int n_group, int topk_group, int topk, "
    "bool renormalize, float routed_scaling_factor, Tensor bias, int scoring_func) -> (Tensor, Tensor)",
    "vllm:fused_gate@topk_sigmoid": "topk_sigmoid(Tensor topk_weights, Tensor topk_indices, "
    "Tensor token_expert_indices, Tensor gating_output, bool renormalize, Tensor? bias, "
    "float routed_scaling_factor, Tensor? is_padding) -> ()",
    "vllm:fused_gate@topk_softmax": "topk_softmax(Tensor topk_weights, Tensor topk_indices, "
    "Tensor token_expert_indices, Tensor gating_output, bool renormalize, Tensor? bias, "
    "Tensor? is_padding) -> ()",
    "vllm:fused_gate@topk_softplus_sqrt": "topk_softplus_sqrt(Tensor topk_weights, Tensor topk_indices, "
    "Tensor token_expert_indices, Tensor gating_output, bool renormalize, float routed_scaling_factor, "
    "Tensor? bias, Tensor? input_ids, Tensor? tid2eid, Tensor? is_padding, Tensor? bias_vl=None, "
    "int image_sentinel_lo=0) -> ()",
    "vllm:moe_align_block_size": "moe_align_block_size(Tensor topk_ids, int num_experts, int block_size, "
    "Tensor sorted_token_ids, Tensor experts_ids, Tensor num_tokens_post_pad, Tensor? maybe_expert_map, "
    "Tensor? scatter_idx=None) -> ()",
}
SCHEMAS["sglang-kernel:moe_align_block_size@exact"] = SCHEMAS["sglang-kernel:moe_align_block_size"]
SCHEMAS["vllm:fused_gate@topk_softmax_bias"] = SCHEMAS["vllm:fused_gate@topk_softmax"]
TYPES: dict[str, tuple[type, ...]] = {
    "Tensor": (torch.Tensor,),
    "Optional[Tensor]": (torch.Tensor, type(None)),
    "int": (int,),
    "bool": (bool,),
    "float": (float,),
}


def recorded(
    subject: Subject, args: dict[str, Any], outputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], Any]:
    """Run a snippet's ``run`` on an operator that only checks and records its arguments."""
    schema = torch._C.parse_schema(SCHEMAS[subject.name])
    calls: list[dict[str, Any]] = []

    def operator(*given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        assert len([a for a in schema.arguments if not a.has_default_value()]) <= len(given)
        for argument, value in zip(schema.arguments, given, strict=False):
            allowed = TYPES[str(argument.type)]
            assert isinstance(value, allowed)
            assert allowed == (bool,) or not isinstance(value, bool)
        calls.append(dict(zip((a.name for a in schema.arguments), given, strict=False)))
        return torch.zeros(1), torch.zeros(1)

    for name in ("sgl_kernel", "_moe_C"):
        namespace = types.SimpleNamespace(**{schema.name: operator})
        monkeypatch.setattr(torch.ops, name, namespace, raising=False)
    body = [n for n in ast.parse(subject.repro).body if isinstance(n, ast.FunctionDef) or is_constant(n)]
    globals_: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module(body, []), subject.name, "exec"), globals_)
    made = globals_["run"](args, outputs)
    return calls[0], made


def is_constant(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)


def gate_args(subject: Subject, experts: int, **params: Any) -> dict[str, Any]:
    args = {"logits": torch.zeros(1, experts), "topk": 2} | params
    if subject.domain.bias != "none":  # type: ignore[union-attr]
        args["bias"] = torch.zeros(experts)
    return args


@pytest.mark.parametrize("name", [n for n in SCHEMAS if "fused_gate" in n])
def test_gate_calls_fit_the_released_schemas(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (subject,) = (s for s in SUBJECTS if s.name == name)
    outputs = {"weights": torch.zeros(1, 2), "indices": torch.zeros(1, 2, dtype=torch.int32)}
    call, _ = recorded(subject, gate_args(subject, 8, renormalize=False), outputs, monkeypatch)
    assert call.get("renormalize", False) is False
    bias = {call.get("bias") is None, call.get("correction_bias") is None}
    assert (bias == {True}) is (subject.domain.bias == "none")
    if "topk_weights" in call:
        assert call["topk_weights"] is outputs["weights"]
        assert call["topk_indices"] is outputs["indices"]


@pytest.mark.parametrize("on_output", [False, True])
@pytest.mark.parametrize("name", ["grouped_topk", "topk_sigmoid", "topk_softplus_sqrt"])
def test_vllm_gets_the_factor_for_the_output_only(name: str, on_output: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    (subject,) = (s for s in SUBJECTS if s.name == f"vllm:fused_gate@{name}")
    flag = {"routed_scaling_factor": 2.5, "apply_routed_scaling_factor_on_output": on_output}
    outputs = {"weights": torch.zeros(1, 2), "indices": torch.zeros(1, 2, dtype=torch.int32)}
    call, _ = recorded(subject, gate_args(subject, 8, **flag), outputs, monkeypatch)
    assert call["routed_scaling_factor"] == (2.5 if on_output else 1.0)


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("name", [n for n in SCHEMAS if "moe_align" in n])
def test_align_calls_fit_the_released_schemas(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (subject,) = (s for s in SUBJECTS if s.name == name)
    outputs = {
        "sorted_token_ids": torch.zeros(size, dtype=torch.int32),
        "expert_ids": torch.zeros(3, dtype=torch.int32),
        "num_tokens_post_pad": torch.zeros(1, dtype=torch.int32),
    }
    args = {"topk_ids": torch.zeros(2, 2, dtype=torch.int32), "num_experts": 7, "block_size": 3}
    call, made = recorded(subject, args, outputs, monkeypatch)
    places = call["sorted_token_ids"]
    if name.startswith("sglang-kernel"):
        assert (call["num_experts"], call["cumsum_buffer"].numel()) == (8, 9)
        assert outputs["expert_ids"].tolist() == [-1, -1, -1]
        assert made["sorted_token_ids"].shape == (size,)
        assert places.numel() == (size if name.endswith("@exact") else {8: 8, 9: 12}[size])
    else:
        assert call["num_experts"] == 7
        assert places is outputs["sorted_token_ids"]


WINNERS = {"sigmoid": (0.5465, 0.4535), "softmax": (0.7311, 0.2689), "sqrtsoftplus": (0.5600, 0.4400)}
"""Weights of logits 2 and 1, normalised: worked out by hand from the definitions of the scores."""

GROUPS = {"num_expert_group": 2, "topk_group": 1}


def simple_gate(subject: Subject) -> tuple[Case, Callable[[dict[str, Any]], None]]:
    domain = subject.domain
    grouped = subject.name.startswith("flashinfer:")  # with one group it takes k=1 only
    experts = 384 if 384 in domain.experts and not grouped else 32  # type: ignore[union-attr]
    row = [0.0] * experts
    row[5], row[3] = 2.0, 1.0
    tensors = {"logits": TensorSpec("float32", (2, experts), rows=(tuple(row),))}
    if domain.bias == "required":  # type: ignore[union-attr]
        tensors["bias"] = TensorSpec("float32", (experts,), rows=(0.0,) * experts)
    scoring = domain.scorings[0]  # type: ignore[union-attr]

    def check(made: dict[str, Any]) -> None:
        assert made["indices"] == [[5, 3]] * 2
        for weights in made["weights"]:
            assert weights == pytest.approx(WINNERS[scoring], abs=2e-3)

    params = {"topk": 2, "scoring": scoring, "renormalize": True}
    return Case("fused_gate", params | (GROUPS if grouped else {}), tensors), check


def simple_align(subject: Subject) -> tuple[Case, Callable[[dict[str, Any]], None]]:
    tensors = {"topk_ids": TensorSpec("int32", (3, 2), rows=((2, 0), (2, 1), (0, 2)))}

    def check(made: dict[str, Any]) -> None:
        places = made["sorted_token_ids"]
        blocks = [sorted(places[i : i + 4]) for i in range(0, len(places), 4)]
        tail = [[6] * 4] * (len(blocks) - 3)
        assert made["num_tokens_post_pad"] == [12]
        assert made["expert_ids"] == [0, 1, 2] + [-1] * len(tail)
        assert blocks == [[1, 4, 6, 6], [3, 6, 6, 6], [0, 2, 5, 6], *tail]

    return Case("moe_align_block_size", {"num_experts": 4, "block_size": 4}, tensors), check


def simple_append(subject: Subject) -> tuple[Case, Callable[[dict[str, Any]], None]]:
    tensors = {
        "topk_ids": TensorSpec("int32", (1, 2), rows=((3, 1),)),
        "topk_weights": TensorSpec("float32", (1, 2), rows=((0.5, 0.25),)),
        "shared_weights": TensorSpec("float32", (1, 1), rows=((0.75,),)),
    }

    def check(made: dict[str, Any]) -> None:
        assert made == {"ids": [[3, 1, 8]], "weights": [[0.5, 0.25, 0.75]]}

    return Case("append_shared_experts", {"num_experts": 8, "num_fused_shared_experts": 1}, tensors), check


SIMPLE = {
    "fused_gate": simple_gate,
    "moe_align_block_size": simple_align,
    "append_shared_experts": simple_append,
}


@each
def test_the_simple_case_is_inside_the_domain(subject: Subject) -> None:
    assert why_outside(SIMPLE[subject.op](subject)[0], subject.domain) is None


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1e30"])
@pytest.mark.parametrize(
    ("variant", "refused"),
    [("kimi_k2", {"inf", "-inf"}), ("moe_fused_gate", {"nan", "inf", "-inf"}), ("topk_sigmoid", set())],
)
def test_sglang_kernel_is_not_judged_where_it_has_its_own_rules_for_a_bias(
    variant: str, refused: set[str], value: str
) -> None:
    (subject,) = (s for s in SUBJECTS if s.name == f"sglang-kernel:fused_gate@{variant}")
    case, _ = simple_gate(subject)
    experts = case.tensors["logits"].shape[1]
    bias = TensorSpec("float32", (experts,), rows=(float(value), *[0.0] * (experts - 1)))
    why = why_outside(dataclasses.replace(case, tensors={**case.tensors, "bias": bias}), subject.domain)
    assert (why is not None) is (value in refused)
    assert why is None or why.startswith("bias holds ")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@each
def test_a_simple_case(subject: Subject) -> None:
    try:
        runner = Runner(subject, torch.device("cuda"))
    except Unavailable as error:
        pytest.skip(str(error))
    case, check = SIMPLE[subject.op](subject)
    check(runner.literal_outputs(case))
