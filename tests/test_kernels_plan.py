"""Dispatch: pure, within what the kernels assume, and changing where it says it does."""

from __future__ import annotations

import re

import pytest

from moeproof.kernels import align_plan, gate_plan, validate
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
        "unit_stride": unit,
        "alignment": alignment,
    }
    for experts in EXPERTS
    for groups in {1, *(g for g in (2, 3, 8, 32, 64, experts) if experts % g == 0)}
    for tokens in (1, 264, 265, 65536)
    for dtype in gate_plan.DTYPES
    for scoring in gate_plan.SCORINGS
    for biased in (True, False)
    for unit, alignment in ((True, 2), (True, 4), (True, 8), (True, 16), (False, 16))
]


def test_gate_plans_hold_what_the_kernel_assumes() -> None:
    for case in CASES:
        chosen = gate_plan.plan(**case)
        held = 32 * chosen.experts_per_lane * chosen.warps
        assert held >= case["experts"], case
        assert chosen.block == 32 * chosen.warps * chosen.teams <= 1024
        assert chosen.warps == 1 or chosen.teams == 1
        assert chosen.teams <= gate_plan.TEAMS
        assert chosen.variant == "warp" or held < 4096 + 32 * chosen.experts_per_lane
        assert 1 <= chosen.grid <= max(1, case["tokens"])
        if chosen.file == gate_plan.FILE:
            itemsize = 4 if case["dtype"] == "float32" else 2
            assert case["unit_stride"]
            assert case["scoring"] != "sqrtsoftplus"
            assert chosen.vector * itemsize <= case["alignment"]
            assert case["experts"] // case["groups"] % chosen.vector == 0
            assert chosen.experts_per_lane % chosen.vector == 0


def test_instantiations_are_few_and_all_that_plans_choose() -> None:
    chosen = {(p.file, p.name) for p in (gate_plan.plan(**case) for case in CASES)}
    assert chosen == set(gate_plan.instantiations())
    assert len(gate_plan.instantiations()) == len(chosen) <= 120


def test_align_instantiations_are_few_and_all_that_plans_choose() -> None:
    plans = [align_plan.plan(n, e, 16) for n in (64, 65536, 2**23) for e in (8, 1024, 2048, 4096)]
    plans += [align_plan.plan(2**25, e, 16) for e in (8, 512, 1024)]
    chosen = {name for p in plans for name in (p.place, p.histogram) if name} | {"scan_tiles"}
    assert chosen == set(align_plan.instantiations())


def test_lane_groups_are_whole_lanes_of_one_warp() -> None:
    seen = 0
    for case in CASES:
        chosen = gate_plan.plan(**case)
        assert (chosen.grouping == "none") == (case["groups"] == 1)
        if chosen.grouping == "lanes":
            seen += 1
            lanes = 32 >> (case["groups"] - 1).bit_length()
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
    assert f"__launch_bounds__({align_plan.SCAN_THREADS}) scan_tiles" in align
    assert f"blockIdx.x * {align_plan.SCAN_EXPERTS} + lane" in align


def numbers(name: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", name)]


@pytest.mark.parametrize("experts", [1, 8, 256, 512, 513, 1024, 1025, 2048, 2049, 4095, 4096])
@pytest.mark.parametrize("numel", [1, 8, 512, 513, 2048, 2049, 65536, 524288, 4194304, 4194305, 2**30])
@pytest.mark.parametrize("block_size", [1, 64])
def test_align_plans_hold_what_the_kernels_assume(numel: int, experts: int, block_size: int) -> None:
    chosen = align_plan.plan(numel, experts, block_size)
    assert chosen == align_plan.plan(numel, experts, block_size)
    buckets, warps, chunks, mode = numbers(chosen.place)
    assert buckets == chosen.buckets >= experts
    assert mode == ("single", "fused", "scanned").index(chosen.variant)
    assert (chosen.tiles - 1) * chosen.tile_length < numel <= chosen.tiles * chosen.tile_length
    if chosen.variant == "single":
        assert numel <= 32 * warps * chunks
    else:
        assert chosen.grid > chosen.tiles, "no block writes the padding"
    if chosen.variant == "fused":
        assert chosen.tiles * experts <= align_plan.FUSED_COUNTS
    counters = 2 * warps * buckets + 4 * (buckets + 1)
    assert counters + (8 * buckets if chosen.variant == "fused" else 8) + 128 <= 48 * 1024


def launches(ids: int, experts: int) -> tuple[str, int]:
    chosen = align_plan.plan(ids, experts, 1)
    return chosen.variant, 0 if chosen.variant == "single" else chosen.tile_length


def test_align_thresholds_are_where_the_plan_changes() -> None:
    for experts in align_plan.THRESHOLDS["experts"][:-2]:
        assert align_plan.plan(64, experts, 1).place != align_plan.plan(64, experts + 1, 1).place
    first = {align_plan.plan(64, e, 1).buckets: e for e in (512, 1024, 2048, 4096)}
    for ids in align_plan.THRESHOLDS["ids"]:
        assert any(launches(ids, e) != launches(ids + 1, e) for e in first.values()), ids


@pytest.mark.parametrize(
    ("numel", "experts", "block_size", "wanted"),
    [(0, 8, 16, 0), (1, 8, 16, 16), (8, 8, 1, 8), (5, 2, 4, 8), (512, 256, 64, 16640), (3, 100, 64, 192)],
)
def test_capacity_is_the_largest_padded_total(numel: int, experts: int, block_size: int, wanted: int) -> None:
    assert capacity(numel, experts, block_size) == wanted
