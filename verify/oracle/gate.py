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
from .gate_rows import GateParams, GateRules, Rows, gold_groups, gold_ids, is_gold, kept_key, score_rows
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


@dataclass
class Failures:
    """Failing rows by check, and a way to put the first of each into words."""

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
    logits = args["logits"][part]
    ids, weights = outputs["indices"][part], outputs["weights"][part]
    count, experts = logits.shape
    logical = unmap(ids.long(), args.get("expert_map"))
    chosen = logical[:, : params.routed]
    picks = chosen.clamp(0, experts - 1)
    ids_ok = _well_formed(logical, picks, experts)
    valid = _valid(args.get("num_token_non_padded"), part.start, count, logits.device)
    if valid is not None:
        ids_ok = torch.where(valid, ids_ok, (ids == -1).all(1))

    rows = score_rows(logits, args.get("bias"), params)
    kept = gold_groups(rows, params) if params.num_expert_group > 1 else None
    suspect = ids_ok & ~is_gold(kept_key(rows, kept), picks)
    if valid is not None:
        suspect &= valid
    suspects = suspect.nonzero().flatten()
    nothing = torch.zeros_like(ids_ok)
    masks = dict.fromkeys(("ids_invalid", "nan_policy", "selection", "tie_order", "weights"), nothing)
    masks["ids_invalid"] = ~ids_ok
    judged = ids_ok
    if len(suspects):
        some_kept = None if kept is None else kept[suspects]
        wrong = _wrong_ids(rows.take(suspects), some_kept, picks[suspects], params, rules)
        for name, mask in wrong.items():
            masks[name] = nothing.clone().index_put_((suspects,), mask)
            judged = judged & ~masks[name]

    low, high = weight_bounds(rows, kept, picks, params, rules)
    if valid is not None:
        low, high = low.masked_fill(~valid[:, None], 0.0), high.masked_fill(~valid[:, None], 0.0)
    wrong_pair = ~((weights >= low) & (weights <= high)) & (low != -torch.inf)
    wrong_weights = judged & wrong_pair.any(1)
    spoiled = wrong_weights & (wrong_pair & weights.isnan()).any(1)
    if valid is not None:
        spoiled &= valid
    about = _About(ids, weights, chosen, low, high, rows, kept, valid, params, masks["nan_policy"])
    masks["nan_policy"] = masks["nan_policy"] | spoiled
    masks["weights"] = wrong_weights & ~spoiled
    explain = {"nan_policy": about.nan, "weights": about.weights_of}
    return Failures(masks, {name: explain.get(name, about.ids_of) for name in masks})


def _well_formed(logical: torch.Tensor, picks: torch.Tensor, experts: int) -> torch.Tensor:
    """Say for each row whether routed ids are in range and distinct, and shared ones as they must be."""
    routed = picks.shape[1]
    fine = logical[:, :routed] == picks
    if logical.shape[1] > routed:
        tail = torch.arange(experts, experts + logical.shape[1] - routed, device=logical.device)
        fine = torch.cat([fine, logical[:, routed:] == tail], 1)
    ordered = picks.sort(1).values
    return fine.all(1) & (ordered[:, 1:] != ordered[:, :-1]).all(1)


def _valid(limit: torch.Tensor | None, start: int, count: int, device: torch.device) -> torch.Tensor | None:
    """Return ``[R]``: rows that are not padding; None if all are."""
    if limit is None:
        return None
    return torch.arange(start, start + count, device=device) < limit.reshape(())


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
    return {"tie_order": only_ties, "nan_policy": rest & takes_nan, "selection": rest & ~takes_nan}


@dataclass(frozen=True)
class _About:
    """What it takes to put a wrong row into words."""

    ids: torch.Tensor
    weights: torch.Tensor
    chosen: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    rows: Rows
    kept: torch.Tensor | None
    valid: torch.Tensor | None
    params: GateParams
    takes_nan: torch.Tensor

    def ids_of(self, row: int) -> str:
        """Explain wrong ids."""
        one = slice(row, row + 1)
        gold = gold_ids(self.rows.take(one), None if self.kept is None else self.kept[one], self.params)[0]
        ids, chosen = self.ids[row].tolist(), self.chosen[row].tolist()
        return explain_ids(ids, chosen, gold.tolist(), self.rows.c[row], self._valid(row))

    def weights_of(self, row: int) -> str:
        """Explain a wrong weight."""
        weights, low, high, ids = (t[row].tolist() for t in (self.weights, self.low, self.high, self.ids))
        return explain_weight(weights, low, high, ids, self._valid(row))

    def nan(self, row: int) -> str:
        """Explain a NaN that took a place, or reached a weight."""
        return self.ids_of(row) if bool(self.takes_nan[row]) else self.weights_of(row)

    def _valid(self, row: int) -> bool:
        return self.valid is None or bool(self.valid[row])


def unmap(ids: torch.Tensor, expert_map: torch.Tensor | None) -> torch.Tensor:
    """Return logical ids for physical ones; -1 where nothing maps to an id. Maps are one to one."""
    if expert_map is None:
        return ids
    physical, logical = expert_map.long().sort()
    at = torch.searchsorted(physical, ids.contiguous()).clamp(max=len(physical) - 1)
    return torch.where(physical[at] == ids, logical[at], -1)
