"""Which selections of fused_gate are open to a float32 evaluation: judged by intervals and provable ties."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

from .gate_rows import LAST, LIMIT_CLASS, GateParams, Rows, finite_counts, numbers, per_expert, rank_key, top_two
from .scores import TINY, U

FLOAT_MAX = (2 - 2.0**-23) * 2.0**127
CELLS = 1 << 23
"""Pairs of an expert and a place that are compared at a time; bounds the workspace."""
ABOVE_DROPPED = 2 * LAST
"""Key of NaN where dropped experts come behind it."""
DROPPED_CLASS = LIMIT_CLASS + 3
"""Tie class of dropped experts there."""
MAX_SETS = 128
"""Sets of groups that are tried one by one; with more of them such a row is left open."""


@dataclass(frozen=True)
class Ranking:
    """What is known of the experts' order.

    Attributes
    ----------
    low, high : Tensor
        ``[R, E]`` float64: bounds of the ranking scores.
    classes : Tensor, optional
        ``[R, E]`` int64: provable ties, None where they may come in any order.
    """

    low: torch.Tensor
    high: torch.Tensor
    classes: torch.Tensor | None

    def take(self, index: torch.Tensor) -> Ranking:
        """Return some of the rows."""
        classes = None if self.classes is None else self.classes[index]
        return Ranking(self.low[index], self.high[index], classes)

    def within(self, kept: torch.Tensor) -> Ranking:
        """Return the ranking with the experts of all groups but the kept ones, ``[R, G]``, as -inf."""
        mask = per_expert(kept, self.low.shape[1])
        classes = None if self.classes is None else torch.where(mask, self.classes, LIMIT_CLASS)
        return Ranking(torch.where(mask, self.low, LAST), torch.where(mask, self.high, LAST), classes)

    def without(self, dropped: torch.Tensor) -> Ranking:
        """Return the ranking with the experts of the dropped groups, ``[R, G]``, behind those of NaN."""
        mask = per_expert(dropped, self.low.shape[1])
        classes = None if self.classes is None else torch.where(mask, DROPPED_CLASS, self.classes)
        low, high = (v.clamp(min=ABOVE_DROPPED).masked_fill_(mask, -torch.inf) for v in (self.low, self.high))
        return Ranking(low, high, classes)

    def either(self, kept: torch.Tensor) -> Ranking:
        """Return the ranking that leaves open what dropped experts count as, `within` or `without`."""
        inside, outside = self.within(kept), self.without(~kept)
        low, high = torch.minimum(inside.low, outside.low), torch.maximum(inside.high, outside.high)
        return Ranking(low, high, outside.classes)

    def misplaced(self, chosen: torch.Tensor) -> torch.Tensor:
        """Return ``[R, E]``: experts left out that are certainly better than one taken."""
        worst = self.high.gather(1, chosen).amin(1, keepdim=True)
        wrong = self.low > worst
        if self.classes is not None:
            index = numbers(self.low.shape[1], self.low.device)
            picked = self.classes.gather(1, chosen)
            places = max(1, CELLS // max(1, self.low.numel()))
            for ids, tied in zip(chosen.split(places, 1), picked.split(places, 1), strict=True):
                ahead = (self.classes[:, None] == tied[:, :, None]) & (index < ids[:, :, None])
                wrong |= ahead.any(1)
        return wrong.scatter_(1, chosen, False)

    def in_order(self, chosen: torch.Tensor) -> torch.Tensor:
        """Say for each row whether no later place is certainly better than an earlier one."""
        low, high = self.low.gather(1, chosen), self.high.gather(1, chosen)
        wrong = low[:, None, :] > high[:, :, None]
        if self.classes is not None:
            classes = self.classes.gather(1, chosen)
            wrong |= (classes[:, None, :] == classes[:, :, None]) & (chosen[:, None, :] < chosen[:, :, None])
        return ~wrong.triu(1).flatten(1).any(1)

    def explains(self, chosen: torch.Tensor) -> torch.Tensor:
        """Say for each row whether the choice and its order are possible."""
        return ~self.misplaced(chosen).any(1) & self.in_order(chosen)

    def explains_with(self, kept: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Say the same with only some groups kept, ``[R, G]``.

        Dropped experts count as -inf, or are out: where kept groups lack numbers, either is possible.
        """
        return self.within(kept).explains(chosen) | self.without(~kept).explains(chosen)


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
    ranking = Ranking(*rows.interval(params.scoring), rows.tie_classes() if ties else None)
    if kept is None:
        return ranking.explains(chosen)
    better = better_groups(rows, ranking, params)
    fine = ranking.explains_with(kept, chosen)
    vague = (~certain(better, kept)).nonzero().flatten()
    if len(vague):
        some = ranking.take(vague)
        fine[vague] = _any_groups(rows.take(vague), some, better[vague], chosen[vague], params)
    return fine


