"""Perturbation: planted faults show only under it; the own kernels stay right; all of it compiles without a GPU."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo import RIGHT

from moeproof.kernels import align_plan, gate_plan, launcher
from moeproof.kernels.compiler import compile_cubin, load_source
from moeproof.kernels.delays import with_delays
from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify import perturb
from moeproof.verify.campaign import Campaign
from moeproof.verify.config import Config
from moeproof.verify.delayed import delayed_module
from moeproof.verify.events import Event
from moeproof.verify.execute import Runner
from moeproof.verify.extras import EXTRAS, complete, of_check, sampled
from moeproof.verify.subject import Subject, find

PLANTED = str(Path(__file__).with_name("perturb_kernels.cu"))
WARPS, BLOCKS, LATE = 8, 528, 2500
"""Warps a block, blocks, and the cycles by which warp 0 is late: more than a store takes, less than most delays."""
RECIPE = {
    "kind": "scores",
    "seed": 1,
    "blocks": [{"pattern": "normal", "center": 0.0, "scale": 1.0, "quantised": False}],
    "edits": [],
}
GATE = Case("fused_gate", {"topk": 8}, {"logits": TensorSpec("float32", (64, 256), recipe=RECIPE)})
IDS = {"kind": "ids", "seed": 3, "num_experts": 64, "blocks": [{"pattern": "uniform"}], "edits": []}
CUDA = torch.device("cuda")


# -- without a GPU -------------------------------------------------------------------------------------------


def test_nothing_is_perturbed_on_a_cpu() -> None:
    subject = next(s for s in RIGHT if s.name == "zoo:right-gate")
    outcome = Runner(subject, torch.device("cpu")).run(GATE, tuple(perturb.PERTURBATIONS))
    assert outcome.violations == ()


def test_a_run_without_perturbation_samples_none() -> None:
    plain = {name for count in range(200) for name in sampled(count, "fused_gate", perturb=False)}
    assert plain == set(complete(perturb=False)) == set(EXTRAS) - set(perturb.PERTURBATIONS)
    assert set(of_check("perturbation")) == set(perturb.PERTURBATIONS)
    perturbed = [sum(n in perturb.PERTURBATIONS for n in sampled(count, "fused_gate")) for count in range(480)]
    assert (sum(perturbed), max(perturbed)) == (60, 1)


@pytest.mark.parametrize("on", [True, False])
def test_a_machine_that_can_not_perturb_says_so(on: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("moeproof.verify.campaign.missing", lambda: "no compiler")
    monkeypatch.setattr(Runner, "device_name", "cuda: pretended")
    events: list[Event] = []
    config = Config(subjects=("torch:append_shared_experts",), cases=1, isolate=False, perturb=on, out=tmp_path)
    Campaign(config, events.append)._prepare()
    notes = [e.data["text"] for e in events if e.kind == "note"]
    assert notes == (["no case runs under perturbation: no compiler"] if on else [])


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_perturbing_kernels_compile(arch: str) -> None:
    source = load_source(perturb.SOURCE)
    assert set(compile_cubin(source, ("hold", "busy"), arch).symbols) == {"hold", "busy"}
    fields = re.search(r"struct PerturbParams \{(.*?)\};", source, re.DOTALL)
    assert fields is not None
    sizes = {"unsigned*": 8, "int*": 8, "long": 8, "int": 4, "unsigned": 4}
    size = sum(sizes[line.split()[0]] for line in fields[1].strip().splitlines())
    assert perturb._params.size == -(-size // 8) * 8


def test_delays_stand_at_each_synchronisation_point() -> None:
    source = "__global__ void f(int* p) {\n  p[0] = __shfl_sync(~0u, p[1], 0);\n  __syncthreads();\n}\n"
    delayed = with_delays(source, 7)
    assert "7u ^ site" in delayed
    assert "__global__ void f(int* p) { moeproof_delay(2 * __LINE__ + 1, 2047u);\n" in delayed
    assert delayed.endswith(source.partition("{")[2])
    assert with_delays(source, 8) != delayed


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("fused_gate_generic.cu", next(n for f, n in gate_plan.instantiations() if f == "fused_gate_generic.cu")),
        ("align_block_size.cu", align_plan.instantiations()[0]),
        (PLANTED, "unordered_sum"),
    ],
)
def test_kernels_with_delays_compile_to_other_code(file: str, name: str) -> None:
    source = load_source(file)
    plain, delayed = (compile_cubin(text, (name,), "sm_90") for text in (source, with_delays(source, 1)))
    assert b"moeproof_delay" in delayed.code
    assert b"moeproof_delay" not in plain.code


def test_a_delayed_module_is_a_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from moeproof.kernels import fused_gate

    twin = delayed_module("fused_gate")
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(launcher, "_kernel", lambda *args: asked.append(args))
    twin.load_kernel("a.cu", "a", 0)
    fused_gate.load_kernel("a.cu", "a", 0)
    assert asked == [("a.cu", "a", 0, 0, 1), ("a.cu", "a", 0, 0, 0)]
    assert twin._calls is not fused_gate._calls
    with pytest.raises(FileNotFoundError):
        delayed_module("nothing")


# -- on a GPU ------------------------------------------------------------------------------------------------


def sums(delays: int) -> set[int]:
    """Return the sums of the kernel that lacks a barrier, over some runs."""
    device = torch.cuda.current_device()
    kernel = launcher.load_kernel(PLANTED, "unordered_sum", device, delays=delays)
    params = launcher.Params(1, "q")
    out = torch.zeros(BLOCKS, dtype=torch.int32, device=CUDA)
    found: set[int] = set()
    for _ in range(10):
        kernel.launch(BLOCKS, 32 * WARPS, params.pack(params.freeze(LATE), out.data_ptr()))
        found |= set(out.tolist())
    return found


@pytest.mark.gpu
@pytest.mark.alone
def test_a_missing_barrier_shows_with_delays_only() -> None:
    right = WARPS * (WARPS + 1) // 2
    assert sums(0) == {right}
    assert len(sums(1)) > 1


def leftover() -> torch.Tensor:
    """Return what a kernel finds in shared memory, ``[blocks, 1024]``."""
    kernel = launcher.load_kernel(PLANTED, "unwritten", torch.cuda.current_device())
    params = launcher.Params(1, "q")
    blocks = 4 * launcher.sm_count(torch.cuda.current_device())
    out = torch.zeros((blocks, 1024), dtype=torch.int32, device=CUDA)
    kernel.launch(blocks, 128, params.pack(params.freeze(0), out.data_ptr()))
    return out


@pytest.mark.gpu
@pytest.mark.alone
@pytest.mark.parametrize("pattern", perturb.PATTERNS)
def test_poison_reaches_the_shared_memory_of_the_next_kernel(pattern: int) -> None:
    perturb.fill_shared(pattern)
    word = pattern - (1 << 32) if pattern >> 31 else pattern
    assert float((leftover() == word).float().mean()) > 0.9


@pytest.mark.gpu
@pytest.mark.alone
def test_a_reader_of_unwritten_shared_memory_is_caught_by_the_poison() -> None:
    (own,) = find(["own:fused_gate"])
    real = own.load()
    word = perturb.PATTERNS[0] - (1 << 32)

    def reader(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
        poisoned = (leftover() == word).any()
        real(args, outputs)
        outputs["weights"].masked_fill_(poisoned, 0.0)

    subject = replace(own, load=lambda: reader)
    runner = Runner(subject, CUDA)
    perturb.fill_shared(0)
    assert runner.run(GATE).violations == ()
    (violation,) = runner.run(GATE, ("poisoned_shared",)).violations
    assert (violation.check, violation.extras) == ("perturbation", ("poisoned_shared",))
    assert violation.message.startswith("poisoned shared: weights[0] is [0.0")


@pytest.mark.gpu
@pytest.mark.alone
def test_a_launch_on_the_wrong_stream_is_caught_by_late_inputs() -> None:
    def astray(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
        with torch.cuda.stream(torch.cuda.default_stream()):
            real(args, outputs)

    (own,) = find(["own:fused_gate"])
    real = own.load()
    runner = Runner(replace(own, load=lambda: astray), CUDA)
    assert runner.run(GATE).violations == ()
    assert runner.run(GATE, ("late_inputs",)).checks == ("perturbation",)


@pytest.mark.gpu
@pytest.mark.alone
def test_scratch_that_two_streams_share_is_caught() -> None:
    scratch = torch.empty((64, 256), device=CUDA)

    def shared_scratch(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
        scratch.zero_()
        torch.cuda._sleep(100_000)
        scratch.copy_(args["logits"])
        torch.cuda._sleep(100_000)
        real(args | {"logits": scratch}, outputs)

    (own,) = find(["own:fused_gate"])
    real = own.load()
    runner = Runner(replace(own, load=lambda: shared_scratch), CUDA)
    assert runner.run(GATE).violations == ()
    assert runner.run(GATE, ("two_streams",)).checks == ("perturbation",)


@pytest.mark.gpu
@pytest.mark.parametrize("delays", ["", "@delays"])
@pytest.mark.parametrize("op", ["fused_gate", "moe_align_block_size"])
def test_own_kernels_stand_every_perturbation(op: str, delays: str) -> None:
    (subject,) = find([f"own:{op}{delays}"])
    ids = TensorSpec("int32", (4096, 8), recipe=IDS)
    align = Case("moe_align_block_size", {"num_experts": 64, "block_size": 16}, {"topk_ids": ids})
    runner = Runner(subject, CUDA)
    outcome = runner.run(GATE if op == "fused_gate" else align, tuple(perturb.PERTURBATIONS))
    assert outcome.violations == ()


def test_subjects_with_delays_are_known_and_claim_no_refusals() -> None:
    found: list[Subject] = find(["own:*@delays"])
    assert [s.op for s in found] == ["fused_gate", "moe_align_block_size"]
    assert not any(s.refuses for s in found)
