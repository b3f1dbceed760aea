"""Gold reference of `moe_align_block_size`."""

from __future__ import annotations

import numpy as np
import torch

from ._arguments import IDS, check_int, check_tensor, integers, refuse

INT32_MAX = 2**31 - 1


def moe_align_block_size(
    topk_ids: torch.Tensor,
    num_experts: int,
    block_size: int,
    *,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Group the flat indices of `topk_ids` by expert, each group padded to whole blocks.

    Within an expert flat indices ascend (order ``stable``); −1 and ids out of range are dropped.

    Parameters
    ----------
    topk_ids : Tensor [T, k], int32 or int64
        Expert of each (token, place); −1: none.
    num_experts : int
        E, 1…4096.
    block_size : int
        B ≥ 1.
    expert_map : Tensor [E], int32 with values −1…E−1, optional
        Applied to every id first.

    Returns
    -------
    sorted_token_ids : Tensor [capacity], int32
        Flat indices grouped by expert, ``T·k`` where there is none.
    expert_ids : Tensor [capacity / B], int32
        Expert of each block, −1 past the last one in use.
    num_tokens_post_pad : Tensor [1], int32
        Places in use.

    Raises
    ------
    ValueError
        If an argument is not what the contract allows; names it, its value and what is allowed.
    """
    check_tensor("topk_ids", topk_ids, IDS, (None, None))
    check_int("num_experts", num_experts, 1, 4096)
    check_int("block_size", block_size, 1, INT32_MAX)
    n = topk_ids.numel()
    capacity = (n + min(n, num_experts) * (block_size - 1)) // block_size * block_size
    if capacity > INT32_MAX:
        raise refuse("topk_ids.shape", list(topk_ids.shape), f"a capacity up to {INT32_MAX}, it is {capacity}")
    ids = integers(topk_ids).reshape(-1)
    if expert_map is not None:
        check_tensor("expert_map", expert_map, (torch.int32,), (num_experts,))
        table = integers(expert_map)
        if np.any((table < -1) | (table >= num_experts)):
            raise refuse("expert_map", table.tolist(), f"values -1 to {num_experts - 1}")
        known = (ids >= 0) & (ids < num_experts)
        ids = np.where(known, table[np.where(known, ids, 0)], -1)

    flat = np.flatnonzero((ids >= 0) & (ids < num_experts))
    order = flat[np.argsort(ids[flat], kind="stable")]
    expert = ids[order]
    counts = np.bincount(expert, minlength=num_experts)
    blocks = -(-counts // block_size)
    first_place = (np.cumsum(blocks) - blocks) * block_size
    rank_in_expert = np.arange(order.size) - (np.cumsum(counts) - counts)[expert]

    sorted_token_ids = np.full(capacity, n, np.int32)
    sorted_token_ids[first_place[expert] + rank_in_expert] = order
    expert_ids = np.full(capacity // block_size, -1, np.int32)
    expert_ids[: blocks.sum()] = np.repeat(np.arange(num_experts), blocks)
    total = np.array([blocks.sum() * block_size], np.int32)
    device = topk_ids.device
    return (
        torch.from_numpy(sorted_token_ids).to(device),
        torch.from_numpy(expert_ids).to(device),
        torch.from_numpy(total).to(device),
    )
