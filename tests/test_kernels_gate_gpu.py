"""The gate on a GPU against a float64 reference: variants, layouts, flags, capture, batch invariance."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from moeproof.kernels import launcher
from moeproof.kernels.fused_gate import fused_gate
from moeproof.kernels.gate_plan import EXPERTS_PER_LANE, plan

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SCORINGS = ("sigmoid", "softmax", "sqrtsoftplus")
FEW, MANY = 5, 600
"""Tokens on either side of the switch from latency to throughput, on GPUs of up to 299 multiprocessors."""
ALLOWED = 1e-5
"""Relative room for a weight: over 80 float32 ulp, far below the gap to any other expert's weight here."""


def scores(logits: torch.Tensor, scoring: str) -> torch.Tensor:
    x = logits.double()
    if scoring == "sigmoid":
        return torch.sigmoid(x)
    if scoring == "softmax":
        return torch.softmax(x, 1)
    return torch.nn.functional.softplus(x, threshold=1000).sqrt()


def reference(
    logits: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    topk: int,
    scoring: str = "sigmoid",
    num_expert_group: int = 1,
    topk_group: int = 1,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
    apply_routed_scaling_factor_on_output: bool = False,
    num_fused_shared_experts: int = 0,
    num_token_non_padded: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Route in float64. For inputs without NaN, whose distinct ranking scores are far apart."""
    tokens, experts = logits.shape
    routed = topk - num_fused_shared_experts
    s = scores(logits, scoring)
    c = s if bias is None else s + bias.double()
    # float32 scores of equal logits and biases are equal; so must these be, whatever float64 makes of a sum.
    dropped = torch.zeros_like(c, dtype=torch.bool)
    if num_expert_group > 1:
        size = experts // num_expert_group
        best = c.reshape(tokens, num_expert_group, size).topk(min(2, size), dim=2).values.sum(2)
        order = torch.sort(best, dim=1, descending=True, stable=True).indices
        out = torch.ones(tokens, num_expert_group, dtype=torch.bool, device=logits.device)
        dropped = out.scatter(1, order[:, :topk_group], False).repeat_interleave(size, 1)
        c = c.masked_fill(dropped, -math.inf)
    ids = torch.sort(c, dim=1, descending=True, stable=True).indices[:, :routed]
    weights = s.masked_fill(dropped, 0).gather(1, ids)
    if renormalize:
        total = weights.sum(1, keepdim=True)
        weights = torch.where(total > 0, weights / total, 0.0)
    shared = 1.0 / routed_scaling_factor
    if apply_routed_scaling_factor_on_output:
        weights, shared = weights * routed_scaling_factor, 1.0
    more = torch.arange(experts, experts + num_fused_shared_experts, device=logits.device)
    ids = torch.cat([ids, more.expand(tokens, -1)], 1)
    weights = torch.cat([weights, weights.new_full((tokens, len(more)), shared)], 1)
    if expert_map is not None:
        ids = expert_map.long()[ids]
    if num_token_non_padded is not None:
        padding = torch.arange(tokens, device=logits.device) >= num_token_non_padded.reshape(())
        ids = ids.masked_fill(padding[:, None], -1)
        weights = weights.masked_fill(padding[:, None], 0.0)
    return weights, ids.int()


def spread(tokens: int, experts: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Logits on a grid: equal, or far apart. Every row has ties wherever experts outnumber the 128 steps."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(-64, 64, (tokens, experts), generator=generator) / 16).to(dtype).to(DEVICE)


def biases(experts: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    values = torch.tensor([0.0, 0.6875, -0.3125])
    return values[torch.randint(0, 3, (experts,), generator=generator)].to(dtype).to(DEVICE)


def check(logits: torch.Tensor, bias: torch.Tensor | None = None, **options: Any) -> None:
    weights, ids = fused_gate(logits, bias, **options)
    wanted_weights, wanted_ids = reference(logits, bias, **options)
    assert torch.equal(ids, wanted_ids)
    torch.testing.assert_close(weights.double(), wanted_weights, rtol=ALLOWED, atol=1e-30)


@pytest.mark.parametrize("tokens", [FEW, MANY])
@pytest.mark.parametrize("experts", [32 * n - d for n in EXPERTS_PER_LANE for d in (0, 1)] + [1, 1025, 2049, 4096])
def test_every_size_class(tokens: int, experts: int) -> None:
    check(spread(tokens, experts), biases(experts), topk=min(8, experts))


@pytest.mark.parametrize("experts", [64, 256, 1024, 4096])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("scoring", SCORINGS)
def test_dtypes_and_scorings(experts: int, dtype: torch.dtype, scoring: str) -> None:
    for bias_dtype in (None, *FLOATS):
        bias = None if bias_dtype is None else biases(experts, bias_dtype)
        if scoring == "softmax" and bias is not None:
            bias = bias / 64  # of the scores' size
        check(spread(FEW, experts, dtype), bias, topk=6, scoring=scoring)


@pytest.mark.parametrize(("experts", "topk"), [(32, 32), (256, 1), (256, 20), (256, 21), (256, 32), (4096, 32)])
@pytest.mark.parametrize("tokens", [FEW, MANY])
def test_places(experts: int, topk: int, tokens: int) -> None:
    check(spread(tokens, experts), None, topk=topk)
    check(torch.zeros(tokens, experts, device=DEVICE), None, topk=topk)


@pytest.mark.parametrize(
    ("experts", "groups", "kept", "grouping"),
    [
        (256, 8, 4, "lanes"),
        (160, 8, 3, "lanes"),
        (32, 32, 9, "staged"),
        (96, 2, 1, "lanes"),
        (384, 6, 2, "lanes"),
        (320, 4, 2, "lanes"),
        (60, 20, 7, "staged"),
        (99, 3, 2, "staged"),
        (64, 64, 40, "staged"),
        (1024, 8, 2, "lanes"),
        (2000, 8, 2, "staged"),
        (4096, 4096, 1000, "staged"),
        (4096, 2, 1, "staged"),
    ],
)
@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_groups(experts: int, groups: int, kept: int, grouping: str, scoring: str) -> None:
    assert plan(FEW, experts, groups=groups).grouping == grouping
    options = {"topk": 8, "scoring": scoring, "num_expert_group": groups, "topk_group": kept}
    # Sums of two scores lie close on a grid; random ones don't. All equal: the lowest groups are kept.
    logits = torch.randn(FEW, experts, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    check(logits, None, **options)
    check(torch.ones(FEW, experts, device=DEVICE), None, **options)


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize("on_output", [True, False])
@pytest.mark.parametrize("shared", [0, 2])
@pytest.mark.parametrize("experts", [256, 2048])
def test_flags(renormalize: bool, on_output: bool, shared: int, experts: int) -> None:
    mapping = torch.randperm(experts + shared, generator=torch.Generator().manual_seed(3)).int().to(DEVICE)
    for limit in (None, torch.tensor(3, dtype=torch.int32, device=DEVICE)):
        for expert_map in (None, mapping):
            check(
                spread(FEW, experts),
                biases(experts),
                topk=8 + shared,
                renormalize=renormalize,
                routed_scaling_factor=2.5,
                apply_routed_scaling_factor_on_output=on_output,
                num_fused_shared_experts=shared,
                num_token_non_padded=limit,
                expert_map=expert_map,
            )


def layouts(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    tokens, experts = logits.shape
    wide = torch.full((tokens, experts + 5), 9000.0, dtype=logits.dtype, device=logits.device)
    wide[:, 3:-2] = logits
    flat = torch.full((tokens * experts + 1,), 9000.0, dtype=logits.dtype, device=logits.device)
    flat[1:] = logits.reshape(-1)
    return {
        "sliced": wide[:, 3:-2],
        "misaligned": flat[1:].view(tokens, experts),
        "transposed": logits.t().contiguous().t(),
    }


@pytest.mark.parametrize("experts", [64, 256, 1024, 4096])
@pytest.mark.parametrize("dtype", FLOATS)
def test_layouts_give_the_bits_of_contiguous_logits(experts: int, dtype: torch.dtype) -> None:
    logits = spread(FEW, experts, dtype)
    bias = biases(experts)
    for scoring in SCORINGS:
        options = {"topk": 8, "scoring": scoring, "renormalize": False}
        wanted = fused_gate(logits, bias, **options)
        for name, view in layouts(logits).items():
            for got, want in zip(fused_gate(view, bias, **options), wanted, strict=True):
                assert torch.equal(got, want), (name, scoring)
    repeated = fused_gate(logits[:1].expand(FEW, experts), bias, topk=8)
    for got, want in zip(repeated, fused_gate(logits[:1], bias, topk=8), strict=True):
        assert torch.equal(got, want.expand(FEW, 8))


@pytest.mark.parametrize("experts", [64, 257, 768, 1024, 2048, 4096])
@pytest.mark.parametrize("scoring", SCORINGS)
def test_a_row_depends_on_no_other(experts: int, scoring: str) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(MANY, experts, generator=generator).to(DEVICE)
    bias = (torch.randn(experts, generator=generator) / 100).to(DEVICE)
    options = {"topk": 8, "scoring": scoring}
    assert plan(1, experts, biased=True) != plan(MANY, experts, biased=True)
    together = fused_gate(logits, bias, **options)
    for tokens in (1, 7, 133, 265):
        for got, want in zip(fused_gate(logits[:tokens], bias, **options), together, strict=True):
            assert torch.equal(got, want[:tokens])


@pytest.mark.parametrize("experts", [8, 256, 1024, 4096])
@pytest.mark.parametrize("tokens", [2, MANY])
def test_nan_and_infinities(experts: int, tokens: int) -> None:
    inf, nan = math.inf, math.nan
    first = torch.tensor([-inf, 1.0, nan, inf, 2.0, -inf, -nan, 0.5], device=DEVICE)
    logits = torch.full((tokens, experts), nan, device=DEVICE)
    logits.view(torch.int32)[:, 7::2] = -0x00400001  # negative NaNs with a payload
    logits[:, :8] = first
    weights, ids = fused_gate(logits, topk=8, renormalize=False)
    assert ids.tolist() == [[3, 4, 1, 7, 0, 5, 2, 6]] * tokens
    assert (weights[:, 4:] == 0).all()
    assert weights[0, 0] == 1
    weights, ids = fused_gate(logits, topk=8, scoring="softmax")
    assert ids.tolist() == [list(range(8))] * tokens
    assert (weights == 0).all()


@pytest.mark.parametrize(("experts", "groups"), [(160, 8), (96, 6), (384, 3)])
def test_lanes_without_experts_never_win(experts: int, groups: int) -> None:
    """Where NaN experts have to be picked, idle places of earlier groups' lanes hold the same key."""
    for topk in (8, 32):
        logits = torch.full((2, experts), math.nan, device=DEVICE)
        logits[1, -3:] = torch.tensor([1.0, 2.0, 3.0])
        _, ids = fused_gate(logits, topk=topk, num_expert_group=groups, topk_group=groups)
        assert ids[0].tolist() == list(range(topk))
        best = [experts - 1, experts - 2, experts - 3]
        assert ids[1].tolist() == best + list(range(topk - 3))


@pytest.mark.parametrize("tokens", [1, FEW, MANY])
@pytest.mark.parametrize("experts", [256, 384, 1024, 2048, 4096])
def test_a_lane_that_owns_all_winners_loses_none(experts: int, tokens: int) -> None:
    """Eight winners in two vectors of one lane, whatever the distance of a lane's vectors is."""
    for step in (64, 128, 256, 512, 1024, 2048):
        winners = [base + i for base in (step, 0) for i in range(4)]
        if winners[0] + 4 > experts:
            break
        logits = (torch.arange(experts, device=DEVICE) * 397 % experts / experts - 2).repeat(tokens, 1)
        logits[:, winners] = torch.arange(8, 0, -1, device=DEVICE).float()
        _, ids = fused_gate(logits, torch.zeros(experts, device=DEVICE), topk=8)
        assert ids.tolist() == [winners] * tokens, f"step {step}"


def test_zeros_of_both_signs_tie() -> None:
    logits = torch.tensor([0.0, -0.0], device=DEVICE).repeat(3, 128)
    for bias in (None, torch.tensor([-0.0, 0.0, 0.0, -0.0], device=DEVICE).repeat(64)):
        assert fused_gate(logits, bias, topk=8)[1].tolist() == [list(range(8))] * 3


@pytest.mark.parametrize("experts", [24, 64])
def test_dropped_groups_rank_as_minus_infinity(experts: int) -> None:
    logits = torch.zeros(1, experts, device=DEVICE)
    logits[0, 8:16] = math.nan  # the kept group has two numbers and six NaN, which rank below what was dropped
    logits[0, 8:10] = torch.tensor([3.0, 2.0])
    weights, ids = fused_gate(logits, topk=4, num_expert_group=experts // 8, topk_group=1, renormalize=False)
    assert ids.tolist() == [[8, 9, 0, 1]]
    assert weights[0, 2:].tolist() == [0.0, 0.0]


def test_small_scores_keep_their_precision() -> None:
    logits = torch.linspace(-86, -60, 256, device=DEVICE).reshape(1, 256)
    check(logits, None, topk=8, renormalize=False)


def test_no_tokens_and_out() -> None:
    weights, ids = fused_gate(torch.empty(0, 64, device=DEVICE), topk=4)
    assert weights.shape == ids.shape == (0, 4)
    logits = spread(FEW, 64)
    out = (
        torch.full((FEW, 4), 9.0, device=DEVICE),
        torch.full((FEW, 4), 9, dtype=torch.int32, device=DEVICE),
    )
    got = fused_gate(logits, topk=4, out=out)
    assert got[0] is out[0]
    assert torch.equal(out[1], reference(logits, topk=4)[1])


@pytest.mark.parametrize("experts", [256, 4096])
def test_graph_replay_reads_changed_inputs(experts: int) -> None:
    logits, bias = spread(MANY, experts), biases(experts)
    limit = torch.tensor(MANY, dtype=torch.int32, device=DEVICE)
    fused_gate(logits, bias, topk=8)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        weights, ids = fused_gate(logits, bias, topk=8, num_token_non_padded=limit)
    for seed, valid in ((5, MANY), (6, 17)):
        logits.copy_(spread(MANY, experts, seed=seed))
        limit.fill_(valid)
        graph.replay()
        wanted = reference(logits, bias, topk=8, num_token_non_padded=limit)
        assert torch.equal(ids, wanted[1])
        torch.testing.assert_close(weights.double(), wanted[0], rtol=ALLOWED, atol=1e-30)


def test_first_call_may_be_captured() -> None:
    launcher._kernel.cache_clear()
    logits = spread(3, 61)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _, ids = fused_gate(logits, topk=3, scoring="sqrtsoftplus")
    graph.replay()
    assert torch.equal(ids, reference(logits, topk=3, scoring="sqrtsoftplus")[1])


def test_runs_on_the_current_stream() -> None:
    logits = torch.zeros(MANY, 256, device=DEVICE)
    later = spread(MANY, 256)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        logits.copy_(later)
        _, ids = fused_gate(logits, topk=8)
    stream.synchronize()
    assert torch.equal(ids, reference(later, topk=8)[1])


def test_second_device() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    logits = spread(FEW, 256)
    _, ids = fused_gate(logits.to("cuda:1"), topk=8)
    assert torch.equal(ids.to(DEVICE), reference(logits, topk=8)[1])
