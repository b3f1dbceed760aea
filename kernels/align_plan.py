"""Which kernels align ids to blocks, and with what launch shapes: pure functions and their numbers."""

from __future__ import annotations

from dataclasses import dataclass

THREADS = 512
"""Threads a block of `tile_histogram` and `place_ids`; the same number is in align_block_size.cu."""
SCAN_THREADS = 1024
SCAN_EXPERTS = 32
"""Threads and experts a block of `scan_tiles`."""
BUCKETS = {512: (16, 4), 1024: (16, 4), 2048: (8, 8), 4096: (2, 8)}
"""Counters a warp → (counting warps, chunks of 32 ids a warp): what fits 48 KiB of shared memory."""
SLICE = 4096
"""Places of the output that a block of the one-launch variant writes."""
MAX_SLICES = 64
MIN_TILE = 1024
"""Least ids a tile: fewer would make the scan cost more than the placing."""
TILES = 128
"""Tiles, about one a multiprocessor, up to `MANY_IDS` ids."""
MANY_IDS = 1 << 22
MANY_TILES = 512
FUSED_COUNTS = 1 << 16
"""Most tile counts (tiles x experts) that every block sums itself; more get a kernel of their own."""
FUSED_BUCKETS = 1024
FINISHER_PLACES = 8192
MAX_FINISHERS = 64
"""A block that writes padding and expert_ids to this many places, and how many of them at most."""

THRESHOLDS: dict[str, tuple[int, ...]] = {
    "ids": (*sorted({32 * w * c for w, c in BUCKETS.values()}), MIN_TILE * TILES, MANY_IDS),
    "experts": (*BUCKETS, FUSED_COUNTS // TILES),
}
"""Sizes at which the launched variant changes."""


@dataclass(frozen=True)
class AlignPlan:
    """The launches of one call.

    Attributes
    ----------
    variant : str
        ``"single"`` (one launch), ``"fused"`` (two) or ``"scanned"`` (three).
    buckets : int
        Counters a warp of the instantiation.
    tiles, tile_length : int
        Tiles of neighbouring ids, and ids a tile.
    grid : int
        Blocks of `place_ids`.
    place, histogram : str
        Name expressions of the instantiations; `histogram` is empty for one launch.
    """

    variant: str
    buckets: int
    tiles: int
    tile_length: int
    grid: int
    place: str
    histogram: str


def capacity(numel: int, num_experts: int, block_size: int) -> int:
    """Return the length of `sorted_token_ids`: the largest padded total that `numel` ids can need."""
    return (numel + min(numel, num_experts) * (block_size - 1)) // block_size * block_size


def plan(numel: int, num_experts: int, block_size: int) -> AlignPlan:
    """Choose the launches for `numel` ≥ 1 ids of `num_experts` experts."""
    buckets = next(n for n in BUCKETS if n >= num_experts)
    warps, chunks = BUCKETS[buckets]
    places = capacity(numel, num_experts, block_size)
    if numel <= 32 * warps * chunks:
        grid = min(-(-places // SLICE), MAX_SLICES)
        return AlignPlan("single", buckets, 1, numel, grid, f"place_ids<{buckets}, {warps}, {chunks}, 0>", "")
    tiles = TILES if numel <= MANY_IDS else MANY_TILES
    length = max(MIN_TILE, -(-numel // tiles))
    length = -(-length // 32) * 32
    tiles = -(-numel // length)
    fused = buckets <= FUSED_BUCKETS and tiles * num_experts <= FUSED_COUNTS
    grid = tiles + max(1, min(-(-places // FINISHER_PLACES), MAX_FINISHERS))
    place = f"place_ids<{buckets}, {warps}, {chunks}, {1 if fused else 2}>"
    variant = "fused" if fused else "scanned"
    return AlignPlan(variant, buckets, tiles, length, grid, place, f"tile_histogram<{buckets}>")


def instantiations() -> list[str]:
    """Return the names of everything that `plan` can choose, and of the kernel between its launches."""
    names = ["scan_tiles"]
    for buckets, (warps, chunks) in BUCKETS.items():
        modes = (0, 1, 2) if buckets <= FUSED_BUCKETS else (0, 2)
        names += [f"place_ids<{buckets}, {warps}, {chunks}, {mode}>" for mode in modes]
        names.append(f"tile_histogram<{buckets}>")
    return names
