"""Dispatch: pure, within what the kernels assume, and changing where it says it does."""

from __future__ import annotations

import re

import pytest

from moeproof.kernels import align_block_size, align_plan, gate_plan, validate
from moeproof.kernels.align_block_size import capacity
from moeproof.kernels.compiler import load_source

EXPERTS = (
    1,
    2,
    5,
    31,
    32,
    33,
    64,
    96,
    128,
    160,
    192,
    255,
    256,
    257,
    384,
    512,
    513,
    768,
    1023,
    1024,
    1025,
    4096,
)
CASES = [
    {
        "tokens": tokens,
        "experts": experts,
        "dtype": dtype,
        "scoring": scoring,
        "biased": biased,
        "groups": groups,
        "places": places,
        "unit_stride": unit,
        "alignment": alignment,
        "bias_aligned": bias_aligned,
    }
    for experts in EXPERTS
    for groups in {1, *(g for g in (2, 3, 8, 32, 64, experts) if experts % g == 0)}
    for tokens, places in ((1, 8), (528, 8), (529, 8), (65536, 8), (65536, 16), (65536, 17))
    for dtype in gate_plan.DTYPES
    for scoring in gate_plan.SCORINGS
    for biased in (True, False)
    for unit, alignment, bias_aligned in (
        (True, 2, True),
        (True, 4, True),
        (True, 8, True),
        (True, 16, True),
        (True, 16, False),
        (False, 16, True),
    )
]


