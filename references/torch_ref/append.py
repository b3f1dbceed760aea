"""PyTorch reference of `append_shared_experts`."""

from __future__ import annotations

import torch


def append_shared_experts(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    shared_weights: torch.Tensor,
    num_experts: int,
    num_fused_shared_experts: int = 1,
    *,
    num_token_non_padded: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Append the shared experts' ids and weights to the routed ones; arguments as in docs/contracts.md.

    Returns
    -------
    ids : Tensor [T, k + S], dtype of `topk_ids`
        Routed ids, then E … E+S−1.
    weights : Tensor [T, k + S], dtype of `topk_weights`
        Routed weights bit for bit, then the shared ones.
    """
    tokens, topk = topk_ids.shape
    places = topk + num_fused_shared_experts
    ids = topk_ids.new_empty(tokens, places)
    ids[:, :topk] = topk_ids
    ids[:, topk:] = torch.arange(num_experts, num_experts + num_fused_shared_experts, device=topk_ids.device)
    weights = topk_weights.new_empty(tokens, places)
    # Copied as integers: a float copy may quiet a NaN.
    bits = torch.int32 if weights.dtype == torch.float32 else torch.int16
    weights.view(bits)[:, :topk] = topk_weights.view(bits)
    per_row = shared_weights.unsqueeze(1) if shared_weights.dim() == 1 else shared_weights
    weights[:, topk:] = per_row.to(weights.dtype)
    if num_token_non_padded is not None:
        rows = torch.arange(tokens, device=topk_ids.device)
        padding = (rows >= num_token_non_padded.reshape(())).unsqueeze(1)
        ids.masked_fill_(padding, -1)
        weights.masked_fill_(padding, 0.0)
    return ids, weights
