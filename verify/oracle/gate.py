"""The oracle of fused_gate.

A row whose ids equal the float64 selection is right at once. The other rows are judged by intervals: an expert is
*certainly better* than another if its whole score interval lies above, or if both are *provably tied* (same logit
and same bias, or the same non-finite score) and its id is lower. A result fails only where something certainly better
was left out or placed later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .gate_explain import explain_ids, explain_weight
from .scores import TINY, ULP, U, score_error, scores

Tensors = Mapping[str, torch.Tensor]

LAST = -1e300
"""Key of c = -inf and of dropped experts: below every finite score. NaN has -inf, below that."""
CHUNK = 1 << 23
"""Scores judged at a time; bounds the float64 workspace."""


@dataclass(frozen=True)
class GateRules:
    """What a subject documents instead of the contract's own rules.

    Attributes
    ----------
    tie_order : str
        ``lower_id``, or ``any`` where equal scores may come in any order.
    weights_scaled : str
        ``flag``, or ``renormalized``: the scale is applied only together with `renormalize`.
    """

    tie_order: str = "lower_id"
    weights_scaled: str = "flag"


@dataclass(frozen=True)
class GateParams:
    """The plain arguments of fused_gate."""

    topk: int
    scoring: str = "sigmoid"
    num_expert_group: int = 1
    topk_group: int = 1
    renormalize: bool = True
    routed_scaling_factor: float = 1.0
    apply_routed_scaling_factor_on_output: bool = False
    num_fused_shared_experts: int = 0

    @property
    def routed(self) -> int:
        """Places that go to routed experts."""
        return self.topk - self.num_fused_shared_experts


@dataclass
class Failures:
    """Failing rows by check, and a way to put the first of each into words."""

    masks: dict[str, torch.Tensor]
    explain: dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """A block of rows in float64.

    Attributes
    ----------
    x, s, c, key : Tensor
        ``[R, E]`` float64: logits, scores, ranking scores, and the ranking key (NaN and -inf made comparable).
    bias : Tensor
        ``[E]`` float64, zero where there is none.
    has_bias : bool
        There is a bias.
    """

    x: torch.Tensor
    s: torch.Tensor
    c: torch.Tensor
    key: torch.Tensor
    bias: torch.Tensor
    has_bias: bool

    def take(self, index: torch.Tensor) -> Rows:
        """Return some of the rows."""
        return Rows(self.x[index], self.s[index], self.c[index], self.key[index], self.bias, self.has_bias)

    def interval(self, scoring: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return lower and upper bounds of the ranking score of a float32 evaluation."""
        error = score_error(self.x, self.s, scoring, ranked_alone=not self.has_bias)
        if self.has_bias:
            error = error + U * (self.c.abs() + error)
        exact = self.c.isinf() | self.c.isnan()
        error = torch.where(exact, 0.0, error)
        return torch.where(exact, self.key, self.key - error), torch.where(exact, self.key, self.key + error)


def rank_key(c: torch.Tensor) -> torch.Tensor:
    """Return keys that order like the contract does: NaN below -inf, both below every finite number."""
    return torch.where(c.isnan(), -torch.inf, c.clamp(min=LAST)) + 0.0


def score_rows(logits: torch.Tensor, bias: torch.Tensor | None, params: GateParams) -> Rows:
    """Score rows in float64."""
    x = logits.double()
    s = scores(x, params.scoring)
    b = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device) if bias is None else bias.double()
    c = s + b
    return Rows(x, s, c, rank_key(c), b, bias is not None)


