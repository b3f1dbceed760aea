"""How a script tells a wrong selection of fused_gate from one that float32 rounding explains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from moeproof.strategies.case import Case, plain

from .contract import arguments
from .oracle.gate import GateParams, gold_groups, gold_ids, score_rows
from .oracle.gate_rank import Ranking, better_groups, certain
from .subject import Subject

CHECKS = ("selection", "tie_order", "nan_policy")
"""Classes that are about which experts are chosen, and in which order."""


def rank_bounds(case: Case, subject: Subject, check: str, actual: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a script needs to judge ids, where a comparison with the expected ones could fail a right kernel.

    Parameters
    ----------
    case : Case
        A case of `fused_gate`.
    subject : Subject
        Says whether equal scores come by id.
    check : str
        The class of the violation.
    actual : mapping
        The outputs that were seen, as JSON data.

    Returns
    -------
    dict or None
        ``low`` and ``high``, ``[T, E]``: bounds of each expert's ranking score, −inf as −1e300, NaN below it, dropped
        experts from below NaN to −1e300; ``ties``, ``[T, E]``: equal where experts must come by id, or None. None in
        place of all where only one answer is right, or where the bounds would let the ids seen pass.
    """
    if case.op != "fused_gate" or check not in CHECKS or {"expert_map", "num_token_non_padded"} & case.tensors.keys():
        return None
    tensors, _ = case.build("cpu")
    args = arguments(case, tensors)
    params = GateParams.of(args)
    rows = score_rows(args["logits"], args.get("bias"), params)
    classes = rows.tie_classes() if subject.tie_order == "lower_id" else None
    ranking = Ranking(*rows.interval(params.scoring), classes)
    sure = torch.ones(len(rows.key), dtype=torch.bool)
    kept = None
    if params.num_expert_group > 1:
        kept = gold_groups(rows, params)
        sure = certain(better_groups(rows, ranking, params), kept)
        ranking = ranking.either(kept)
    chosen = gold_ids(rows, kept, params)
    if bool((sure & _only_answer(ranking, chosen)).all()):
        return None
    # Where float32 may keep other groups, nothing is certain.
    low = ranking.low.masked_fill(~sure[:, None], -torch.inf)
    high = ranking.high.masked_fill(~sure[:, None], torch.inf)
    ties = None
    if check == "tie_order" and ranking.classes is not None:
        ties = torch.where(sure[:, None], ranking.classes, torch.arange(low.shape[1]))
    seen = _ids(actual, low.shape[0], low.shape[1], params)
    if seen is None or bool(Ranking(low, high, ties).explains(seen).all()):
        return None
    return {
        "low": plain(low.tolist()),
        "high": plain(high.tolist()),
        "ties": None if ties is None else [torch.unique(row, return_inverse=True)[1].tolist() for row in ties],
        "routed": params.routed,
    }


def _ids(actual: Mapping[str, Any], tokens: int, experts: int, params: GateParams) -> torch.Tensor | None:
    """Return the routed ids that were seen, ``[T, k-S]`` int64; None if they are none."""
    ids = torch.tensor(actual.get("indices", ()), dtype=torch.long)
    if ids.shape != (tokens, params.topk) or not bool(((ids >= 0) & (ids < experts))[:, : params.routed].all()):
        return None
    return ids[:, : params.routed]


def _only_answer(ranking: Ranking, chosen: torch.Tensor) -> torch.Tensor:
    """Return ``[R]``: rows in which each chosen expert is certainly better than the next, the last than all others."""
    sure = torch.ones(len(chosen), dtype=torch.bool)
    for first, second in zip(chosen.split(1, 1), chosen.split(1, 1)[1:], strict=False):
        sure &= _better(ranking, first, second).squeeze(1)
    last = chosen[:, -1:]
    others = torch.arange(ranking.low.shape[1]).expand(len(chosen), -1)
    rest = _better(ranking, last, others).scatter(1, chosen, True)
    return sure & rest.all(1)


def _better(ranking: Ranking, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Say whether experts are certainly better than others, ids ``[R, 1]`` and ``[R, n]``."""
    better = ranking.low.gather(1, first) > ranking.high.gather(1, second)
    if ranking.classes is not None:
        tied = ranking.classes.gather(1, first) == ranking.classes.gather(1, second)
        better |= tied & (first < second)
    return better
