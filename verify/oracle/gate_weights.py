"""Bounds of the weights of fused_gate at the subject's own ids."""

from __future__ import annotations

import torch

from .gate_rank import FLOAT_MAX, Ranking, better_groups, certain, may_starve
from .gate_rows import GateParams, GateRules, Rows, finite_counts, top_of
from .scores import TINY, ULP, U, score_error, sum_error


def weight_bounds(
    rows: Rows, kept: torch.Tensor | None, chosen: torch.Tensor, params: GateParams, rules: GateRules
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return lower and upper bounds ``[R, k]`` float64 of the weights of the chosen ids.

    Parameters
    ----------
    rows : Rows
        The rows.
    kept : Tensor, optional
        ``[R, G]``: the groups that float64 keeps; None if ungrouped.
    chosen : Tensor
        ``[R, k-S]`` int64, in range.
    params : GateParams
        The plain arguments.
    rules : GateRules
        What the subject documents.

    Returns
    -------
    tuple of Tensor
        −inf and +inf where a weight is open.
    """
    s = rows.s.gather(1, chosen)
    softmax = params.scoring == "softmax"
    # The error of softmax's sum is common to the row: renormalising cancels it.
    common = sum_error(rows.x, rows.s) if softmax and not params.renormalize else None
    error = score_error(rows.x.gather(1, chosen), s, params.scoring, top=top_of(rows.x, params.scoring), common=common)
    void, vague = s.isnan(), None
    if kept is not None:
        starved, vague = _starved(rows, kept, params, rules)
        if starved is not None:
            group = chosen // (rows.s.shape[1] // params.num_expert_group)
            void = void | (~kept.gather(1, group) & starved[:, None])
    s.masked_fill_(void, 0.0)
    error.masked_fill_(void, 0.0)
    low, high = (s - error).clamp_(min=0), error.add_(s)
    if vague is not None:
        # Where it is open which groups are kept, it is open which places dropped experts fill with weight 0.
        low.masked_fill_(vague[:, None], 0.0)
    low, high = _scaled(low, high, params, rules)
    if rules.unranked == "any":
        unranked = void | ~(rows.c.gather(1, chosen) > -torch.inf)
        if params.renormalize:
            unranked = unranked.any(1, keepdim=True)
        low.masked_fill_(unranked, -torch.inf)
        high.masked_fill_(unranked, torch.inf)
    if params.num_fused_shared_experts:
        value = 1.0 if params.apply_routed_scaling_factor_on_output else 1.0 / params.routed_scaling_factor
        shape = (len(low), params.num_fused_shared_experts)
        # f is rounded, and a division may be off by 2 ulp.
        low = torch.cat([low, low.new_full(shape, value * (1 - 3 * ULP) - TINY)], 1)
        high = torch.cat([high, high.new_full(shape, value * (1 + 3 * ULP) + TINY)], 1)
    if not 1e-18 < params.routed_scaling_factor < 1e18:
        high = torch.where(high > FLOAT_MAX, torch.inf, high)
    return low, high


def _scaled(
    low: torch.Tensor, high: torch.Tensor, params: GateParams, rules: GateRules
) -> tuple[torch.Tensor, torch.Tensor]:
    """Carry bounds of scores through renormalisation and scale."""
    steps = 0
    unbounded = None
    if params.renormalize:
        high_sum, low_sum = high.sum(1, keepdim=True), low.sum(1, keepdim=True)
        # 0 / 0 stays 0.
        least = (low / (high_sum - high).add_(low)).masked_fill_(low == 0, 0.0)
        most = (high / (low_sum - low).add_(high)).masked_fill_(high == 0, 0.0)
        if params.may_be_open:
            # inf / inf is open.
            unbounded = high_sum.isinf()
        low, high = least, most
        steps += params.routed + 2
    scaled = rules.weights_scaled == "flag" or params.renormalize
    flushed = 2 * TINY
    if params.apply_routed_scaling_factor_on_output and scaled:
        low.mul_(params.routed_scaling_factor)
        high.mul_(params.routed_scaling_factor)
        # What renormalising makes may be flushed to zero before it is scaled.
        flushed *= max(1.0, params.routed_scaling_factor)
        steps += 2
    if steps:
        slack = 2 * steps * U
        low.mul_(1 - slack).add_(low > 0, alpha=-flushed)
        high.mul_(1 + slack).add_(high > 0, alpha=flushed)
    if unbounded is not None:
        low.masked_fill_(unbounded, -torch.inf)
        high.masked_fill_(unbounded, torch.inf)
    return low, high


def _starved(
    rows: Rows, kept: torch.Tensor, params: GateParams, rules: GateRules
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return ``[R]`` twice: rows in which dropped experts certainly fill places, and rows in which they may.

    None twice where there is no such row.
    """
    counts = finite_counts(rows, params.num_expert_group)
    fewest = counts.topk(params.topk_group, largest=False).values.sum(1)
    some = (fewest < params.routed).nonzero().flatten()
    if not len(some):
        return None, None
    part = rows.take(some)
    ranking = Ranking(*part.interval(params.scoring), part.tie_classes() if rules.tie_order == "lower_id" else None)
    better = better_groups(part, ranking, params)
    sure = certain(better, kept[some])
    starved = torch.zeros(len(kept), dtype=torch.bool, device=kept.device)
    vague = starved.clone()
    starved[some] = sure & ((counts * kept).sum(1)[some] < params.routed)
    vague[some] = ~sure & may_starve(part, better, params)
    return starved, vague
