"""Numba reference of `fused_gate`: the host's part."""

from __future__ import annotations

import numpy as np
import torch

from ._launch import absent, launch


def fused_gate(
    logits: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    topk: int,
    scoring: str = "sigmoid",
    num_expert_group: int = 1,
    topk_group: int = 1,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
    apply_routed_scaling_factor_on_output: bool = False,
    num_fused_shared_experts: int = 0,
    num_token_non_padded: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Route each token to its `topk` best experts; arguments as in docs/contracts.md.

    Returns
    -------
    weights : Tensor [T, topk], float32
        On the device of `logits`.
    indices : Tensor [T, topk], int32
        Best expert first.

    Raises
    ------
    ValueError
        If `scoring` is unknown, more than 32 places are routed, or a tensor is not where Numba runs.
    """
    from . import _gate_kernel as k

    tokens, _ = logits.shape
    device = logits.device
    routed = topk - num_fused_shared_experts
    codes = {"sigmoid": k.SIGMOID, "softmax": k.SOFTMAX, "sqrtsoftplus": k.SQRTSOFTPLUS}
    if scoring not in codes:
        raise ValueError(f"scoring is {scoring!r}; allowed: {', '.join(codes)}")
    if not 0 < routed <= min(k.MAX_ROUTED, logits.shape[1]):
        raise ValueError(f"topk is {topk}; allowed: 1 to {k.MAX_ROUTED} routed places, as many as experts")
    weights = torch.empty(tokens, topk, dtype=torch.float32, device=device)
    indices = torch.empty(tokens, topk, dtype=torch.int32, device=device)
    # Where every group is kept nothing is dropped.
    kept_groups = topk_group if topk_group < num_expert_group else 0
    scratch = (tokens, num_expert_group) if kept_groups else (1, 1)
    on_output = apply_routed_scaling_factor_on_output
    launch(
        k.gate_kernel,
        tokens,
        # float32 holds every bfloat16 and float16 exactly; a float32 tensor passes as it is, strides and all.
        logits.to(torch.float32),
        absent(device, torch.float32) if bias is None else bias.to(torch.float32),
        bias is not None,
        codes[scoring],
        routed,
        num_fused_shared_experts,
        kept_groups,
        torch.empty(scratch, dtype=torch.float32, device=device),
        torch.empty(scratch, dtype=torch.int8, device=device),
        renormalize,
        np.float32(routed_scaling_factor if on_output else 1.0),
        np.float32(1.0 if on_output else 1.0 / routed_scaling_factor),
        absent(device, torch.int32) if num_token_non_padded is None else num_token_non_padded.reshape(1),
        num_token_non_padded is not None,
        absent(device, torch.int32) if expert_map is None else expert_map,
        expert_map is not None,
        weights,
        indices,
    )
    return weights, indices
