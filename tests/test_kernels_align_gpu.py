"""moe_align_block_size and append_shared_experts on a GPU against small references."""

from __future__ import annotations

import pytest
import torch

from moeproof.kernels.align_block_size import capacity, moe_align_block_size
from moeproof.kernels.align_plan import plan
from moeproof.kernels.append_shared_experts import append_shared_experts
from moeproof.kernels.fused_gate import fused_gate

pytestmark = pytest.mark.gpu
DEVICE = "cuda"


def reference(
    ids: torch.Tensor, experts: int, block: int, expert_map: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    flat = ids.reshape(-1).long().cpu()
    flat = torch.where((flat >= 0) & (flat < experts), flat, -1)
    if expert_map is not None:
        flat = torch.where(flat >= 0, expert_map.long().cpu()[flat], -1)
    places = torch.full((capacity(len(flat), experts, block),), len(flat), dtype=torch.int32)
    blocks = torch.full((len(places) // block,), -1, dtype=torch.int32)
    order = torch.sort(flat, stable=True).indices
    counts = torch.bincount(flat[flat >= 0], minlength=experts)
    padded = (counts + block - 1) // block * block
    ends = padded.cumsum(0)
    kept = order[int((flat < 0).sum()) :]
    expert = flat[kept]
    rank = torch.arange(len(kept)) - (counts.cumsum(0) - counts)[expert]
    places[(ends - padded)[expert] + rank] = kept.int()
    used = torch.repeat_interleave(torch.arange(experts), padded // block)
    blocks[: len(used)] = used.int()
    return tuple(t.to(DEVICE) for t in (places, blocks, ends[-1:].int()))  # type: ignore[return-value]


def random_ids(tokens: int, topk: int, low: int, high: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (tokens, topk), generator=generator).to(DEVICE)


def check(ids: torch.Tensor, experts: int, block: int, expert_map: torch.Tensor | None = None) -> None:
    got = moe_align_block_size(ids, experts, block, expert_map=expert_map)
    for ours, wanted in zip(got, reference(ids, experts, block, expert_map), strict=True):
        assert ours.dtype == torch.int32
        assert torch.equal(ours, wanted)


SIZES = [
    *[(1, 8), (8, 1), (64, 8), (65, 8), (683, 3), (512, 8), (4097, 1), (1024, 8), (1025, 8), (2731, 3)],
    *[(8192, 8), (65536, 8), (262145, 8)],
]


@pytest.mark.parametrize(("tokens", "topk"), SIZES)
@pytest.mark.parametrize("experts", [1, 8, 256, 512, 513, 1024, 1025, 4095, 4096])
def test_every_variant(tokens: int, topk: int, experts: int) -> None:
    for block in (1, 13, 64):
        check(random_ids(tokens, topk, -1, experts).int(), experts, block)


def test_variants_are_all_reached() -> None:
    plans = [plan(t * k, e, 64) for t, k in SIZES for e in (256, 4096)]
    assert {(p.variant, p.place.endswith("true>"), p.own < p.tile_length) for p in plans} == {
        ("few", False, True),
        ("few", False, False),
        ("scanned", False, False),
        ("scanned", False, True),
        ("scanned", True, False),
        ("scanned", True, True),
    }


@pytest.mark.parametrize(("tokens", "topk"), [(64, 8), (8192, 8)])
@pytest.mark.parametrize("experts", [64, 2048])
def test_contents(tokens: int, topk: int, experts: int) -> None:
    everywhere = torch.zeros(tokens, topk, dtype=torch.int64, device=DEVICE)
    for ids in (everywhere, everywhere + experts - 1, everywhere - 1, everywhere + experts):
        check(ids, experts, 16)
    check(random_ids(tokens, topk, -5, experts + 5), experts, 16)
    huge = random_ids(tokens, topk, 0, experts)
    huge[::3] += 1 << 32
    check(huge, experts, 16)


@pytest.mark.parametrize("tokens", [64, 8192])
def test_layouts_and_map(tokens: int) -> None:
    wide = random_ids(tokens, 11, -1, 256).int()
    mapping = (torch.randperm(256, generator=torch.Generator().manual_seed(1)) - 100).clamp(min=-1).int().to(DEVICE)
    for ids in (
        wide[:, 2:10],
        wide.t().contiguous().t(),
        wide[:1].expand(tokens, 11),
        wide[:, 3:4],
        wide[:, ::2],
    ):
        check(ids, 256, 16)
        check(ids, 256, 16, mapping)
    check(wide, 256, 16, torch.stack([mapping, mapping], 1)[:, 0])


@pytest.mark.parametrize("tokens", [64, 65536])
def test_repeats_bit_for_bit(tokens: int) -> None:
    ids = random_ids(tokens, 8, 0, 256)
    first = moe_align_block_size(ids, 256, 64)
    for _ in range(20):
        for again, once in zip(moe_align_block_size(ids, 256, 64), first, strict=True):
            assert torch.equal(again, once)


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize(("tokens", "experts"), [(64, 256), (1024, 256), (8192, 64), (8192, 4096)])
def test_ids_written_right_before_are_those_that_are_read(tokens: int, experts: int, routed: bool) -> None:
    """The same buffer again and again, by a copy or by the gate, in a graph: launches follow each other at once."""
    rounds = 24
    logits = [torch.randn(tokens, experts, device=DEVICE) for _ in range(rounds)]
    given = [random_ids(tokens, 8, -1, experts, seed).int() for seed in range(rounds)]
    ids, weights = given[0].clone(), torch.empty(tokens, 8, device=DEVICE)

    def write(number: int) -> None:
        if routed:
            fused_gate(logits[number], topk=8, out=(weights, ids))
        else:
            ids.copy_(given[number])

    wanted = []
    for number in range(rounds):
        write(number)
        wanted.append([t.clone() for t in moe_align_block_size(ids.clone(), experts, 64)])
    graph = torch.cuda.CUDAGraph()
    got = []
    with torch.cuda.graph(graph):
        for number in range(rounds):
            write(number)
            got.append(moe_align_block_size(ids, experts, 64))
    for _ in range(5):
        graph.replay()
    for ours, theirs in zip(got, wanted, strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_no_ids() -> None:
    places, blocks, total = moe_align_block_size(torch.empty(0, 8, dtype=torch.int32, device=DEVICE), 64, 16)
    assert (len(places), len(blocks), total.tolist()) == (0, 0, [0])


@pytest.mark.parametrize(("tokens", "experts"), [(8, 256), (8192, 256), (8192, 4096)])
def test_graph_replay_reads_changed_inputs(tokens: int, experts: int) -> None:
    ids = random_ids(tokens, 8, 0, experts)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = moe_align_block_size(ids, experts, 64)
    for seed in (2, 3):
        ids.copy_(random_ids(tokens, 8, -1, experts, seed))
        graph.replay()
        for ours, wanted in zip(got, reference(ids, experts, 64), strict=True):
            assert torch.equal(ours, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_append_copies_bits_and_replays(dtype: torch.dtype) -> None:
    word = torch.int32 if dtype.itemsize == 4 else torch.int16
    info = torch.iinfo(word)
    weights = torch.randint(info.min, info.max, (1000, 8), dtype=word, device=DEVICE).view(dtype)
    ids = random_ids(1000, 8, 0, 256)
    shared = torch.randn(1000, 2, device=DEVICE)
    limit = torch.tensor([700], dtype=torch.int32, device=DEVICE)
    append_shared_experts(ids, weights, shared, 256, 2, num_token_non_padded=limit)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got_ids, got_weights = append_shared_experts(ids, weights, shared, 256, 2, num_token_non_padded=limit)
    for valid in (700, 1000):
        shared.normal_()
        limit.fill_(valid)
        graph.replay()
        assert torch.equal(got_ids[:valid, :8], ids[:valid])
        assert torch.equal(got_weights.view(word)[:valid, :8], weights.view(word)[:valid])
        assert torch.equal(got_weights[:valid, 8:], shared[:valid].to(dtype))
        assert got_ids[:valid, 8:].tolist() == [[256, 257]] * valid
        assert (got_ids[valid:] == -1).all()
        assert (got_weights[valid:] == 0).all()
