"""Random cross-checks of the references on inputs full of ties, whose result rounding can't change.

Run with NUMBA_ENABLE_CUDASIM=1 they include the Numba references in Numba's simulator, on few rows.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
import torch

from moeproof.references import gold

GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
SIMULATED = [("numba_ref", "cpu", 3)] if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else []
OTHERS = [
    *(pytest.param(p, id="-".join(p[:2])) for p in [("torch_ref", "cpu", 200), *SIMULATED]),
    *(pytest.param((f, "cuda", 2000), id=f"{f}-cuda", marks=GPU) for f in ("torch_ref", "numba_ref")),
]
NAN, INF = float("nan"), float("inf")


@pytest.fixture(params=OTHERS)
def other(request: pytest.FixtureRequest) -> tuple[Any, str, int]:
    """Return a family to hold against the gold, its device and how many rows to try."""
    family, device, rows = request.param
    return importlib.import_module(f"moeproof.references.{family}"), device, rows


def draw(values: list[float], shape: tuple[int, ...], seed: int) -> torch.Tensor:
    index = torch.randint(0, len(values), shape, generator=torch.Generator().manual_seed(seed))
    return torch.tensor(values)[index]


def agree(
    other: tuple[Any, str, int], logits: torch.Tensor, bias: torch.Tensor | None, rtol: float, **kwargs: Any
) -> None:
    family, device, _ = other
    expected = gold.fused_gate(logits, bias, **kwargs)
    moved = {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in kwargs.items()}
    weights, indices = family.fused_gate(logits.to(device), None if bias is None else bias.to(device), **moved)
    assert torch.equal(indices.cpu(), expected[1])
    torch.testing.assert_close(weights.cpu(), expected[0], rtol=rtol, atol=0.0)


# (E, G, g, k, S)
SIZES = [
    (16, 1, 1, 4, 0),
    (12, 4, 2, 5, 1),
    (15, 5, 3, 15, 2),
    (7, 7, 3, 6, 0),
    (1, 1, 1, 3, 2),
    (16, 2, 1, 10, 0),
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("renormalize", [True, False])
def test_exact_scores(other: tuple[Any, str, int], size: tuple[int, ...], renormalize: bool) -> None:
    # sigmoid gives 0, 1/2 and 1 exactly, and every c and group score is a small multiple of 1/4.
    experts, groups, kept, topk, shared = size
    rows = other[2]
    logits = draw([0.0, -0.0, 200.0, -INF, INF, NAN], (rows, experts), seed=experts)
    bias = draw([0.0, 0.25, -0.5, 1.0, -INF], (experts,), seed=topk)
    agree(
        other,
        logits,
        bias,
        rtol=1e-6,
        topk=topk,
        num_expert_group=groups,
        topk_group=kept,
        renormalize=renormalize,
        routed_scaling_factor=2.5,
        apply_routed_scaling_factor_on_output=renormalize,
        num_fused_shared_experts=shared,
        num_token_non_padded=torch.tensor(rows - 1, dtype=torch.int32),
        expert_map=torch.arange(experts + shared, dtype=torch.int32).flip(0),
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("scoring", ["sigmoid", "softmax", "sqrtsoftplus"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_few_levels(other: tuple[Any, str, int], size: tuple[int, ...], scoring: str, dtype: torch.dtype) -> None:
    # Levels of one sign: no two different pairs of scores have sums that rounding could order either way.
    experts, groups, kept, topk, shared = size
    levels = [0.125, 0.5, 0.625, 1.375, 2.0]
    logits = draw(levels, (other[2], experts), seed=experts + topk).to(dtype)
    agree(
        other,
        logits,
        None,
        rtol=2e-6,
        topk=topk,
        scoring=scoring,
        num_expert_group=groups,
        topk_group=kept,
        num_fused_shared_experts=shared,
    )


@pytest.mark.parametrize(("experts", "block"), [(1, 1), (5, 4), (16, 3), (13, 64)])
@pytest.mark.parametrize("mapped", [False, True])
def test_align(other: tuple[Any, str, int], experts: int, block: int, mapped: bool) -> None:
    family, device, rows = other
    generator = torch.Generator().manual_seed(experts)
    ids = torch.randint(-2, experts + 2, (rows, 4), generator=generator)
    table = torch.randint(-1, experts, (experts,), generator=generator, dtype=torch.int32) if mapped else None
    expected = gold.moe_align_block_size(ids, experts, block, expert_map=table)
    on_device = None if table is None else table.to(device)
    for dtype in (torch.int32, torch.int64):
        result = family.moe_align_block_size(ids.to(device, dtype), experts, block, expert_map=on_device)
        for got, wanted in zip(result, expected, strict=True):
            assert torch.equal(got.cpu(), wanted)


@pytest.mark.parametrize("target", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16, torch.float16])
def test_append_of_random_bits(other: tuple[Any, str, int], source: torch.dtype, target: torch.dtype) -> None:
    family, device, rows = other
    generator = torch.Generator().manual_seed(7)

    def random_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        word = torch.int32 if dtype == torch.float32 else torch.int16
        info = torch.iinfo(word)
        return torch.randint(info.min, info.max, shape, generator=generator, dtype=word).view(dtype)

    ids = torch.randint(-1, 8, (rows, 3), generator=generator)
    weights, shared = random_bits(target, (rows, 3)), random_bits(source, (rows, 8))
    padded = torch.tensor([rows - 1], dtype=torch.int32)
    expected = gold.append_shared_experts(ids, weights, shared, 8, 8, num_token_non_padded=padded)
    result = family.append_shared_experts(
        ids.to(device), weights.to(device), shared.to(device), 8, 8, num_token_non_padded=padded.to(device)
    )
    assert torch.equal(result[0].cpu(), expected[0])
    word = torch.int32 if target == torch.float32 else torch.int16
    assert torch.equal(result[1].cpu().view(word)[:, :3], expected[1].view(word)[:, :3])
    torch.testing.assert_close(result[1].cpu(), expected[1], rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("experts", [5, 33, 256, 1001])
@pytest.mark.parametrize("scoring", ["sigmoid", "softmax", "sqrtsoftplus"])
def test_a_row_depends_on_no_other(other: tuple[Any, str, int], experts: int, scoring: str) -> None:
    family, device, rows = other
    if rows < 200 and experts > 33:
        pytest.skip("too long for the simulator")
    logits = torch.randn(min(rows, 64), experts, generator=torch.Generator().manual_seed(experts)).to(device)
    together = family.fused_gate(logits, topk=4, scoring=scoring)
    transposed = family.fused_gate(logits.t().contiguous().t(), topk=4, scoring=scoring)
    for row in range(0, logits.shape[0], 2):
        alone = family.fused_gate(logits[row : row + 1], topk=4, scoring=scoring)
        for one, many, strided in zip(alone, together, transposed, strict=True):
            assert torch.equal(one[0], many[row])
            assert torch.equal(one[0], strided[row])


def test_gold_rows_do_not_depend_on_how_they_are_chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(50, 24, generator=torch.Generator().manual_seed(3))
    whole = gold.fused_gate(logits, topk=3, num_expert_group=3, topk_group=2)
    monkeypatch.setattr("moeproof.references.gold.gate.CHUNK_ELEMENTS", 24 * 7)
    chunked = gold.fused_gate(logits, topk=3, num_expert_group=3, topk_group=2)
    assert all(torch.equal(a, b) for a, b in zip(whole, chunked, strict=True))
