"""Why a case lies outside a domain: one sentence with the argument, its value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from .case import Case, TensorSpec
from .contents import holds_inf, holds_nan, marked_values
from .domain import SCORINGS, AlignDomain, AppendDomain, Domain, GateDomain
from .layouts import layouts_of

GATE_DEFAULTS: dict[str, Any] = {
    "scoring": "sigmoid",
    "num_expert_group": 1,
    "topk_group": 1,
    "renormalize": True,
    "routed_scaling_factor": 1.0,
    "apply_routed_scaling_factor_on_output": False,
    "num_fused_shared_experts": 0,
}
"""Values of the params of `fused_gate` that a case may leave out (docs/contracts.md)."""
MAPPED_DTYPE = "int32"


def why_outside(case: Case, domain: Domain) -> str | None:
    """Say why a case is outside a domain, or None if it is inside.

    Parameters
    ----------
    case : Case
        Any case; one that breaks the op's contract is outside every domain.
    domain : Domain
        The domain of a subject of the case's op.

    Returns
    -------
    str or None
        One sentence: the argument, its value, what is allowed.

    Raises
    ------
    ValueError
        If the domain is not one of the case's op.
    """
    reasons: Iterator[str]
    if case.op == "fused_gate" and isinstance(domain, GateDomain):
        reasons = _gate(case, domain)
    elif case.op == "moe_align_block_size" and isinstance(domain, AlignDomain):
        reasons = _align(case, domain)
    elif case.op == "append_shared_experts" and isinstance(domain, AppendDomain):
        reasons = _append(case, domain)
    else:
        raise ValueError(f"domain is a {type(domain).__name__}; allowed: the domain of {case.op}")
    reason = next(reasons, None)
    if reason is None and domain.extra is not None:
        reason = domain.extra(case)
    return reason


def allowed_text(allowed: Collection[Any]) -> str:
    """Return what is allowed as an error message says it."""
    if isinstance(allowed, range) and allowed.step == 1 and len(allowed) > 2:
        return f"{allowed[0]} to {allowed[-1]}"
    return ", ".join(map(str, allowed)) or "nothing"


# Checks are generators: the first reason ends them, so a later line may rely on what earlier ones checked.


def _known(case: Case, params: Collection[str], tensors: Collection[str], optional: Collection[str]) -> Iterator[str]:
    for name in tensors:
        if name not in case.tensors:
            yield f"{name} is missing; allowed: a tensor"
    for name in case.tensors:
        if name not in (*tensors, *optional):
            yield f"{name} is given; allowed: {', '.join((*tensors, *optional))}"
    for name in case.params:
        if name not in params:
            yield f"{name} is given; allowed: {', '.join(params)}"


def _one_of(name: str, value: Any, allowed: Collection[Any]) -> Iterator[str]:
    # `True in (1,)` holds, so types are compared too.
    kinds = {type(a) for a in allowed} if not isinstance(allowed, range) else {int}
    if type(value) not in kinds or value not in allowed:
        yield f"{name} is {value!r}; allowed: {allowed_text(allowed)}"


def _tensor(name: str, spec: TensorSpec, dtypes: Collection[str], dims: int, layouts: Sequence[str]) -> Iterator[str]:
    if spec.dtype not in dtypes:
        yield f"{name}.dtype is {spec.dtype}; allowed: {allowed_text(dtypes)}"
    if len(spec.shape) != dims:
        yield f"{name}.shape is {spec.shape}; allowed: {dims} dimensions"
    for layout in sorted(layouts_of(spec) - set(layouts)):
        yield f"{name} is {layout} ({spec.strides}, offset {spec.offset}); allowed: {allowed_text(layouts)}"


def _gate(case: Case, d: GateDomain) -> Iterator[str]:
    params = {**GATE_DEFAULTS, **case.params}
    optional = ("bias", "num_token_non_padded", "expert_map")
    yield from _known(case, ("topk", *GATE_DEFAULTS), ("logits",), optional)
    logits = case.tensors["logits"]
    yield from _tensor("logits", logits, d.logits_dtypes, 2, d.layouts)
    tokens, experts = logits.shape
    yield from _one_of("the number of tokens", tokens, d.tokens)
    yield from _one_of("the number of experts", experts, d.experts)
    shared, topk = params["num_fused_shared_experts"], params.get("topk")
    yield from _one_of("num_fused_shared_experts", shared, d.shared)
    yield from _one_of("topk", topk, d.topk)
    if not 1 <= topk - shared <= experts:
        yield f"topk is {topk} with {shared} shared experts; allowed: {shared + 1} to {shared + experts}"
    yield from _gate_groups(params, experts, topk - shared, d)
    yield from _gate_flags(params, d)
    yield from _gate_bias(case, logits, d)
    for name in ("logits", "bias"):
        if name in case.tensors and not d.nan and holds_nan(case.tensors[name]):
            yield f"{name} holds NaN; allowed: numbers"
        if name in case.tensors and not d.inf and holds_inf(case.tensors[name]):
            yield f"{name} holds an infinity; allowed: finite numbers"
    yield from _non_padded(case, d.padding)
    if "expert_map" in case.tensors:
        yield from _expert_map(case.tensors["expert_map"], experts + shared, d.expert_map)


def _gate_groups(params: dict[str, Any], experts: int, routed: int, d: GateDomain) -> Iterator[str]:
    groups, kept = params["num_expert_group"], params["topk_group"]
    if type(groups) is not int or groups < 1 or experts % groups:
        yield f"num_expert_group is {groups!r}; allowed: a divisor of the {experts} experts"
    if type(kept) is not int or not 1 <= kept <= groups:
        yield f"topk_group is {kept!r}; allowed: 1 to {groups}"
    size = experts // groups
    if isinstance(d.groups, tuple) and (groups, kept) not in d.groups:
        yield f"(num_expert_group, topk_group) is {(groups, kept)}; allowed: {allowed_text(d.groups)}"
    if d.groups == "none" and groups != 1:
        yield f"num_expert_group is {groups}; allowed: 1"
    if d.groups == "any" and groups > d.max_groups:
        yield f"num_expert_group is {groups}; allowed: 1 to {d.max_groups}"
    if d.groups == "any" and size > d.max_experts_per_group:
        yield f"the number of experts a group is {size}; allowed: 1 to {d.max_experts_per_group}"
    if kept * size < routed:
        yield f"topk_group is {kept}, which keeps {kept * size} experts; allowed: at least {routed} experts"
    if d.max_routed is not None and (most := d.max_routed(groups, kept)) < routed:
        yield f"topk leaves {routed} routed places with {kept} of {groups} groups kept; allowed: up to {most}"


def _gate_flags(params: dict[str, Any], d: GateDomain) -> Iterator[str]:
    yield from _one_of("scoring", params["scoring"], [s for s in SCORINGS if s in d.scorings])
    yield from _one_of("renormalize", params["renormalize"], d.renormalize)
    on_output = params["apply_routed_scaling_factor_on_output"]
    yield from _one_of("apply_routed_scaling_factor_on_output", on_output, d.scale_on_output)
    factor = params["routed_scaling_factor"]
    if type(factor) not in (int, float) or not (math.isfinite(factor) and factor > 0):
        yield f"routed_scaling_factor is {factor!r}; allowed: a finite number > 0"
    if not d.scale and factor != 1:
        yield f"routed_scaling_factor is {factor!r}; allowed: 1.0"


def _gate_bias(case: Case, logits: TensorSpec, d: GateDomain) -> Iterator[str]:
    bias = case.tensors.get("bias")
    if bias is None:
        if d.bias == "required":
            yield "bias is missing; allowed: a tensor"
        return
    if d.bias == "none":
        yield "bias is given; allowed: none"
    yield from _tensor("bias", bias, d.bias_dtypes, 1, ("contiguous",))
    if d.bias_same_dtype and bias.dtype != logits.dtype:
        yield f"bias.dtype is {bias.dtype}; allowed: that of logits, {logits.dtype}"
    if bias.shape != logits.shape[1:]:
        yield f"bias.shape is {bias.shape}; allowed: {logits.shape[1:]}"


def _non_padded(case: Case, supported: bool) -> Iterator[str]:
    spec = case.tensors.get("num_token_non_padded")
    if spec is None:
        return
    if not supported:
        yield "num_token_non_padded is given; allowed: none"
    if spec.dtype != "int32" or spec.shape not in ((), (1,)):
        yield f"num_token_non_padded is {spec.dtype} {spec.shape}; allowed: int32 () or (1,)"


def _expert_map(spec: TensorSpec, count: int, supported: bool) -> Iterator[str]:
    if not supported:
        yield "expert_map is given; allowed: none"
    yield from _tensor("expert_map", spec, (MAPPED_DTYPE,), 1, ("contiguous",))
    if spec.shape != (count,):
        yield f"expert_map.shape is {spec.shape}; allowed: {(count,)}"


def _align(case: Case, d: AlignDomain) -> Iterator[str]:
    yield from _known(case, ("num_experts", "block_size"), ("topk_ids",), ("expert_map",))
    ids = case.tensors["topk_ids"]
    yield from _tensor("topk_ids", ids, d.ids_dtypes, 2, d.layouts)
    experts = case.params.get("num_experts")
    yield from _one_of("num_experts", experts, d.experts)
    yield from _one_of("block_size", case.params.get("block_size"), d.block_sizes)
    tokens, topk = ids.shape
    yield from _one_of("the number of tokens", tokens, d.tokens)
    yield from _one_of("topk", topk, d.topk)
    if tokens * topk > d.max_ids:
        yield f"topk_ids has {tokens * topk} ids; allowed: up to {d.max_ids}"
    if type(experts) is int:
        yield from _id_values(ids, experts, d)
        if "expert_map" in case.tensors:
            yield from _expert_map(case.tensors["expert_map"], experts, d.expert_map)
            yield from _mapped_values(case.tensors["expert_map"], experts)


def _id_values(ids: TensorSpec, experts: int, d: AlignDomain) -> Iterator[str]:
    for value in marked_values(ids):
        if value == -1 and not d.minus_one:
            yield f"topk_ids holds -1; allowed: 0 to {experts - 1}"
        if not -1 <= value < experts and not d.out_of_range:
            yield f"topk_ids holds {value}; allowed: -1 to {experts - 1}"
    drawn_from = (ids.recipe or {}).get("num_experts", 0)
    if math.prod(ids.shape) and drawn_from > experts and not d.out_of_range:
        yield f"topk_ids holds ids of {drawn_from} experts; allowed: -1 to {experts - 1}"


def _mapped_values(spec: TensorSpec, experts: int) -> Iterator[str]:
    recipe = spec.recipe or {}
    largest = max([*marked_values(spec), recipe.get("size", 0) - 1, recipe.get("count", 0) - 1], default=-1)
    smallest = min(marked_values(spec), default=0)
    if largest >= experts or smallest < -1:
        wrong = largest if largest >= experts else smallest
        yield f"expert_map holds {wrong}; allowed: -1 to {experts - 1}"


def _append(case: Case, d: AppendDomain) -> Iterator[str]:
    names = ("topk_ids", "topk_weights", "shared_weights")
    yield from _known(case, ("num_experts", "num_fused_shared_experts"), names, ("num_token_non_padded",))
    ids, weights, shared_weights = (case.tensors[n] for n in names)
    yield from _tensor("topk_ids", ids, d.ids_dtypes, 2, d.layouts)
    yield from _tensor("topk_weights", weights, d.weights_dtypes, 2, d.layouts)
    tokens, topk = ids.shape
    if weights.shape != ids.shape:
        yield f"topk_weights.shape is {weights.shape}; allowed: that of topk_ids, {ids.shape}"
    yield from _one_of("the number of tokens", tokens, d.tokens)
    yield from _one_of("topk", topk, d.topk)
    shared: Any = case.params.get("num_fused_shared_experts", 1)
    yield from _one_of("num_fused_shared_experts", shared, d.shared)
    experts = case.params.get("num_experts")
    if type(experts) is not int or not 0 <= experts <= 2**31 - shared:
        yield f"num_experts is {experts!r}; allowed: 0 to {2**31 - shared}"
    forms = {"matrix": (tokens, shared), "vector": (tokens,), "scalar": ()}
    shapes = [forms[f] for f in d.shared_forms]
    if shared_weights.shape not in shapes:
        yield f"shared_weights.shape is {shared_weights.shape}; allowed: {allowed_text(shapes)}"
    layouts = d.layouts if shared_weights.shape else ("contiguous", *d.layouts)
    yield from _tensor("shared_weights", shared_weights, d.shared_dtypes, len(shared_weights.shape), layouts)
    yield from _non_padded(case, d.padding)
