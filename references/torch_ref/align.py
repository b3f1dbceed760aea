"""PyTorch reference of `moe_align_block_size`: each place of the output looks up the flat index it holds."""

from __future__ import annotations

import torch


def moe_align_block_size(
    topk_ids: torch.Tensor,
    num_experts: int,
    block_size: int,
    *,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Group the flat indices of `topk_ids` by expert in whole blocks; arguments as in docs/contracts.md.

    Order ``stable``; −1 and ids out of range are dropped.

    Returns
    -------
    sorted_token_ids : Tensor [capacity], int32
        On the device of `topk_ids`.
    expert_ids : Tensor [capacity / B], int32
        Expert of each block.
    num_tokens_post_pad : Tensor [1], int32
        Places in use.
    """
    device = topk_ids.device
    n = topk_ids.numel()
    capacity = (n + min(n, num_experts) * (block_size - 1)) // block_size * block_size
    ids = topk_ids.reshape(-1).to(torch.int64)
    # Ids that take part in nothing sort behind every expert.
    nowhere = num_experts
    ids = torch.where((ids < 0) | (ids >= num_experts), nowhere, ids)
    if expert_map is not None:
        mapped = torch.cat([expert_map.to(torch.int64), expert_map.new_full((1,), -1)])[ids]
        ids = torch.where((mapped < 0) | (mapped >= num_experts), nowhere, mapped)
    ids, order = torch.sort(ids, stable=True)

    experts = torch.arange(num_experts, device=device)
    starts = torch.searchsorted(ids, experts)
    ends = torch.searchsorted(ids, experts, right=True)
    padded = (ends - starts + block_size - 1) // block_size * block_size
    region_ends = padded.cumsum(0)
    total = region_ends[-1:]

    first_places = torch.arange(0, capacity, block_size, device=device)
    block_experts = torch.searchsorted(region_ends, first_places, right=True)
    expert_ids = torch.where(first_places < total, block_experts, -1)

    # Past the blocks in use, the last expert's sources go on, all beyond its end.
    expert = block_experts.clamp(max=num_experts - 1)
    first_sources = starts[expert] + first_places - (region_ends - padded)[expert]
    sources = (first_sources.unsqueeze(1) + torch.arange(block_size, device=device)).reshape(-1)
    filled = sources < ends[expert].repeat_interleave(block_size)
    # One more entry, so that a place without a flat index has something to look up, even where n is 0.
    order = torch.cat([order, order.new_full((1,), n)])
    sorted_token_ids = order[torch.where(filled, sources, n)]
    return sorted_token_ids.to(torch.int32), expert_ids.to(torch.int32), total.to(torch.int32)