def top_two(c: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each group's score, and the expert ids of its best two, best first (one, if groups have one)."""
    rows, experts = c.shape
    size = experts // groups
    grouped = c.reshape(rows, groups, size)
    order = torch.sort(rank_key(grouped), dim=2, descending=True, stable=True).indices[:, :, : min(2, size)]
    best = grouped.gather(2, order)
    base = torch.arange(groups, device=c.device)[None, :, None] * size
    return best.sum(2), order + base


def gold_groups(rows: Rows, params: GateParams) -> torch.Tensor:
    """Return ``[R, G]`` bool: the groups that a float64 evaluation keeps."""
    score, _ = top_two(rows.c, params.num_expert_group)
    order = torch.sort(rank_key(score), dim=1, descending=True, stable=True).indices[:, : params.topk_group]
    kept = torch.zeros_like(score, dtype=torch.bool)
    return kept.scatter_(1, order, True)


def per_expert(kept: torch.Tensor, experts: int) -> torch.Tensor:
    """Spread ``[R, G]`` over the experts of each group: ``[R, E]``."""
    return kept.repeat_interleave(experts // kept.shape[1], dim=1)


def gold_ids(rows: Rows, kept: torch.Tensor | None, params: GateParams) -> torch.Tensor:
    """Return ``[R, k-S]`` int64: the routed ids of a float64 evaluation."""
    key = rows.key if kept is None else torch.where(per_expert(kept, rows.key.shape[1]), rows.key, LAST)
    return torch.sort(key, dim=1, descending=True, stable=True).indices[:, : params.routed]


def judge_gate(args: Mapping[str, Any], outputs: Tensors, rules: GateRules) -> Failures:
    """Judge a result of fused_gate.

    Parameters
    ----------
    args : mapping
        The arguments, tensors and plain ones, by name, on any device.
    outputs : mapping
        ``weights`` ``[T, k]`` float32 and ``indices`` ``[T, k]`` int32, on the same device.
    rules : GateRules
        What the subject documents.

    Returns
    -------
    Failures
        Masks ``[T]`` by check; a row fails at most one of them.
    """
    names = GateParams.__dataclass_fields__
    params = GateParams(**{k: v for k, v in args.items() if k in names})
    logits = args["logits"]
    step = max(1, CHUNK // max(1, logits.shape[1]))
    parts = [
        _judge_chunk(args, outputs, params, rules, slice(start, start + step))
        for start in range(0, logits.shape[0], step)
    ]
    if len(parts) == 1:
        return parts[0]
    masks = {name: torch.cat([p.masks[name] for p in parts]) for name in parts[0].masks}
    return Failures(masks, {name: _shifted([p.explain[name] for p in parts], step) for name in masks})


def _shifted(explains: list[Any], step: int) -> Any:
    return lambda row: explains[row // step](row % step)


def _judge_chunk(
    args: Mapping[str, Any], outputs: Tensors, params: GateParams, rules: GateRules, part: slice
) -> Failures:
    logits, bias = args["logits"][part], args.get("bias")
    ids, weights = outputs["indices"][part].long(), outputs["weights"][part]
    count, experts = logits.shape
    routed, shared = params.routed, params.num_fused_shared_experts
    valid = torch.ones(count, dtype=torch.bool, device=logits.device)
    limit = args.get("num_token_non_padded")
    if limit is not None:
        valid = torch.arange(part.start, part.start + count, device=logits.device) < limit.reshape(())

    logical = unmap(ids, args.get("expert_map"))
    chosen = logical[:, :routed]
    in_range = (chosen >= 0) & (chosen < experts)
    safe = torch.where(in_range, chosen, 0)
    ordered = chosen.sort(1).values
    distinct = (ordered[:, 1:] != ordered[:, :-1]).all(1)
    tail = torch.arange(experts, experts + shared, device=ids.device)
    well_formed = in_range.all(1) & distinct & (logical[:, routed:] == tail).all(1)
    ids_ok = torch.where(valid, well_formed, (ids == -1).all(1))

    rows = score_rows(logits, bias, params)
    kept = gold_groups(rows, params) if params.num_expert_group > 1 else None
    gold = gold_ids(rows, kept, params)
    suspects = (valid & ids_ok & (chosen != gold).any(1)).nonzero().flatten()
    bad_tie = torch.zeros_like(valid)
    bad_nan, bad_selection = bad_tie.clone(), bad_tie.clone()
    if len(suspects):
        some = rows.take(suspects)
        some_kept = None if kept is None else kept[suspects]
        picks = safe[suspects]
        ties = rules.tie_order == "lower_id"
        fine = admissible(some, some_kept, picks, params, ties=ties)
        fine_but_ties = admissible(some, some_kept, picks, params, ties=False) if ties else fine
        wrong_nan = ~fine & ~fine_but_ties & _takes_nan(some, some_kept, picks)
        bad_tie[suspects] = ~fine & fine_but_ties
        bad_nan[suspects] = wrong_nan
        bad_selection[suspects] = ~fine & ~fine_but_ties & ~wrong_nan

    judged = valid & ids_ok & ~(bad_tie | bad_nan | bad_selection)
    low, high = weight_bounds(rows, kept, safe, params, rules)
    weights64 = weights.double()
    open_ended = (low == -torch.inf) & (high == torch.inf)
    pair_ok = ((weights64 >= low) & (weights64 <= high)) | open_ended
    bad_pair = judged & ~pair_ok.all(1)
    nan_weight = (weights.isnan() & ~pair_ok).any(1)
    pad_ok = torch.where(valid[:, None], True, weights == 0).all(1)
    masks = {
        "ids_invalid": ~ids_ok,
        "nan_policy": bad_nan | (bad_pair & nan_weight),
        "selection": bad_selection,
        "tie_order": bad_tie,
        "weights": (bad_pair & ~nan_weight) | (~valid & ids_ok & ~pad_ok),
    }

    def about_ids(row: int) -> str:
        return explain_ids(ids[row].tolist(), chosen[row].tolist(), gold[row].tolist(), rows.c[row], bool(valid[row]))

    def about_weights(row: int) -> str:
        return explain_weight(weights[row].tolist(), low[row].tolist(), high[row].tolist(), ids[row].tolist(), bool(valid[row]))

    def about_nan(row: int) -> str:
        return about_ids(row) if bool(bad_nan[row]) else about_weights(row)

    explain = {"ids_invalid": about_ids, "nan_policy": about_nan, "selection": about_ids}
    return Failures(masks, explain | {"tie_order": about_ids, "weights": about_weights})


def unmap(ids: torch.Tensor, expert_map: torch.Tensor | None) -> torch.Tensor:
    """Return logical ids for physical ones; -1 where nothing maps to an id. Maps are one to one."""
    if expert_map is None:
        return ids
    expert_map = expert_map.long()
    size = int(expert_map.max()) + 1
    inverse = torch.full((size + 1,), -1, dtype=torch.int64, device=ids.device)
    inverse[expert_map] = torch.arange(len(expert_map), device=ids.device)
    known = (ids >= 0) & (ids < size)
    return torch.where(known, inverse[torch.where(known, ids, size)], -1)


def _takes_nan(rows: Rows, kept: torch.Tensor | None, chosen: torch.Tensor) -> torch.Tensor:
    """Say for each row whether a NaN score took a place."""
    return rows.c.gather(1, chosen).isnan().any(1)


def admissible(
    rows: Rows, kept: torch.Tensor | None, chosen: torch.Tensor, params: GateParams, *, ties: bool
) -> torch.Tensor:
    """Say for each row whether some float32 evaluation of the contract gives these ids.

    Parameters
    ----------
    rows : Rows
        The rows, ``[R, E]``.
    kept : Tensor, optional
        ``[R, G]``: the groups that float64 keeps; None if ungrouped.
    chosen : Tensor
        ``[R, k-S]`` int64, in range and distinct.
    params : GateParams
        The plain arguments.
    ties : bool
        Provably tied experts and groups must come by id.

    Returns
    -------
    Tensor
        ``[R]`` bool.
    """
    low, high = rows.interval(params.scoring)
    if kept is None:
        return ~_misplaced(rows, low, high, rows.key, chosen, ties).any(1) & _in_order(rows, low, high, rows.key, chosen, ties)

    experts = low.shape[1]
    better = _better_groups(rows, low, high, params, ties)
    # The choice of groups is certain if each kept group is certainly better than each dropped one.
    certain = _certain(better, kept)
    mask = per_expert(kept, experts)
    key, low_k, high_k = (torch.where(mask, v, LAST) for v in (rows.key, low, high))
    fixed = ~_misplaced(rows, low_k, high_k, key, chosen, ties).any(1) & _in_order(rows, low_k, high_k, key, chosen, ties)

    # Otherwise: is there a set of groups, closed under "certainly better", that explains the ids?
    needed = torch.zeros_like(kept).scatter_(1, chosen // (experts // kept.shape[1]), True)
    smallest = needed | (better & needed[:, None, :]).any(2)
    misplaced = _misplaced(rows, low, high, rows.key, chosen, ties)
    harmless = ~misplaced.reshape(len(misplaced), kept.shape[1], -1).any(2)
    largest = harmless & ~(better & ~harmless[:, :, None]).any(1)
    open_fine = (
        ~(smallest & ~largest).any(1)
        & (smallest.sum(1) <= params.topk_group)
        & (largest.sum(1) >= params.topk_group)
        & _in_order(rows, low, high, rows.key, chosen, ties)
    )
    # With too few finite scores in the kept groups, dropped experts fill places and explain nothing.
    starved = (key > LAST).sum(1) < params.routed
    return torch.where(certain, fixed, open_fine | starved)


def _certain(better: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return ``[R]``: rows in which each kept group is certainly better than each dropped one."""
    return (better | ~kept[:, :, None] | kept[:, None, :]).all(2).all(1)


def _tied(rows: Rows, key: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return ``[R, E]``: which experts are provably tied with expert ``ids[r]``."""
    at = ids[:, None]
    same_input = (rows.x == rows.x.gather(1, at)) & (rows.bias[None, :] == rows.bias[ids][:, None])
    mine = key.gather(1, at)
    limit = (key == mine) & ((mine <= LAST) | (mine == torch.inf))
    return limit | (same_input & (key > LAST) & (mine > LAST))


def _misplaced(
    rows: Rows, low: torch.Tensor, high: torch.Tensor, key: torch.Tensor, chosen: torch.Tensor, ties: bool
) -> torch.Tensor:
    """Return ``[R, E]``: experts left out that are certainly better than one taken."""
    left = torch.ones_like(low, dtype=torch.bool).scatter_(1, chosen, False)
    worst = high.gather(1, chosen).amin(1, keepdim=True)
    wrong = left & (low > worst)
    if ties:
        index = torch.arange(low.shape[1], device=low.device)[None, :]
        for place in range(chosen.shape[1]):
            ids = chosen[:, place]
            wrong |= left & (index < ids[:, None]) & _tied(rows, key, ids)
    return wrong


def _in_order(
    rows: Rows, low: torch.Tensor, high: torch.Tensor, key: torch.Tensor, chosen: torch.Tensor, ties: bool
) -> torch.Tensor:
    """Say for each row whether no later place is certainly better than an earlier one."""
    lows, highs = low.gather(1, chosen), high.gather(1, chosen)
    later = torch.ones(chosen.shape[1], chosen.shape[1], dtype=torch.bool, device=low.device).triu(1)
    worse = lows[:, None, :] > highs[:, :, None]
    if ties:
        x, b, keys = rows.x.gather(1, chosen), rows.bias[chosen], key.gather(1, chosen)
        same = (x[:, None, :] == x[:, :, None]) & (b[:, None, :] == b[:, :, None])
        both = (keys[:, None, :] > LAST) & (keys[:, :, None] > LAST)
        limit = (keys[:, None, :] == keys[:, :, None]) & ((keys <= LAST) | (keys == torch.inf))[:, :, None]
        worse |= ((same & both) | limit) & (chosen[:, None, :] < chosen[:, :, None])
    return ~(worse & later).any(2).any(1)


def _better_groups(
    rows: Rows, low: torch.Tensor, high: torch.Tensor, params: GateParams, ties: bool
) -> torch.Tensor:
    """Return ``[R, G, G]``: whether group a is certainly better than group b."""
    groups = params.num_expert_group
    score, members = top_two(rows.c, groups)
    key = rank_key(score)
    size = members.shape[2]

    def bound(values: torch.Tensor) -> torch.Tensor:
        best = values.reshape(len(values), groups, -1).topk(size, dim=2).values
        return best.sum(2)

    exact = ~score.isfinite()
    rounding = U * score.abs() if size > 1 else torch.zeros_like(score)
    lows = torch.where(exact, key, bound(low) - rounding)
    highs = torch.where(exact, key, bound(high) + rounding)
    better = lows[:, :, None] > highs[:, None, :]
    if ties:
        flat = members.reshape(len(members), -1)
        x = rows.x.gather(1, flat).reshape(members.shape)
        b = rows.bias[flat].reshape(members.shape)
        if size > 1:
            # a + b rounds like b + a: compare the two members as an unordered pair.
            swap = (x[..., :1] < x[..., 1:]) | ((x[..., :1] == x[..., 1:]) & (b[..., :1] < b[..., 1:]))
            x, b = torch.where(swap, x.flip(2), x), torch.where(swap, b.flip(2), b)
        sure = _determined(rows, low, high, members, groups)
        same = (x[:, :, None] == x[:, None]).all(3) & (b[:, :, None] == b[:, None]).all(3)
        tied = same & sure[:, :, None] & sure[:, None, :] & ~exact[:, :, None] & ~exact[:, None, :]
        tied |= exact[:, :, None] & exact[:, None, :] & (key[:, :, None] == key[:, None, :])
        index = torch.arange(groups, device=low.device)
        better |= tied & (index[:, None] < index[None, :])[None]
    return better


def _determined(
    rows: Rows, low: torch.Tensor, high: torch.Tensor, members: torch.Tensor, groups: int
) -> torch.Tensor:
    """Return ``[R, G]``: whether the values of a group's best two are the same in every evaluation."""
    count, experts = low.shape
    size = experts // groups
    if size <= members.shape[2]:
        return torch.ones(count, groups, dtype=torch.bool, device=low.device)
    second = members[:, :, -1]
    x = rows.x.reshape(count, groups, size)
    same = (x == rows.x.gather(1, second)[:, :, None]) & (
        rows.bias.reshape(1, groups, size) == rows.bias[second][:, :, None]
    )
    others = high.scatter(1, members.reshape(count, -1), -torch.inf).reshape(count, groups, size)
    rest = torch.where(same, -torch.inf, others).amax(2)
    return low.gather(1, second) > rest


def weight_bounds(
    rows: Rows, kept: torch.Tensor | None, chosen: torch.Tensor, params: GateParams, rules: GateRules
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return lower and upper bounds ``[R, k]`` float64 of the weights of the chosen ids."""
    error = score_error(rows.x, rows.s, params.scoring, ranked_alone=False).gather(1, chosen)
    s = rows.s.gather(1, chosen)
    void = s.isnan()
    if kept is not None:
        group = chosen // (rows.s.shape[1] // params.num_expert_group)
        void = void | (~kept.gather(1, group) & _uses_dropped(rows, kept, params)[:, None])
    s, error = torch.where(void, 0.0, s), torch.where(void, 0.0, error)
    low, high = (s - error).clamp(min=0), s + error
    steps = 0
    if params.renormalize:
        others_high = high.sum(1, keepdim=True) - high
        others_low = low.sum(1, keepdim=True) - low
        unbounded = high.sum(1, keepdim=True).isinf()
        low_sum, high_sum = low + others_high, high + others_low
        low = torch.where(low_sum > 0, low / low_sum, 0.0)
        high = torch.where(high_sum > 0, high / high_sum, 0.0)
        low, high = torch.where(unbounded, -torch.inf, low), torch.where(unbounded, torch.inf, high)
        steps += params.routed + 2
    f = params.routed_scaling_factor
    if params.apply_routed_scaling_factor_on_output and (
        rules.weights_scaled == "flag" or params.renormalize
    ):
        low, high = low * f, high * f
        steps += 2
    if kept is not None:
        # Where it is open which groups are kept, it is open which of the places that dropped experts fill weigh 0.
        vague = _vague(rows, kept, params)[:, None]
        low, high = torch.where(vague, -torch.inf, low), torch.where(vague, torch.inf, high)
    slack = 2 * steps * U
    low = torch.where(low > 0, low * (1 - slack) - 2 * TINY, low)
    high = torch.where(high > 0, high * (1 + slack) + 2 * TINY, high)
    shared = params.num_fused_shared_experts
    if shared:
        value = 1.0 if params.apply_routed_scaling_factor_on_output else 1.0 / f
        fixed = torch.full((len(low), shared), value, dtype=torch.float64, device=low.device)
        low = torch.cat([low, fixed * (1 - ULP)], 1)
        high = torch.cat([high, fixed * (1 + ULP)], 1)
    return low, high


def _vague(rows: Rows, kept: torch.Tensor, params: GateParams) -> torch.Tensor:
    """Return ``[R]``: rows in which dropped experts fill places and rounding decides which groups are dropped."""
    starved = _uses_dropped(rows, kept, params).nonzero().flatten()
    vague = torch.zeros(len(kept), dtype=torch.bool, device=kept.device)
    if len(starved):
        some = rows.take(starved)
        better = _better_groups(some, *some.interval(params.scoring), params, ties=True)
        vague[starved] = ~_certain(better, kept[starved])
    return vague


def _uses_dropped(rows: Rows, kept: torch.Tensor, params: GateParams) -> torch.Tensor:
    """Return ``[R]``: rows with so few finite scores in the kept groups that dropped experts fill places."""
    mask = per_expert(kept, rows.key.shape[1])
    return ((rows.key > LAST) & mask).sum(1) < params.routed
