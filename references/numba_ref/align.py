"""Numba reference of `moe_align_block_size`: the host's part."""

from __future__ import annotations

import torch

from ._launch import absent, launch


def moe_align_block_size(
    topk_ids: torch.Tensor,
    num_experts: int,
    block_size: int,
    *,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Group the flat indices of `topk_ids` by expert in whole blocks; arguments as in docs/contracts.md.

    Order ``stable``; −1 and ids out of range are dropped. Each expert reads every id: slow for many of both.

    Returns
    -------
    sorted_token_ids : Tensor [capacity], int32
        On the device of `topk_ids`.
    expert_ids : Tensor [capacity / B], int32
        Expert of each block.
    num_tokens_post_pad : Tensor [1], int32
        Places in use.

    Raises
    ------
    ValueError
        If a tensor is not where Numba runs.
    """
    from . import _align_kernels as k

    device = topk_ids.device
    n = topk_ids.numel()
    capacity = (n + min(n, num_experts) * (block_size - 1)) // block_size * block_size

    def integers(length: int) -> torch.Tensor:
        return torch.empty(length, dtype=torch.int32, device=device)

    sorted_token_ids, expert_ids = integers(capacity), integers(capacity // block_size)
    if n == 0:
        return sorted_token_ids, expert_ids, torch.zeros(1, dtype=torch.int32, device=device)
    num_tokens_post_pad, counts, starts = integers(1), integers(num_experts), integers(num_experts)
    table = absent(device, torch.int32) if expert_map is None else expert_map
    has_map = expert_map is not None
    launch(k.count_kernel, num_experts, topk_ids, n, table, has_map, counts)
    launch(k.place_kernel, 1, counts, block_size, starts, num_tokens_post_pad)
    launch(
        k.fill_kernel,
        num_experts,
        topk_ids,
        n,
        block_size,
        table,
        has_map,
        counts,
        starts,
        sorted_token_ids,
        expert_ids,
    )
    launch(k.tail_kernel, capacity, n, block_size, num_tokens_post_pad, sorted_token_ids, expert_ids)
    return sorted_token_ids, expert_ids, num_tokens_post_pad
