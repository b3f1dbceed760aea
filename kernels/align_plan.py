"""Which kernels align ids to blocks, and with what launch shapes: pure functions and their numbers.

=========  ====================================================================================
variant    runs for
=========  ====================================================================================
few        up to `FEW_CHUNKS` · `OWN` ids a block of `align_few`, with a block a multiprocessor,
           `FEW_BLOCKS` at most
scanned    more: a tile a block, staged where `RUN` ids a tile and expert can be expected
=========  ====================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

THREADS = 512
WARPS = THREADS // 32
"""Threads and warps a block of every kernel; the same numbers are in align_common.cuh."""
SCAN_THREADS = THREADS
SCAN_EXPERTS = 32
"""Threads and experts a block of `scan_tiles`."""
MAX_EXPERTS = 4096
MAX_SLICES = MAX_EXPERTS // SCAN_EXPERTS
TILES = 160
"""Most tiles, one a multiprocessor: a launch that overlaps another is spread evenly only in whole waves."""
FEW_BLOCKS = 128
"""Most blocks of `align_few`."""
OWN = 32
"""Ids in a chunk of those that a block of `align_few` places: a lane each."""
FEW_PLACES = 1024
"""Places of the output that a block of `align_few` fills, as long as each has an id."""
FEW_EXPERTS = {512: 1, 4096: 8}
"""Experts → experts a thread of `align_few`."""
FEW_IDS = {512: (1, 1), 4096: (8, 1), 8192: (16, 2)}
"""Ids → ids that a thread of `align_few` counts, and chunks that a block has room for; more of both on a GPU of fewer
multiprocessors."""
FEW_CHUNKS = max(chunks for _, chunks in FEW_IDS.values())
"""Most chunks that a block of `align_few` places: a warp each."""
CHUNKS = 8
"""Most chunks of 32 ids that a warp of `place_ids` ranks at a time."""
MIN_TILE = 256
TILE = WARPS * 32 * CHUNKS
"""Least ids a tile, and the most up to `MANY_TILES` tiles. Half as many where shared memory is short."""
MANY_TILES = 512
RUN = 2
"""Ids a tile and expert from which on they are sorted in shared memory before they are written."""
HISTOGRAM = "tile_histogram<8>"
PLACE = (f"place_ids<{CHUNKS}, false>", f"place_ids<{CHUNKS}, true>")

THRESHOLDS: dict[str, tuple[int, ...]] = {
    "ids": (*FEW_IDS, MIN_TILE * 132, TILE * 132, TILE * MANY_TILES),
    "experts": (min(FEW_EXPERTS), MIN_TILE // RUN, TILE // RUN),
}
"""Sizes at which the launched variant or its shape changes, on a GPU of 132 multiprocessors."""


@dataclass(frozen=True)
class AlignPlan:
    """The launches of one call.

    Attributes
    ----------
    variant : str
        ``"few"`` (one launch) or ``"scanned"`` (three).
    tiles, tile_length : int
        Tiles of neighbouring ids, each counted by one block, and ids a tile.
    own : int
        Ids that a block of the last launch places, at a time.
    rank_warps, chunks : int
        Warps that rank a block's ids, and chunks of 32 ids each.
    grid : int
        Blocks of the last launch.
    shared, histogram_shared : int
        Bytes of dynamic shared memory a block of the last launch, and of the one over tiles.
    place, histogram : str
        Name expressions of the last launch's kernel, and of the one over tiles; the latter is empty for one launch.
    """

    variant: str
    tiles: int
    tile_length: int
    own: int
    rank_warps: int
    chunks: int
    grid: int
    shared: int
    histogram_shared: int
    place: str
    histogram: str


def capacity(numel: int, num_experts: int, block_size: int) -> int:
    """Return the length of `sorted_token_ids`: the largest padded total that `numel` ids can need."""
    return (numel + min(numel, num_experts) * (block_size - 1)) // block_size * block_size


def shared_limit(capability: tuple[int, int]) -> int:
    """Return the most bytes of shared memory a block can have, by CUDA's table of compute capabilities."""
    kilobytes = {(8, 0): 163, (8, 7): 163}.get(capability, 227 if (9, 0) <= capability < (12, 0) else 99)
    return kilobytes << 10


def place_shared(num_experts: int, warps: int, staged: bool) -> int:
    """Return the bytes of `place_ids`: two or three numbers an expert, one a slice, and counts by warp or the tile."""
    per_thread = MAX_EXPERTS // THREADS
    rounded = -(-num_experts // per_thread) * per_thread
    counts = 2 * warps * num_experts
    if staged:
        counts = max(counts, 4 * 32 * CHUNKS * warps)
    return 4 * ((3 if staged else 2) * rounded + MAX_SLICES + 4) + counts


def plan(
    numel: int,
    num_experts: int,
    block_size: int,
    *,
    sm_count: int = 132,
    capability: tuple[int, int] = (9, 0),
) -> AlignPlan:
    """Choose the launches for `numel` ≥ 1 ids of `num_experts` experts.

    Parameters
    ----------
    numel, num_experts, block_size : int
        T·k, E and B.
    sm_count : int
        Multiprocessors of the device.
    capability : (int, int)
        Its compute capability.
    """
    limit = shared_limit(capability)
    length = capacity(numel, num_experts, block_size)
    blocks = min(sm_count, FEW_BLOCKS)
    if numel <= FEW_CHUNKS * OWN * blocks:
        ids, chunks = next(n for most, n in FEW_IDS.items() if numel <= min(most, n[1] * OWN * blocks))
        wanted = min(numel, -(-length // FEW_PLACES), blocks)
        own = min(chunks * OWN, -(-numel // wanted))
        per = next(n for most, n in FEW_EXPERTS.items() if num_experts <= most)
        name = f"align_few<{per}, {ids}, {chunks}>"
        return AlignPlan("few", 1, numel, own, chunks, 1, -(-numel // own), 0, 0, name, "")

    # 99 KiB hold the counts of 4096 experts by 8 warps only.
    warps = next(w for w in (WARPS, WARPS // 2) if place_shared(num_experts, w, False) <= limit)
    most = 32 * CHUNKS * warps
    tile = max(MIN_TILE, -(-numel // min(sm_count, TILES)))
    if tile > most:
        tile = max(most, -(-numel // MANY_TILES))
    tiles = -(-numel // tile)
    own = min(tile, most)
    staged = own >= RUN * num_experts and place_shared(num_experts, warps, True) <= limit
    return AlignPlan(
        "scanned",
        tiles,
        tile,
        own,
        warps,
        -(-own // (32 * warps)),
        tiles,
        place_shared(num_experts, warps, staged),
        4 * num_experts,
        PLACE[staged],
        HISTOGRAM,
    )


def instantiations() -> list[str]:
    """Return the names of all kernels: those that `plan` names, and `scan_tiles`."""
    few = [f"align_few<{per}, {ids}, {chunks}>" for per in FEW_EXPERTS.values() for ids, chunks in FEW_IDS.values()]
    return [*few, HISTOGRAM, "scan_tiles", *PLACE]
