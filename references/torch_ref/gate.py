"""PyTorch reference of `fused_gate`, in float32.

A row's bits depend on no other row: each step is element by element, or exact, or a sum in an order fixed by
the row's length (`torch.sum` picks an order that depends on the whole shape).
"""

from __future__ import annotations

import torch

_LOWEST = -(2**31)


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
        If `scoring` is unknown.
    """
    tokens, experts = logits.shape
    device = logits.device
    shared = num_fused_shared_experts
    scores = _score(logits.to(torch.float32).contiguous(), scoring)
    choice = scores if bias is None else scores + bias.to(torch.float32)
    dropped = None
    if topk_group < num_expert_group:
        dropped = _dropped_experts(choice, num_expert_group, topk_group)
        choice = choice.masked_fill(dropped, -torch.inf)
    chosen = _best(choice, topk - shared)

    weights = scores.gather(1, chosen)
    unusable = weights.isnan()
    if dropped is not None:
        unusable |= dropped.gather(1, chosen)
    weights = weights.masked_fill(unusable, 0.0)
    if renormalize:
        total = _row_sum(weights)
        # Where the sum is 0, so are the weights: any divisor but 0 leaves them.
        weights = weights / torch.where(total == 0, 1.0, total)
    if apply_routed_scaling_factor_on_output:
        weights = weights * routed_scaling_factor
    if shared:
        shared_weight = 1.0 if apply_routed_scaling_factor_on_output else 1.0 / routed_scaling_factor
        weights = torch.cat([weights, weights.new_full((tokens, shared), shared_weight)], 1)
        shared_ids = torch.arange(experts, experts + shared, device=device)
        chosen = torch.cat([chosen, shared_ids.expand(tokens, shared)], 1)
    indices = chosen.to(torch.int32) if expert_map is None else expert_map[chosen]
    if num_token_non_padded is not None:
        padding = (torch.arange(tokens, device=device) >= num_token_non_padded.reshape(())).unsqueeze(1)
        weights = weights.masked_fill(padding, 0.0)
        indices = indices.masked_fill(padding, -1)
    return weights, indices


def _score(x: torch.Tensor, scoring: str) -> torch.Tensor:
    if scoring == "softmax":
        powers = torch.exp(x - x.amax(1, keepdim=True))
        return powers / _row_sum(powers)
    power = torch.exp(-x.abs())
    if scoring == "sigmoid":
        # The numerator is exp(x) for negative x, 1 for the others.
        return torch.exp(x.clamp(max=0)) / (power + 1.0)
    if scoring == "sqrtsoftplus":
        softplus = x.clamp(min=0) + power.log1p()
        # Below -20, log(1 + exp(x)) is exp(x) within half an ulp of its root; exp(x) itself would be denormal
        # from -87 on.
        return torch.where(x < -20, torch.exp(x * 0.5), softplus.sqrt())
    raise ValueError(f"scoring is {scoring!r}; allowed: sigmoid, softmax, sqrtsoftplus")


def _row_sum(x: torch.Tensor) -> torch.Tensor:
    """Return the sums over dimension 1 as [T, 1], halving the row until one column is left."""
    while x.shape[1] > 1:
        half = x.shape[1] // 2
        folded = x[:, :half] + x[:, half : 2 * half]
        x = torch.cat([folded, x[:, 2 * half :]], 1) if x.shape[1] % 2 else folded
    return x


def _best(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return the positions of the `count` best of each row: larger first, NaN last, ties by position.

    Each value becomes an integer key of its own, so no sort's treatment of ties or NaN matters.
    """
    width = values.shape[1]
    bits = (values + 0.0).view(torch.int32)  # + 0.0 turns -0 into 0
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    ascending = ascending.masked_fill(values.isnan(), _LOWEST)
    from_the_end = torch.arange(width - 1, -1, -1, device=values.device)
    keys = ascending.to(torch.int64) * 2**32 + from_the_end
    return torch.topk(keys, count, dim=1).indices


def _dropped_experts(choice: torch.Tensor, groups: int, kept: int) -> torch.Tensor:
    """Return which experts are in none of the `kept` best groups, bool [T, E]."""
    tokens, experts = choice.shape
    size = experts // groups
    group_scores = choice
    if size > 1:
        grouped = choice.view(tokens, groups, size)
        nan = grouped.isnan()
        grouped = grouped.masked_fill(nan, -torch.inf)
        largest, position = grouped.max(2, keepdim=True)
        second = grouped.scatter(2, position, -torch.inf).amax(2)
        # With fewer than two numbers, one of the two largest is NaN.
        group_scores = (largest.squeeze(2) + second).masked_fill(nan.sum(2) > size - 2, torch.nan)
    drop = torch.ones(tokens, groups, dtype=torch.bool, device=choice.device)
    drop.scatter_(1, _best(group_scores, kept), False)
    return drop.repeat_interleave(size, dim=1)
