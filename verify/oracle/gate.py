"""The oracle of fused_gate.

A row whose ids equal the float64 selection is right at once. The other rows are judged by intervals: an
expert is *certainly better* than another if its whole score interval lies above, or if both are *provably
tied* (same logit and same bias, or the same non-finite score) and its id is lower. A result fails only where
something certainly better was left out or placed later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .gate_explain import explain_ids, explain_weight
from .gate_rank import admissible
from .gate_rows import GateParams, GateRules, Rows, gold_groups, gold_ids, is_gold, kept_key, numbers, score_rows
from .gate_weights import weight_bounds

__all__ = [
    "Failures",
    "GateParams",
    "GateRules",
    "gold_groups",
    "gold_ids",
    "judge_gate",
    "score_rows",
    "weight_bounds",
]

Tensors = Mapping[str, torch.Tensor]

CHUNK = 1 << 23
"""Scores judged at a time; bounds the float64 workspace."""


CHECKS = ("ids_invalid", "nan_policy", "selection", "tie_order", "weights")


@dataclass
class Failures:
    """Failing rows by check, and a way to put the first of each into words; both empty where all rows are right."""

    masks: dict[str, torch.Tensor]
    explain: dict[str, Any]


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
    params = GateParams.of(args)
    count, experts = args["logits"].shape
    step = max(1, CHUNK // max(1, experts))
    if count <= step:
        return _judge_chunk(args, outputs, params, rules, 0)
    parts = []
    for start in range(0, count, step):
        part = slice(start, start + step)
        some = {name: value[part] for name, value in outputs.items()}
        parts.append(_judge_chunk({**args, "logits": args["logits"][part]}, some, params, rules, start))
    failing = [(number, part) for number, part in enumerate(parts) if part.masks]
    if not failing:
        return Failures({}, {})
    masks = {name: torch.zeros(count, dtype=torch.bool, device=args["logits"].device) for name in CHECKS}
    for number, part_failures in failing:
        for name, mask in part_failures.masks.items():
            masks[name][number * step : (number + 1) * step] = mask
    return Failures(masks, {name: _shifted({n: p.explain[name] for n, p in failing}, step) for name in CHECKS})


def _shifted(explains: dict[int, Any], step: int) -> Any:
    return lambda row: explains[row // step](row % step)


@dataclass(frozen=True)
class _Judged:
    """A block of rows, and what is known of them.

    Attributes
    ----------
    ids, weights, chosen, picks : Tensor
        The outputs; routed ids after undoing the expert map, and the same brought into range.
    in_range, gold : Tensor
        ``[R]`` bool: rows whose routed ids are in range and whose shared ids are right; rows with the ids that float64
        gives.
    low, high, wrong : Tensor
        ``[R, k]``: bounds of weights, and weights outside them.
    rows, kept
        The rows scored, and the groups kept.
    valid : Tensor, optional
        ``[R]`` bool: rows that are not padding; None if none is.
    params : GateParams
        The plain arguments.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    chosen: torch.Tensor
    picks: torch.Tensor
    in_range: torch.Tensor
    gold: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    wrong: torch.Tensor
    rows: Rows
    kept: torch.Tensor | None
    valid: torch.Tensor | None
    params: GateParams

    def all_right(self) -> bool:
        """Say whether all rows hold the ids that float64 gives, with right weights."""
        right = self.in_range & self.gold
        if self.valid is not None:
            right = torch.where(self.valid, right, self.all_minus_one())
        return not bool((self.wrong | ~right[:, None]).any())

    def all_minus_one(self) -> torch.Tensor:
        """Return ``[R]`` bool: rows as padding must be."""
        return (self.ids == -1).all(1)

    def failures(self, rules: GateRules) -> Failures:
        """Return the rows that are wrong, by check."""
        ordered = self.picks.sort(1).values
        ids_ok = self.in_range & (ordered[:, 1:] != ordered[:, :-1]).all(1)
        suspect = ids_ok & ~self.gold
        if self.valid is not None:
            ids_ok = torch.where(self.valid, ids_ok, self.all_minus_one())
            suspect &= self.valid
        suspects = suspect.nonzero().flatten()
        nothing = torch.zeros_like(ids_ok)
        masks = dict.fromkeys(CHECKS, nothing)
        masks["ids_invalid"] = ~ids_ok
        judged = ids_ok
        if len(suspects):
            some_kept = None if self.kept is None else self.kept[suspects]
            wrong = _wrong_ids(self.rows.take(suspects), some_kept, self.picks[suspects], self.params, rules)
            for name, mask in wrong.items():
                masks[name] = nothing.clone().index_put_((suspects,), mask)
                judged = judged & ~masks[name]
        wrong_weights = judged & self.wrong.any(1)
        spoiled = wrong_weights & (self.wrong & self.weights.isnan()).any(1)
        if self.valid is not None:
            spoiled &= self.valid
        about = _About(self, masks["nan_policy"])
        masks["nan_policy"] = masks["nan_policy"] | spoiled
        masks["weights"] = wrong_weights & ~spoiled
        explain = {"nan_policy": about.nan, "weights": about.weights_of}
        return Failures(masks, {name: explain.get(name, about.ids_of) for name in masks})


