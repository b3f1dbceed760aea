"""What makes a case hard, as numbers that `hypothesis.target` can drive up."""

from __future__ import annotations

import math

import torch

from moeproof.strategies.case import Case

from .contract import arguments
from .oracle.gate import GateParams, gold_groups, score_rows
from .oracle.gate_rows import LAST, kept_key

MAX_ELEMENTS = 1 << 16
"""Larger cases are not looked at: that would cost more than they do."""
ROWS = 64
"""Rows of a gate case that are scored."""


def targets(case: Case) -> dict[str, float]:
    """Return what is worth more of, by name; empty where a case has none of it.

    Returns
    -------
    dict of str to float
        ``boundary nearness`` for `fused_gate`: −log2 of the smallest difference, other than 0, between the last score
        that is chosen and the first that is not. ``load imbalance`` for `moe_align_block_size`: the ids of the expert
        that has most, divided by the mean over the experts.
    """
    if not 0 < math.prod(case.main.shape) <= MAX_ELEMENTS:
        return {}
    if case.op == "fused_gate":
        return _boundary(case)
    if case.op == "moe_align_block_size":
        return _imbalance(case)
    return {}


def _boundary(case: Case) -> dict[str, float]:
    args = arguments(case, case.build("cpu")[0])
    params = GateParams.of(args)
    rows = score_rows(args["logits"][:ROWS], args.get("bias"), params)
    kept = gold_groups(rows, params) if params.num_expert_group > 1 else None
    if params.routed >= rows.key.shape[1]:
        return {}
    ranked = kept_key(rows, kept).topk(params.routed + 1, dim=1).values[:, -2:]
    gaps = ranked[:, 0] - ranked[:, 1]
    gaps = gaps[(gaps > 0) & gaps.isfinite() & (ranked[:, 1] > LAST)]
    return {"boundary nearness": -math.log2(float(gaps.min()))} if len(gaps) else {}


def _imbalance(case: Case) -> dict[str, float]:
    experts = int(case.params["num_experts"])
    ids = case.main.contents("cpu").flatten().long()
    counts = torch.bincount(ids[(ids >= 0) & (ids < experts)], minlength=experts)
    return {"load imbalance": int(counts.max()) * experts / int(counts.sum())} if int(counts.sum()) else {}
