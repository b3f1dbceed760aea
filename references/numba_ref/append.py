"""Numba reference of `append_shared_experts`: the host's part."""

from __future__ import annotations

import torch

from ._launch import absent, launch


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

    Raises
    ------
    ValueError
        If a tensor is not where Numba runs.
    """
    from . import _append_kernel as k

    tokens, topk = topk_ids.shape
    shared = num_fused_shared_experts
    device = topk_ids.device
    dtype = topk_weights.dtype
    kind = {torch.float32: k.FLOAT32, torch.bfloat16: k.BFLOAT16, torch.float16: k.FLOAT16}[dtype]
    word = torch.int32 if kind == k.FLOAT32 else torch.int16
    ids = torch.empty(tokens, topk + shared, dtype=topk_ids.dtype, device=device)
    weights = torch.empty(tokens, topk + shared, dtype=dtype, device=device)
    # float32 holds every bfloat16 and float16 exactly, so the kernel rounds once.
    exact = shared_weights.to(torch.float32).view(torch.int32)
    launch(
        k.append_kernel,
        ids.numel(),
        topk_ids,
        topk_weights.view(word),
        (exact.unsqueeze(1) if exact.dim() == 1 else exact).expand(tokens, shared),
        num_experts,
        kind,
        absent(device, torch.int32) if num_token_non_padded is None else num_token_non_padded.reshape(1),
        num_token_non_padded is not None,
        ids,
        weights.view(word),
    )
    return ids, weights
