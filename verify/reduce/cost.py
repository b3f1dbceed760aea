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
    distinct = [values_of(spec) for spec in case.tensors.values()]
    odd = sum(is_odd(value) for found in distinct for value in found)
    magnitude = sum(min(abs(v), 1e6) for found in distinct for v in found if math.isfinite(v))
    values = [len(repr(spec.rows)) for spec in case.tensors.values() if spec.rows is not None]
    if case.op == "fused_gate":
        sizes: tuple[Any, ...] = (tokens(case), case.tensors["logits"].shape[1], case.params["topk"])
    elif case.op == "moe_align_block_size":
        rows, topk = case.tensors["topk_ids"].shape
        sizes = (rows * topk, topk, case.params["num_experts"], case.params["block_size"])
    else:
        shared = int(case.params.get("num_fused_shared_experts", 1))
        sizes = (tokens(case), case.tensors["topk_ids"].shape[1], shared, case.params["num_experts"])
    unlike = extra + flags + layouts + narrow
    return (*sizes, unlike, recipes, odd, sum(map(len, distinct)), sum(values), magnitude)


def is_odd(value: float) -> bool:
    """Say whether a literal is one that kernels treat apart: NaN, infinite, or a negative id."""
    return value < 0 if isinstance(value, int) else not math.isfinite(value)