def _judge_chunk(
    args: Mapping[str, Any], outputs: Tensors, params: GateParams, rules: GateRules, start: int
) -> Failures:
    """Judge rows whose first has number `start`."""
    logits, ids, weights = args["logits"], outputs["indices"], outputs["weights"]
    count, experts = logits.shape
    logical = unmap(ids.long(), args.get("expert_map"))
    shared = params.num_fused_shared_experts
    chosen = logical[:, : params.routed] if shared else logical
    picks = chosen.clamp(0, experts - 1)
    in_range = (chosen == picks).all(1)
    if shared:
        in_range &= (logical[:, params.routed :] == numbers(experts + shared, ids.device)[experts:]).all(1)
    valid = _valid(args.get("num_token_non_padded"), start, count, logits.device)
    rows = score_rows(logits, args.get("bias"), params)
    kept = gold_groups(rows, params) if params.num_expert_group > 1 else None
    low, high = weight_bounds(rows, kept, picks, params, rules)
    if valid is not None:
        padded = ~valid[:, None]
        low.masked_fill_(padded, 0.0)
        high.masked_fill_(padded, 0.0)
    wide = weights.double()
    fits = (wide >= low).logical_and_(wide <= high)
    if params.may_be_open or rules.unranked == "any":
        fits.logical_or_(low == -torch.inf)
    gold = is_gold(kept_key(rows, kept), picks)
    judged = _Judged(
        ids, weights, chosen, picks, in_range, gold, low, high, fits.logical_not_(), rows, kept, valid, params
    )
    return Failures({}, {}) if judged.all_right() else judged.failures(rules)


def _valid(limit: torch.Tensor | None, start: int, count: int, device: torch.device) -> torch.Tensor | None:
    """Return ``[R]``: rows that are not padding; None if all are."""
    if limit is None:
        return None
    return numbers(count, device) < limit.reshape(()) - start


def _wrong_ids(
    rows: Rows, kept: torch.Tensor | None, picks: torch.Tensor, params: GateParams, rules: GateRules
) -> dict[str, torch.Tensor]:
    """Return masks of the rows whose ids no float32 evaluation gives, by check."""
    ties = rules.tie_order == "lower_id"
    wrong = ~admissible(rows, kept, picks, params, ties=ties)
    where = wrong.nonzero().flatten()
    if not len(where):
        return {}
    only_ties = torch.zeros_like(wrong)
    if ties:
        some_kept = None if kept is None else kept[where]
        only_ties[where] = admissible(rows.take(where), some_kept, picks[where], params, ties=False)
    takes_nan = rows.c.gather(1, picks).isnan().any(1)
    rest = wrong & ~only_ties
    if rules.unranked == "any":  # of a row that takes a NaN, no tie is judged
        only_ties &= ~takes_nan
    return {"tie_order": only_ties, "nan_policy": rest & takes_nan, "selection": rest & ~takes_nan}


@dataclass(frozen=True)
class _About:
    """What it takes to put a wrong row into words."""

    judged: _Judged
    takes_nan: torch.Tensor

    def ids_of(self, row: int) -> str:
        """Explain wrong ids."""
        j, one = self.judged, slice(row, row + 1)
        gold = gold_ids(j.rows.take(one), None if j.kept is None else j.kept[one], j.params)[0]
        ids, chosen = j.ids[row].tolist(), j.chosen[row].tolist()
        return explain_ids(ids, chosen, gold.tolist(), j.rows.c[row], self._valid(row))

    def weights_of(self, row: int) -> str:
        """Explain a wrong weight."""
        j = self.judged
        weights, low, high, ids = (t[row].tolist() for t in (j.weights, j.low, j.high, j.ids))
        return explain_weight(weights, low, high, ids, self._valid(row))

    def nan(self, row: int) -> str:
        """Explain a NaN that took a place, or reached a weight."""
        return self.ids_of(row) if bool(self.takes_nan[row]) else self.weights_of(row)

    def _valid(self, row: int) -> bool:
        return self.judged.valid is None or bool(self.judged.valid[row])


def unmap(ids: torch.Tensor, expert_map: torch.Tensor | None) -> torch.Tensor:
    """Return logical ids for physical ones; -1 where nothing maps to an id. Maps are one to one."""
    if expert_map is None:
        return ids
    physical, logical = expert_map.long().sort()
    at = torch.searchsorted(physical, ids.contiguous()).clamp(max=len(physical) - 1)
    return torch.where(physical[at] == ids, logical[at], -1)