def _any_groups(
    rows: Rows, ranking: Ranking, better: torch.Tensor, chosen: torch.Tensor, params: GateParams
) -> torch.Tensor:
    """Say for each row whether some set of groups, closed under "certainly better", explains the ids."""
    groups, wanted = params.num_expert_group, params.topk_group
    needed = torch.zeros_like(better[:, 0]).scatter_(1, chosen // (rows.key.shape[1] // groups), True)
    smallest = needed | (better & needed[:, None, :]).any(2)
    harmless = ~ranking.misplaced(chosen).view(len(chosen), groups, -1).any(2)
    largest = harmless & ~(better & ~harmless[:, :, None]).any(1)
    fine = ~(smallest & ~largest).any(1) & (smallest.sum(1) <= wanted) & (largest.sum(1) >= wanted)
    fine &= ranking.in_order(chosen)
    # Where dropped experts fill places, a place tells nothing of its group: the sets are tried one by one.
    filled = may_starve(rows, better, params).nonzero().flatten()
    if len(filled):
        fine[filled] = _each_set(ranking.take(filled), better[filled], chosen[filled], params)
    return fine


def _each_set(ranking: Ranking, better: torch.Tensor, chosen: torch.Tensor, params: GateParams) -> torch.Tensor:
    """Try all sets of groups."""
    groups, wanted = params.num_expert_group, params.topk_group
    fine = torch.zeros(len(chosen), dtype=torch.bool, device=chosen.device)
    if math.comb(groups, wanted) > MAX_SETS:
        return ~fine
    for members in itertools.combinations(range(groups), wanted):
        kept = torch.zeros(groups, dtype=torch.bool, device=chosen.device)
        kept[list(members)] = True
        closed = ~(better & ~kept[:, None] & kept).flatten(1).any(1)
        fine |= closed & ranking.explains_with(kept.expand(len(chosen), -1), chosen)
    return fine


def may_starve(rows: Rows, better: torch.Tensor, params: GateParams) -> torch.Tensor:
    """Return ``[R]``: rows in which dropped experts fill places, for some set of groups that may be kept."""
    possible = better.sum(1) < params.topk_group
    counts = torch.where(possible, finite_counts(rows, params.num_expert_group), rows.key.shape[1])
    return counts.topk(params.topk_group, largest=False).values.sum(1) < params.routed


def certain(better: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return ``[R]``: rows in which each kept group is certainly better than each dropped one."""
    return (better | ~kept[:, :, None] | kept[:, None, :]).flatten(1).all(1)


def better_groups(rows: Rows, ranking: Ranking, params: GateParams) -> torch.Tensor:
    """Return ``[R, G, G]``: whether group a is certainly better than group b."""
    groups = params.num_expert_group
    score, members = top_two(rows, groups)
    key = rank_key(score)
    count, _, size = members.shape
    exact = ~score.isfinite()
    low, high = (v.view(count, groups, -1).topk(size, dim=2).values.sum(2) for v in (ranking.low, ranking.high))
    if size > 1:
        rounding = U * score.abs() + TINY
        low, high = low - rounding, high + rounding
        # The sum of two finite float32 scores may overflow.
        low, high = torch.where(low < -FLOAT_MAX, LAST, low), torch.where(high > FLOAT_MAX, torch.inf, high)
    low, high = torch.where(exact, key, low), torch.where(exact, key, high)
    better = low[:, :, None] > high[:, None, :]
    if ranking.classes is not None:
        # a + b rounds like b + a: the two members are an unordered pair.
        flat = members.reshape(count, -1)
        pair = ranking.classes.gather(1, flat).view(members.shape).sort(2).values
        same = (pair[:, :, None] == pair[:, None]).all(3) & (exact[:, :, None] == exact[:, None, :])
        sure = _determined(ranking, members) & ~exact
        tied = torch.where(
            exact[:, :, None],
            exact[:, None, :] & (key[:, :, None] == key[:, None, :]),
            same & sure[:, :, None],
        )
        tied &= sure[:, None, :] | exact[:, None, :]
        index = numbers(groups, score.device)
        better |= tied & (index[:, None] < index)
    return better


def _determined(ranking: Ranking, members: torch.Tensor) -> torch.Tensor:
    """Return ``[R, G]``: whether the values of a group's best two are the same in every evaluation."""
    count, groups, _ = members.shape
    flat = members.reshape(count, -1)
    assert ranking.classes is not None
    second = ranking.classes.gather(1, members[:, :, -1])
    same = ranking.classes.view(count, groups, -1) == second[:, :, None]
    others = ranking.high.scatter(1, flat, -torch.inf).view(count, groups, -1)
    rest = torch.where(same, -torch.inf, others).amax(2)
    worst = ranking.low.gather(1, flat).view(members.shape).amin(2)
    return (worst > rest) | (rest == -torch.inf)
