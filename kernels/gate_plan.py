"""Which instantiation of the gate kernel runs a case, with what launch shape: pure functions and numbers."""

from __future__ import annotations

from dataclasses import dataclass

EXPERTS_PER_LANE = (1, 2, 4, 5, 6, 8, 12, 16, 24, 32)
"""Instantiated numbers of experts a lane. 5 and 6 keep 160 and 192 experts free of idle lanes."""
WARP_EXPERTS = 1024
"""Most experts for which one warp may own a row."""
WARP_EXPERTS_GENERIC = 512
"""The same for run-time strides, staged groups and sqrtsoftplus, whose unrolled bodies compile slowly."""
SPLIT_EXPERTS = 512
"""More experts than this are split over several warps while there are few rows."""
FEW_ROWS_PER_SM = 2
"""Up to this many rows a multiprocessor, latency counts: rows are split, and a block holds one row."""
SPLIT_EXPERTS_PER_LANE = 8
"""Experts a lane where a block owns a row and latency counts, or the body is a slow one to compile."""
BLOCK_EXPERTS_PER_LANE = 16
"""Experts a lane where a block owns a row and throughput counts."""
FAST_ROUTED = 20
"""Most routed places for which the kernel tries its threshold filter; the same number is in fused_gate.cu."""
TEAMS = 4
"""Warps a block, each with rows of its own, where throughput counts."""
BLOCKS_PER_SM = {1: 16, 2: 16, 4: 12, 5: 12, 6: 12, 8: 10, 12: 8, 16: 7, 24: 5, 32: 4}
"""Resident blocks of TEAMS warps by experts a lane (from register counts): the grid of a grid-stride loop."""
ROW_BLOCKS_PER_SM = 8
"""Blocks a multiprocessor where a block owns a row."""

SCORINGS = {"sigmoid": 0, "softmax": 1, "sqrtsoftplus": 2}
DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}
_STRIDED = 3
_GROUPINGS = {"none": 0, "lanes": 1, "staged": 2}

THRESHOLDS: dict[str, tuple[int, ...]] = {
    "experts": (*(32 * n for n in EXPERTS_PER_LANE), 2048),
    "tokens": (132, 2 * 132),
    "topk": (FAST_ROUTED,),
}
"""Sizes at which the launched variant changes (tokens: on a GPU of 132 multiprocessors)."""


@dataclass(frozen=True)
class GatePlan:
    """One launch of the gate kernel.

    Attributes
    ----------
    variant : str
        ``"warp"`` (a warp owns a row) or ``"block"``.
    grouping : str
        ``"none"``, ``"lanes"`` (a group is whole lanes) or ``"staged"`` (through shared memory).
    experts_per_lane, vector, warps, teams : int
        Experts a lane, elements a load, warps a row, rows a block at a time.
    grid, block : int
        Blocks, and threads a block.
    name : str
        Name expression of the instantiation.
    """

    variant: str
    grouping: str
    experts_per_lane: int
    vector: int
    warps: int
    teams: int
    grid: int
    block: int
    name: str


def plan(
    tokens: int,
    experts: int,
    *,
    dtype: str = "float32",
    scoring: str = "sigmoid",
    biased: bool = False,
    groups: int = 1,
    unit_stride: bool = True,
    alignment: int = 16,
    sm_count: int = 132,
) -> GatePlan:
    """Choose the instantiation and launch shape for a case.

    Every choice gives the same bits; only speed differs. `tokens` changes the team's size and the grid alone.

    Parameters
    ----------
    tokens, experts : int
        T ≥ 1 and E.
    dtype, scoring : str
        Keys of `DTYPES` and `SCORINGS`.
    biased : bool
        There is a bias.
    groups : int
        G.
    unit_stride : bool
        Neighbouring experts are neighbours in memory.
    alignment : int
        Largest power of two, up to 16, that divides the address of every row.
    sm_count : int
        Multiprocessors of the GPU.
    """
    few = tokens <= FEW_ROWS_PER_SM * sm_count
    lane_count = next(n for n in (*EXPERTS_PER_LANE, 128) if 32 * n >= experts)
    grouping = "none" if groups == 1 else "staged"
    if groups > 1 and lane_count <= 32 and _whole_lanes(experts // groups, lane_count):
        grouping = "lanes"
    generic = not unit_stride or grouping == "staged" or scoring == "sqrtsoftplus"
    by_block = experts > (WARP_EXPERTS_GENERIC if generic else WARP_EXPERTS)
    if grouping != "lanes" and few and experts > SPLIT_EXPERTS:
        by_block = True
    if by_block and grouping == "lanes":
        grouping = "staged"

    if by_block:
        per_lane = SPLIT_EXPERTS_PER_LANE if few or generic else BLOCK_EXPERTS_PER_LANE
        warps, teams = -(-experts // (32 * per_lane)), 1
        grid = min(tokens, ROW_BLOCKS_PER_SM * sm_count)
    else:
        per_lane, warps, teams = lane_count, 1, 1 if few else TEAMS
        grid = min(-(-tokens // teams), BLOCKS_PER_SM[per_lane] * sm_count * TEAMS // teams)
    vector = _vector(per_lane, experts, 4 if dtype == "float32" else 2, alignment) if unit_stride else 1
    arguments = (
        DTYPES[dtype] if unit_stride else _STRIDED,
        SCORINGS[scoring],
        "true" if biased or groups > 1 else "false",  # a sum over a group needs scores, logits alone won't do
        _GROUPINGS[grouping],
        per_lane,
        vector,
        warps,
        teams,
    )
    name = f"fused_gate<{', '.join(map(str, arguments))}>"
    variant = "block" if by_block else "warp"
    return GatePlan(variant, grouping, per_lane, vector, warps, teams, grid, 32 * warps * teams, name)


def _whole_lanes(size: int, per_lane: int) -> bool:
    lanes = size // per_lane
    return size % per_lane == 0 and lanes <= 32 and lanes & (lanes - 1) == 0


def _vector(per_lane: int, experts: int, itemsize: int, alignment: int) -> int:
    """Return the elements a load: whole loads of 16, 8 or 4 bytes that divide a lane's share and the row."""
    for size in (16, 8, 4):
        vector = size // itemsize
        if vector > 1 and size <= alignment and per_lane % vector == 0 and experts % vector == 0:
            return vector
    return 1
