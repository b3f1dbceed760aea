"""Which instantiation of the gate kernel runs a case, with what launch shape: pure functions and numbers."""

from __future__ import annotations

from dataclasses import dataclass

from .tuning import DEFAULT_GATE, gate_tuning

PAIR_LANES = 16
"""Lanes that own a row where a warp does two rows at once; also the most places such a row can have."""
EXPERTS_PER_LANE: dict[int, tuple[int, ...]] = {16: (4, 8, 16, 24, 32), 32: (4, 8, 12, 16, 32)}
"""Numbers of experts a lane, by lanes a row: few, since a lane without experts costs next to nothing."""
GROUPED_EXPERTS_PER_LANE: dict[int, tuple[int, ...]] = {16: (12, 16, 32), 32: (8, 12, 16, 32)}
"""The same where a group of experts is whole lanes."""
GENERIC_EXPERTS_PER_LANE = (4, 8, 16)
"""The same where layout, scoring and grouping are known at run time only."""
SPLIT_EXPERTS = 512
"""More experts than this are split over several warps while there are few rows."""
SPLIT_EXPERTS_PER_LANE = 8
"""Experts a lane where a block owns a row and latency counts, or the body is the generic one."""
BLOCK_EXPERTS_PER_LANE = 32
"""Experts a lane where a block owns a row and throughput counts."""
FAST_ROUTED = 20
"""Most routed places for which the exact keys are filtered by a threshold; the same number is in gate_row.cuh."""
TEAMS = 4
"""Warps a block, each with rows of its own, where throughput counts."""
BLOCKS_PER_SM = {16: {4: 10, 8: 8, 16: 7, 24: 6, 32: 5}, 32: {4: 10, 8: 8, 12: 6, 16: 5, 32: 5}}
"""Resident blocks of TEAMS warps, by lanes a row and experts a lane: the most that a grid-stride loop gets. The
kernel's launch bounds ask for as many."""
GROUPED_BLOCKS_PER_SM = {16: {12: 6, 16: 6, 32: 4}, 32: {8: 6, 12: 4, 16: 3, 32: 3}}
"""The same where a group of experts is whole lanes."""
GENERIC_BLOCKS_PER_SM = 8
"""The same where layout, scoring and grouping are known at run time only."""

SCORINGS = {"sigmoid": 0, "softmax": 1, "sqrtsoftplus": 2}
DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}
FILE, GENERIC_FILE = "fused_gate.cu", "fused_gate_generic.cu"
_FAST_SCORINGS = ("sigmoid", "softmax")

