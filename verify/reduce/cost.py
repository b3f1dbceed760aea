"""What makes one case smaller than another."""

from __future__ import annotations

import math
from typing import Any

from moeproof.strategies.case import Case

from .literal import tokens, values_of

PLAIN: dict[str, Any] = {
    "scoring": "sigmoid",
    "num_expert_group": 1,
    "topk_group": 1,
    "renormalize": False,
    "routed_scaling_factor": 1.0,
    "apply_routed_scaling_factor_on_output": False,
    "num_fused_shared_experts": 0,
}
"""The plain value of each flag of fused_gate."""
OPTIONAL = ("bias", "num_token_non_padded", "expert_map")


def cost(case: Case) -> tuple[Any, ...]:
    """Return a key: the smaller, the better the case. Rows come first, then sizes, flags, and values."""
    recipes = sum(spec.recipe is not None for spec in case.tensors.values())
    layouts = sum((spec.strides is not None) + (spec.offset > 0) for spec in case.tensors.values())
    narrow = sum(spec.dtype in ("bfloat16", "float16", "int64") for spec in case.tensors.values())
    extra = sum(name in case.tensors for name in OPTIONAL)
    flags = sum(name in case.params and case.params[name] != value for name, value in PLAIN.items())
    distinct = sum(len(values_of(spec)) for spec in case.tensors.values())
    finite = (v for spec in case.tensors.values() for v in values_of(spec) if math.isfinite(v))
    magnitude = sum(min(abs(v), 1e6) for v in finite)
    values = [len(repr(spec.rows)) for spec in case.tensors.values() if spec.rows is not None]
    if case.op == "fused_gate":
        sizes = (tokens(case), case.tensors["logits"].shape[1], case.params["topk"])
    elif case.op == "moe_align_block_size":
        rows, topk = case.tensors["topk_ids"].shape
        sizes = (rows * topk, topk, case.params["num_experts"], case.params["block_size"])
    else:
        shared = int(case.params.get("num_fused_shared_experts", 1))
        sizes = (tokens(case), case.tensors["topk_ids"].shape[1], shared, case.params["num_experts"])
    return (*sizes, extra + flags + layouts + narrow, recipes, distinct, sum(values), magnitude)