def test_gate_plans_hold_what_the_kernel_assumes() -> None:
    for case in CASES:
        chosen = gate_plan.plan(**case)
        held = chosen.lanes * chosen.experts_per_lane * chosen.warps
        assert held >= case["experts"], case
        assert chosen.block == 32 * chosen.warps * chosen.teams <= 1024
        assert chosen.warps == 1 or chosen.teams == 1
        assert chosen.teams <= gate_plan.TEAMS
        assert chosen.variant == "warp" or held < 4096 + 32 * chosen.experts_per_lane
        sms, rows = case.get("sm_count", 132), chosen.teams * 32 // chosen.lanes
        assert 1 <= chosen.grid < 2 * -(-case["tokens"] // rows) + sms
        assert chosen.teams == 1 or chosen.grid % sms == 0, "whole waves"
        if chosen.file == gate_plan.FILE:
            itemsize = 4 if case["dtype"] == "float32" else 2
            assert case["unit_stride"]
            assert case["bias_aligned"]
            assert chosen.lanes == 32 or case["places"] <= chosen.lanes == 16
            assert case["scoring"] != "sqrtsoftplus"
            assert chosen.vector * itemsize <= case["alignment"]
            assert case["experts"] // case["groups"] % chosen.vector == 0
            assert chosen.experts_per_lane % chosen.vector == 0


@pytest.mark.parametrize(
    ("wanted", "resident", "waves"),
    [(1, 8, 1), (3, 8, 4), (4, 8, 4), (5, 8, 8), (9, 8, 8), (50, 8, 8), (2, 6, 2), (4, 6, 6), (2, 5, 2), (3, 5, 5)],
)
def test_blocks_fill_the_multiprocessors_evenly(wanted: int, resident: int, waves: int) -> None:
    assert gate_plan._waves(wanted, resident) == waves


def test_the_next_launch_starts_early_where_two_fit() -> None:
    early = {t: gate_plan.plan(t, 256).early for t in (1, 264, 265, 528, 1056, 1057, 1584, 1585, 2112, 2113, 65536)}
    assert [t for t, is_early in early.items() if is_early] == [1, 264, 265, 528, 1056, 1585, 2112]


def test_instantiations_are_few_and_all_that_plans_choose() -> None:
    chosen = {(p.file, p.name) for p in (gate_plan.plan(**case) for case in CASES)}
    assert chosen == set(gate_plan.instantiations())
    assert len(gate_plan.instantiations()) == len(chosen) <= 200


def test_align_instantiations_are_few_and_all_that_plans_choose() -> None:
    plans = [
        align_plan.plan(n, e, 16, capability=capability)
        for n in (64, 2048, 8192, 2**23)
        for e in (8, 4096)
        for capability in ((8, 0), (9, 0), (12, 0))
    ]
    chosen = {name for p in plans for name in (p.place, p.histogram) if name} | {"scan_tiles"}
    assert chosen == set(align_plan.instantiations())


def test_lane_groups_are_whole_lanes_of_one_warp() -> None:
    seen = 0
    for case in CASES:
        chosen = gate_plan.plan(**case)
        assert (chosen.grouping == "none") == (case["groups"] == 1)
        if chosen.grouping == "lanes":
            seen += 1
            lanes = chosen.lanes >> (case["groups"] - 1).bit_length()
            assert lanes * chosen.experts_per_lane >= case["experts"] // case["groups"]
            assert chosen.variant == "warp"
    assert seen


@pytest.mark.parametrize("dtype", gate_plan.DTYPES)
@pytest.mark.parametrize("tokens", [1, 65536])
def test_common_models_take_the_fast_path(dtype: str, tokens: int) -> None:
    for experts, groups in ((64, 1), (128, 1), (160, 1), (256, 1), (256, 8), (384, 1), (512, 1)):
        chosen = gate_plan.plan(tokens, experts, dtype=dtype, groups=groups)
        assert chosen.file == gate_plan.FILE
        assert chosen.grouping == ("none" if groups == 1 else "lanes")
    assert gate_plan.plan(tokens, 160, dtype=dtype, groups=8).grouping == "lanes"


def test_gate_thresholds_are_where_the_plan_changes() -> None:
    def name(tokens: int, experts: int) -> str:
        return gate_plan.plan(tokens, experts).name

    for experts in gate_plan.THRESHOLDS["experts"]:
        assert any(name(t, experts) != name(t, experts + 8) for t in (1, 65536)), experts
    changes = [t for t in range(1, 600) if gate_plan.plan(t, 1024) != gate_plan.plan(t + 1, 1024)]
    names = [t for t in range(1, 600) if name(t, 1024) != name(t + 1, 1024)]
    assert changes
    assert set(names) <= set(gate_plan.THRESHOLDS["tokens"])
    assert names


def test_numbers_shared_with_the_sources_agree() -> None:
    gate, align = load_source("fused_gate.cu"), load_source("align_block_size.cu")
    assert f"constexpr int FAST_ROUTED = {gate_plan.FAST_ROUTED};" in gate
    assert f"constexpr int TEAMS = {gate_plan.TEAMS};" in gate
    assert f"constexpr int MAX_EXPERTS = {validate.MAX_EXPERTS};" in gate
    assert f"constexpr int THREADS = {align_plan.THREADS};" in align
    assert align_plan.SCAN_THREADS == align_plan.THREADS
    assert f"constexpr int SLICE = {align_plan.SCAN_EXPERTS};" in align
    assert f"constexpr int MAX_EXPERTS = {align_plan.MAX_EXPERTS};" in align


DEVICES = [(132, (9, 0)), (148, (10, 0)), (188, (12, 0)), (108, (8, 0)), (84, (8, 6)), (20, (9, 0)), (1, (8, 0))]


@pytest.mark.parametrize("experts", [1, 8, 512, 513, 1024, 4095, 4096])
@pytest.mark.parametrize(
    "numel", [1, 8, 512, 513, 4096, 4097, 8192, 8193, 65536, 524288, 524289, 2**20 + 1, 2**21 + 1, 2**30]
)
@pytest.mark.parametrize("block_size", [1, 64])
def test_align_plans_hold_what_the_kernels_assume(numel: int, experts: int, block_size: int) -> None:
    names = align_plan.instantiations()
    for sm_count, capability in DEVICES:
        chosen = align_plan.plan(numel, experts, block_size, sm_count=sm_count, capability=capability)
        assert chosen == align_plan.plan(numel, experts, block_size, sm_count=sm_count, capability=capability)
        assert chosen.place in names
        # Beside it the kernel declares a number a warp.
        assert max(chosen.shared, chosen.histogram_shared) + 64 <= align_plan.shared_limit(capability)
        assert (chosen.tiles - 1) * chosen.tile_length < numel <= chosen.tiles * chosen.tile_length
        ranked = 32 * chosen.rank_warps * chosen.chunks
        assert chosen.rank_warps <= align_plan.WARPS
        assert chosen.chunks <= align_plan.CHUNKS
        assert ranked < 1 << 16, "counts by warp are 16 bit"
        if chosen.variant == "few":
            per, ids, chunks = map(int, re.findall(r"\d+", chosen.place))
            assert per * align_plan.THREADS >= experts
            assert ids * align_plan.THREADS >= numel
            assert 8 * per * align_plan.THREADS + 8 * 32 * chunks + 64 <= 48 << 10
            assert chosen.own <= ranked == 32 * chunks
            assert (chosen.grid - 1) * chosen.own < numel <= chosen.grid * chosen.own
        else:
            assert chosen.histogram in names
            assert chosen.grid == chosen.tiles
            assert chosen.own == min(chosen.tile_length, 32 * align_plan.CHUNKS * chosen.rank_warps) <= ranked
            assert chosen.own <= 1 << 12, "a sorted id has 12 bits for the index in the round"
            assert chosen.tiles * (experts + 1) <= 1 << 24, "scratch"


def shape(ids: int, experts: int) -> tuple[str, str, int, bool, bool]:
    """Return what thresholds change: variant, instantiation, tiles, least tiles or not, whether they take rounds."""
    chosen = align_plan.plan(ids, experts, 1)
    length = chosen.tile_length
    return chosen.variant, chosen.place, chosen.tiles, length > align_plan.MIN_TILE, chosen.own < length


def test_align_thresholds_are_where_the_plan_changes() -> None:
    for experts in align_plan.THRESHOLDS["experts"]:
        assert any(shape(n, experts) != shape(n, experts + 1) for n in (64, 16384, 132 * 4096)), experts
    for ids in align_plan.THRESHOLDS["ids"]:
        assert shape(ids, 256) != shape(ids + 1, 256), ids
    changes = {n + 31 for n in range(1, 1 << 15, 32) if shape(n, 512)[:2] != shape(n + 32, 512)[:2]}
    assert len(changes) == 3
    assert changes <= set(align_plan.THRESHOLDS["ids"])


@pytest.mark.parametrize("value", [1, 2, 3, 5, 7, 8, 13, 64, 127, 300, 65535, 65537, 2**30, 2**31 - 1])
def test_divisors_divide(value: int) -> None:
    multiplier, shift = align_block_size._divisor(value)
    assert 0 < multiplier < 1 << 32
    edges = {k * value + d for k in (1, 2, 3, 1000, (2**31 - 1) // value) for d in (-1, 0, 1)}
    for n in {0, 1, 2**31 - 1, 2**31 - 2, *edges}:
        if 0 <= n < 1 << 31:
            assert n * multiplier >> shift == n // value


@pytest.mark.parametrize(
    ("numel", "experts", "block_size", "wanted"),
    [(0, 8, 16, 0), (1, 8, 16, 16), (8, 8, 1, 8), (5, 2, 4, 8), (512, 256, 64, 16640), (3, 100, 64, 192)],
)
def test_capacity_is_the_largest_padded_total(numel: int, experts: int, block_size: int, wanted: int) -> None:
    assert capacity(numel, experts, block_size) == wanted