THRESHOLDS: dict[str, tuple[int, ...]] = {
    "experts": tuple(sorted({lanes * n for lanes, shares in EXPERTS_PER_LANE.items() for n in shares})),
    "tokens": tuple(132 * rows for rows in DEFAULT_GATE.rows_per_sm),
    "topk": (PAIR_LANES, FAST_ROUTED),
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
    lanes : int
        Lanes of a warp that own a row; 32 where several warps do.
    experts_per_lane, vector, warps, teams : int
        Experts a lane, elements a load, warps a row, warps or blocks with rows of their own a block.
    grid, block : int
        Blocks, and threads a block.
    early : bool
        The next launch may start before the one before has ended.
    file, name : str
        Source file, and name expression of the instantiation in it.
    """

    variant: str
    grouping: str
    lanes: int
    experts_per_lane: int
    vector: int
    warps: int
    teams: int
    grid: int
    block: int
    early: bool
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
    places: int = 8,
    unit_stride: bool = True,
    alignment: int = 16,
    bias_aligned: bool = True,
    sm_count: int = 132,
    device: str = "",
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
    places : int
        Places a row, shared ones included.
    unit_stride : bool
        Neighbouring experts are neighbours in memory.
    alignment : int
        Largest power of two, up to 16, that divides the address of every row.
    bias_aligned : bool
        The biases, if any, are neighbours in memory, the first at a multiple of four elements.
    sm_count : int
        Multiprocessors of the GPU.
    device : str
        Name of the GPU, for tuned numbers.
    """
    tuned, _ = gate_tuning(device)
    grouped = groups > 1
    widest = 32 * EXPERTS_PER_LANE[32][-1]
    fewer = tokens <= tuned.few_split_rows_per_sm * sm_count
    by_block = experts > widest or (not grouped and fewer and experts > SPLIT_EXPERTS)
    lanes = per_lane = 0
    if unit_stride and bias_aligned and scoring in _FAST_SCORINGS and not (by_block and grouped):
        loads = min(alignment // (4 if dtype == "float32" else 2), 8)
        if by_block:
            forms = [(32, SPLIT_EXPERTS_PER_LANE if fewer else BLOCK_EXPERTS_PER_LANE)]
        else:
            forms = _forms(experts, groups, pairs=places <= PAIR_LANES and experts > 2 * PAIR_LANES)
        fitting = {n: m for n, m in reversed(forms) if _loads(dtype, m, experts // groups, loads)}
        few = dict(tuned.few_rows_per_sm)[fitting[32]] * sm_count if 32 in fitting else 0
        lanes = PAIR_LANES if PAIR_LANES in fitting and tokens > few else max(fitting, default=0)
        per_lane = fitting.get(lanes, 0)
    if per_lane:
        grouping, vector = "lanes" if grouped else "none", _vector(dtype, per_lane)
        file, name = FILE, _name(dtype, scoring, biased or grouped, grouped, lanes, per_lane, by_block)
        resident = 0 if by_block else (GROUPED_BLOCKS_PER_SM if grouped else BLOCKS_PER_SM)[lanes][per_lane]
    else:
        grouping, vector, lanes = "staged" if grouped else "none", 1, 32
        by_block = experts > 32 * GENERIC_EXPERTS_PER_LANE[-1]
        holding = (n for n in GENERIC_EXPERTS_PER_LANE if 32 * n >= experts)
        per_lane = SPLIT_EXPERTS_PER_LANE if by_block else next(holding)
        file, name = GENERIC_FILE, _generic_name(per_lane, by_block)
        resident = GENERIC_BLOCKS_PER_SM

    warps, teams, grid, early = 1, 1, tokens, True
    if by_block:
        warps = -(-experts // (32 * per_lane))
        grid = min(tokens, tuned.row_blocks_per_sm * sm_count)
    elif lanes == PAIR_LANES or tokens > tuned.single_rows_per_sm * sm_count:
        teams = TEAMS
        wanted = -(-tokens // (teams * 32 // lanes * sm_count))
        waves = _waves(wanted, resident)
        grid, early = waves * sm_count, waves == wanted and resident % waves == 0 and 2 * waves <= resident
    variant, block = "block" if by_block else "warp", 32 * warps * teams
    return GatePlan(variant, grouping, lanes, per_lane, vector, warps, teams, grid, block, early, file, name)


def instantiations() -> list[tuple[str, str]]:
    """Return (file, name) of everything that `plan` can choose."""
    forms = [(scored, False, *form, False) for scored in (False, True) for form in _all_forms(EXPERTS_PER_LANE)]
    block_shares = (SPLIT_EXPERTS_PER_LANE, BLOCK_EXPERTS_PER_LANE)
    forms += [(scored, False, 32, n, True) for scored in (False, True) for n in block_shares]
    forms += [(True, True, *form, False) for form in _all_forms(GROUPED_EXPERTS_PER_LANE)]
    names = [(FILE, _name(d, s, *form)) for d in DTYPES for s in _FAST_SCORINGS for form in forms]
    generic = [_generic_name(n, False) for n in GENERIC_EXPERTS_PER_LANE]
    generic.append(_generic_name(SPLIT_EXPERTS_PER_LANE, True))
    return names + [(GENERIC_FILE, name) for name in generic]


def _all_forms(shares: dict[int, tuple[int, ...]]) -> list[tuple[int, int]]:
    return [(lanes, n) for lanes, numbers in shares.items() for n in numbers]


def _forms(experts: int, groups: int, *, pairs: bool) -> list[tuple[int, int]]:
    """Return (lanes a row, experts a lane) that hold a row, smallest first; with `pairs` also for two rows a warp."""
    shares = GROUPED_EXPERTS_PER_LANE if groups > 1 else EXPERTS_PER_LANE
    forms = [form for form in _all_forms(shares) if pairs or form[0] == 32]
    if groups == 1:
        return [(lanes, n) for lanes, n in forms if lanes * n >= experts]
    return [(lanes, n) for lanes, n in forms if _lanes_per_group(groups, lanes) * n >= experts // groups]


def _loads(dtype: str, per_lane: int, experts: int, most: int) -> bool:
    """Say whether vectors for a number of experts a lane are no longer than allowed, and divide the experts."""
    vector = _vector(dtype, per_lane)
    return vector <= most and experts % vector == 0


def _waves(wanted: int, resident: int) -> int:
    """Return the blocks a multiprocessor: those wanted, as far as they can be resident, with up to as many idle ones.

    Launches that overlap are spread evenly over the multiprocessors only where each gives all as many blocks, and whole
    launches fill them. Otherwise some get twice as many as others.
    """
    even = (n for n in range(wanted, min(2 * wanted, resident + 1)) if resident % n == 0)
    return next(even, min(wanted, resident))


def _name(dtype: str, scoring: str, scored: bool, grouped: bool, lanes: int, per_lane: int, split: bool) -> str:
    # A sum over a group needs scores: logits alone won't do.
    flags = [str(flag).lower() for flag in (scored, grouped, split)]
    kind = f"{DTYPES[dtype]}, {SCORINGS[scoring]}, {flags[0]}, {flags[1]}"
    return f"fused_gate<{kind}, {lanes}, {per_lane}, {flags[2]}>"


def _generic_name(per_lane: int, split: bool) -> str:
    return f"fused_gate_generic<{per_lane}, {str(split).lower()}>"


def _lanes_per_group(groups: int, lanes: int) -> int:
    """Return a row's lanes for each group: a power of two, or 0 if there are more groups than lanes."""
    return lanes >> (groups - 1).bit_length()


def _vector(dtype: str, per_lane: int) -> int:
    """Return the elements a load, as vector_of in fused_gate.cu."""
    most = 4 if dtype == "float32" else 8
    return most // 2 if per_lane % most else most
