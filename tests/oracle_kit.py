"""Shared by the tests of the oracle of fused_gate."""

from __future__ import annotations

import math
from typing import Any

import torch
from zoo.right import Gate32

from moeproof.strategies.domain import GateDomain
from moeproof.verify.oracle.gate import (
    GateParams,
    GateRules,
    gold_groups,
    judge_gate,
    score_rows,
    weight_bounds,
)

NAN, INF = math.nan, math.inf
Args = dict[str, Any]
Outputs = dict[str, torch.Tensor]
DOMAIN = GateDomain(experts=range(1, 257), topk=range(1, 17), tokens=range(513))


def f32(*rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def i32(*rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int32)


def failed(args: Args, outputs: Outputs, rules: GateRules | None = None) -> set[str]:
    """Return the classes of checks that fail in any row."""
    failures = judge_gate(args, outputs, rules or GateRules())
    found = {name for name, mask in failures.masks.items() if bool(mask.any())}
    for name in found:
        assert failures.explain[name](int(failures.masks[name].nonzero()[0]))
    return found


def checks_of_ids(logits: torch.Tensor, ids: list[int], rules: GateRules | None = None, **args: Any) -> set[str]:
    """Judge the ids of one row; weights are the middle of what is allowed for them."""
    params = GateParams(**{"topk": len(ids)} | {k: v for k, v in args.items() if k != "bias"})
    rows = score_rows(logits, args.get("bias"), params)
    kept = gold_groups(rows, params) if params.num_expert_group > 1 else None
    low, high = weight_bounds(rows, kept, torch.tensor([ids]), params, rules or GateRules())
    weights = ((low + high) / 2).nan_to_num(0).float()
    return failed({"logits": logits, "topk": len(ids), **args}, {"indices": i32(ids), "weights": weights}, rules)


def evaluate(kind: type[Gate32], args: Args) -> Outputs:
    shape = (args["logits"].shape[0], args["topk"])
    outputs = {"weights": torch.empty(shape), "indices": torch.empty(shape, dtype=torch.int32)}
    kind(args, outputs, DOMAIN).run()
    return outputs
