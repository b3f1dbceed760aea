"""Which instantiation of the gate kernel runs a case, with what launch shape: pure functions and numbers."""

from __future__ import annotations

from dataclasses import dataclass

EXPERTS_PER_LANE = (4, 8, 12, 16, 32)
"""Numbers of experts a lane where a warp owns a row; few, since a lane without experts costs next to nothing."""
GROUPED_EXPERTS_PER_LANE = (8, 12, 16, 32)
"""The same where a group of experts is whole lanes."""
GENERIC_EXPERTS_PER_LANE = (4, 8, 16)
"""The same where layout, scoring and grouping are known at run time only."""
SPLIT_EXPERTS = 512
"""More experts than this are split over several warps while there are few rows."""
FEW_ROWS_PER_SM = 2
"""Up to this many rows a multiprocessor, latency counts: rows are split, and a block holds one row."""
SPLIT_EXPERTS_PER_LANE = 8
"""Experts a lane where a block owns a row and latency counts, or the body is the generic one."""
BLOCK_EXPERTS_PER_LANE = 16
"""Experts a lane where a block owns a row and throughput counts."""
FAST_ROUTED = 20
"""Most routed places for which the kernel tries its threshold filter; the same number is in gate_row.cuh."""
TEAMS = 4
"""Warps a block, each with rows of its own, where throughput counts."""
BLOCKS_PER_SM = {4: 12, 8: 10, 12: 8, 16: 7, 32: 4}
"""Resident blocks of TEAMS warps by experts a lane (from register counts): the grid of a grid-stride loop."""
ROW_BLOCKS_PER_SM = 8
"""Blocks a multiprocessor where a block owns a row."""

SCORINGS = {"sigmoid": 0, "softmax": 1, "sqrtsoftplus": 2}
DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}
FILE, GENERIC_FILE = "fused_gate.cu", "fused_gate_generic.cu"
_FAST_SCORINGS = ("sigmoid", "softmax")

THRESHOLDS: dict[str, tuple[int, ...]] = {
    "experts": tuple(32 * n for n in EXPERTS_PER_LANE),
    "tokens": (132, 2 * 132),
    "topk": (FAST_ROUTED,),
}
"""Sizes at which the launched variant changes (tokens: on a GPU of 132 multiprocessors)."""


@dataclass(frozen=True)
class GatePlan:
    """One launch of a gate kernel.

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
    file, name : str
        Source file, and name expression of the instantiation in it.
    """

    variant: str
    grouping: str
    experts_per_lane: int
    vector: int
    warps: int
    teams: int
    grid: int
    block: int
    file: str
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
    grouped = groups > 1
    by_block = experts > 32 * EXPERTS_PER_LANE[-1] or (not grouped and few and experts > SPLIT_EXPERTS)
    per_lane = 0
    if unit_stride and scoring in _FAST_SCORINGS and not (by_block and grouped):
        block_share = SPLIT_EXPERTS_PER_LANE if few else BLOCK_EXPERTS_PER_LANE
        shares = GROUPED_EXPERTS_PER_LANE if grouped else (block_share,) if by_block else EXPERTS_PER_LANE
        loads = min(alignment // (4 if dtype == "float32" else 2), 8)
        for n in shares:
            vector = _vector(dtype, n)
            holds = by_block or n * _lanes_per_group(groups) >= experts // groups
            if holds and vector <= loads and experts // groups % vector == 0:
                per_lane = n
                break
    if per_lane:
        grouping = "lanes" if grouped else "none"
        file, name = FILE, _name(dtype, scoring, biased or grouped, grouped, per_lane, by_block)
    else:
        grouping, vector = "staged" if grouped else "none", 1
        by_block = experts > 32 * GENERIC_EXPERTS_PER_LANE[-1]
        fitting = (n for n in GENERIC_EXPERTS_PER_LANE if 32 * n >= experts)
        per_lane = SPLIT_EXPERTS_PER_LANE if by_block else next(fitting)
        file, name = GENERIC_FILE, _generic_name(per_lane, by_block)

    if by_block:
        warps, teams = -(-experts // (32 * per_lane)), 1
        grid = min(tokens, ROW_BLOCKS_PER_SM * sm_count)
    else:
        warps, teams = 1, 1 if few else TEAMS
        grid = min(-(-tokens // teams), BLOCKS_PER_SM[per_lane] * sm_count * TEAMS // teams)
    variant = "block" if by_block else "warp"
    return GatePlan(variant, grouping, per_lane, vector, warps, teams, grid, 32 * warps * teams, file, name)


def instantiations() -> list[tuple[str, str]]:
    """Return (file, name) of everything that `plan` can choose."""
    block_shares = (SPLIT_EXPERTS_PER_LANE, BLOCK_EXPERTS_PER_LANE)
    forms = [(scored, False, n, False) for scored in (False, True) for n in EXPERTS_PER_LANE]
    forms += [(scored, False, n, True) for scored in (False, True) for n in block_shares]
    forms += [(True, True, n, False) for n in GROUPED_EXPERTS_PER_LANE]
    names = [(FILE, _name(d, s, *form)) for d in DTYPES for s in _FAST_SCORINGS for form in forms]
    generic = [_generic_name(n, False) for n in GENERIC_EXPERTS_PER_LANE]
    generic.append(_generic_name(SPLIT_EXPERTS_PER_LANE, True))
    return names + [(GENERIC_FILE, name) for name in generic]


def _name(dtype: str, scoring: str, scored: bool, grouped: bool, per_lane: int, split: bool) -> str:
    # A sum over a group needs scores: logits alone won't do.
    flags = [str(flag).lower() for flag in (scored, grouped, split)]
    return f"fused_gate<{DTYPES[dtype]}, {SCORINGS[scoring]}, {flags[0]}, {flags[1]}, {per_lane}, {flags[2]}>"


def _generic_name(per_lane: int, split: bool) -> str:
    return f"fused_gate_generic<{per_lane}, {str(split).lower()}>"


def _lanes_per_group(groups: int) -> int:
    """Return the lanes of a warp for each group: a power of two, or 0 if there are more groups than lanes."""
    return 32 >> (groups - 1).bit_length()


def _vector(dtype: str, per_lane: int) -> int:
    """Return the elements a load, as vector_of in fused_gate.cu."""
    most = 4 if dtype == "float32" else 8
    return most // 2 if per_lane % most else most
