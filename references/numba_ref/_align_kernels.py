"""The kernels of the Numba reference of `moe_align_block_size`: a thread owns an expert, reads every id."""

from __future__ import annotations

from typing import Any

from ._cuda import cuda


@cuda.jit(device=True)
def expert_of(ids: Any, i: int, num_experts: int, expert_map: Any, has_map: bool) -> int:
    """Return the expert of flat index i after the map, −1 where it has none."""
    topk = ids.shape[1]
    expert = ids[i // topk, i % topk]
    if expert < 0 or expert >= num_experts:
        return -1
    if has_map:
        expert = expert_map[expert]
        if expert < 0 or expert >= num_experts:
            return -1
    return expert


@cuda.jit
def count_kernel(ids: Any, n: int, expert_map: Any, has_map: bool, counts: Any) -> None:
    """Count the flat indices of each expert."""
    e = cuda.grid(1)
    if e >= counts.shape[0]:
        return
    count = 0
    for i in range(n):
        if expert_of(ids, i, counts.shape[0], expert_map, has_map) == e:
            count += 1
    counts[e] = count


@cuda.jit
def place_kernel(counts: Any, block_size: int, starts: Any, num_tokens_post_pad: Any) -> None:
    """Lay the experts out one after the other; one thread does it all."""
    if cuda.grid(1) > 0:
        return
    start = 0
    for e in range(counts.shape[0]):
        starts[e] = start
        start += (counts[e] + block_size - 1) // block_size * block_size
    num_tokens_post_pad[0] = start


@cuda.jit
def fill_kernel(
    ids: Any,
    n: int,
    block_size: int,
    expert_map: Any,
    has_map: bool,
    counts: Any,
    starts: Any,
    sorted_token_ids: Any,
    expert_ids: Any,
) -> None:
    """Write each expert's flat indices, its padding and its blocks' id."""
    e = cuda.grid(1)
    if e >= counts.shape[0]:
        return
    place = starts[e]
    for i in range(n):
        if expert_of(ids, i, counts.shape[0], expert_map, has_map) == e:
            sorted_token_ids[place] = i
            place += 1
    while place % block_size != 0:
        sorted_token_ids[place] = n
        place += 1
    for block in range(starts[e] // block_size, place // block_size):
        expert_ids[block] = e


@cuda.jit
def tail_kernel(n: int, block_size: int, num_tokens_post_pad: Any, sorted_token_ids: Any, expert_ids: Any) -> None:
    """Fill one place past those in use, and its block's id."""
    place = cuda.grid(1)
    if place >= sorted_token_ids.shape[0] or place < num_tokens_post_pad[0]:
        return
    sorted_token_ids[place] = n
    if place % block_size == 0:
        expert_ids[place // block_size] = -1
