"""Cases just outside a domain, in a respect that a host can see: a subject must refuse each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from . import align, append, gate
from .case import DTYPES, Case, TensorSpec
from .domain import SCORINGS, AlignDomain, AppendDomain, Domain, GateDomain
from .domain_check import why_outside
from .draws import Draw, composite, function_of
from .recipe import MAX_EXPERTS

MAX_ELEMENTS = 1 << 12
MAX_STEPPED = 1 << 22
"""Largest tensor that is made only to be one row too long."""
UNBOUNDED = 2**31 - 1
"""A domain that reaches this far has no edge to step over."""
UNKNOWN_SCORINGS = ("tanh", "")


def cases_outside(domain: Domain) -> st.SearchStrategy[tuple[Case, str]]:
    """Return a strategy of cases just outside a domain, each with the reason as `why_outside` gives it.

    Only what a host can tell from arguments, shapes, dtypes and strides is wrong, never the contents.

    Parameters
    ----------
    domain : Domain
        What the subject claims to support; its `extra` plays no part.
    """
    bare = replace(domain, extra=None)
    if isinstance(bare, GateDomain):
        budget = max(MAX_ELEMENTS, min(bare.experts))
        return _outside(bare, function_of(gate.cases(bare, max_elements=budget, presets=False)))
    if isinstance(bare, AlignDomain):
        return _outside(bare, function_of(align.cases(bare, max_elements=MAX_ELEMENTS, presets=False)))
    return _outside(bare, function_of(append.cases(bare, max_elements=MAX_ELEMENTS, presets=False)))


def steps_outside(case: Case, domain: Domain) -> Iterator[Case]:
    """Yield every variant of an inside case that one step takes out of the domain."""
    if isinstance(domain, GateDomain):
        return _gate(case, domain)
    if isinstance(domain, AlignDomain):
        return _align(case, domain)
    return _append(case, domain)


@composite
def _outside(draw: Draw, domain: Domain, inside: Callable[[Draw], Case]) -> tuple[Case, str]:
    found = list(steps_outside(inside(draw), domain))
    # Steps of one kind stand together, and the engine likes neighbours of what it drew before: stride over them.
    case = found[draw.integer(0, 2**16 - 1) * 40503 % len(found)]
    reason = why_outside(case, domain)
    if reason is None:
        raise AssertionError(f"a step out of the domain stayed inside: {case.dumps()}")
    return case, reason


def constant(dtype: str, shape: tuple[int, ...], value: float = 0) -> TensorSpec:
    """Return a contiguous tensor of one value, of any dtype and up to two dimensions."""
    row: Any = (value,) * shape[1] if len(shape) == 2 else value
    return TensorSpec(dtype, shape, rows=() if not math.prod(shape) else (row,))


def _other_dtypes(name: str, spec: TensorSpec, allowed: tuple[str, ...]) -> Iterator[dict[str, TensorSpec]]:
    for dtype in DTYPES:
        if dtype not in allowed:
            yield {name: constant(dtype, spec.shape)}


def _other_layouts(name: str, spec: TensorSpec, allowed: tuple[str, ...]) -> Iterator[dict[str, TensorSpec]]:
    """Yield the tensor in each layout that is not allowed and makes a difference at its shape."""
    if len(spec.shape) != 2 or min(spec.shape) < 2:
        return
    rows, columns = spec.shape
    plain = replace(spec, strides=None, offset=0)
    made = {
        "row_stride": replace(plain, strides=(columns + 1, 1)),
        "offset": replace(plain, offset=1),
        "transposed": replace(plain, strides=(1, rows)),
        "broadcast": replace(plain, strides=(0, 1)),
    }
    for layout, changed in made.items():
        if layout not in allowed:
            yield {name: changed}


def _more_rows(spec: TensorSpec, rows: int) -> TensorSpec:
    return replace(spec, shape=(rows, *spec.shape[1:]), strides=None, offset=0)


def _padding(case: Case, supported: bool) -> Iterator[Case]:
    if not supported:
        yield case.but(num_token_non_padded=constant("int32", ()))
        return
    yield case.but(num_token_non_padded=constant("int64", ()))
    yield case.but(num_token_non_padded=constant("float32", (1,)))
    yield case.but(num_token_non_padded=constant("int32", (2,)))


def _map(case: Case, count: int, supported: bool) -> Iterator[Case]:
    def identity(n: int, dtype: str = "int32") -> TensorSpec:
        return TensorSpec(dtype, (n,), recipe={"kind": "slice", "start": 0, "count": n})

    if not supported:
        yield case.but(expert_map=identity(count))
        return
    yield case.but(expert_map=identity(count - 1))
    yield case.but(expert_map=identity(count, "int64"))


def _gate(case: Case, d: GateDomain) -> Iterator[Case]:
    """Yield variants of an inside case, each wrong in one respect."""
    p, logits = case.params, case.tensors["logits"]
    experts, shared, groups = logits.shape[1], int(p["num_fused_shared_experts"]), int(p["num_expert_group"])
    topk, size = int(p["topk"]), logits.shape[1] // int(p["num_expert_group"])
    for k in (d.topk[-1] + 1, shared + experts + 1, shared, 0, -1):
        if k not in d.topk or not 1 <= k - shared <= experts:
            yield case.but(topk=k)
    for s in (topk, d.shared[-1] + 1, -1):
        if s not in d.shared or s >= topk:
            yield case.but(num_fused_shared_experts=s, expert_map=None)
    yield case.but(num_expert_group=next(g for g in range(2, experts + 2) if experts % g))
    yield case.but(num_expert_group=0)
    yield case.but(topk_group=0)
    yield case.but(topk_group=groups + 1)
    kept = (topk - shared - 1) // size
    if kept >= 1 and d.groups == "any":
        yield case.but(topk_group=kept)
    for scoring in (*UNKNOWN_SCORINGS, *SCORINGS):
        if scoring not in d.scorings:
            yield case.but(scoring=scoring)
    for factor in (0.0, -1.0, math.nan, math.inf, *((2.5,) if not d.scale else ())):
        yield case.but(routed_scaling_factor=factor)
    for flag in (False, True):
        if flag not in d.renormalize:
            yield case.but(renormalize=flag)
        if flag not in d.scale_on_output:
            yield case.but(apply_routed_scaling_factor_on_output=flag)
    for change in _other_dtypes("logits", logits, d.logits_dtypes):
        yield case.but(**change)
    for change in _other_layouts("logits", logits, d.layouts):
        yield case.but(**change)
    yield case.but(logits=TensorSpec(logits.dtype, (experts,), recipe=logits.recipe))
    if logits.shape[0] and d.tokens[-1] * experts < MAX_STEPPED:
        yield case.but(logits=_more_rows(logits, d.tokens[-1] + 1))
    yield from _gate_experts(case, d, groups)
    yield from _gate_bias(case, d)
    yield from _padding(case, d.padding)
    yield from _map(case, experts + shared, d.expert_map)


def _gate_experts(case: Case, d: GateDomain, groups: int) -> Iterator[Case]:
    """Yield the case with E one past the set, or the next that its groups divide."""
    logits, bias = case.tensors["logits"], case.tensors.get("bias")
    first, last = min(d.experts), max(d.experts)
    past = (last // groups + 1) * groups
    between = range(first // groups * groups, last, groups)
    inner = next((e for e in between if e > first and e not in d.experts), past)
    for experts in {past, inner}:
        rows = max(min(logits.shape[0], 4), d.tokens[0])
        changes: dict[str, Any] = {"logits": constant(logits.dtype, (rows, experts))}
        if bias is not None:
            changes["bias"] = constant(bias.dtype, (experts,))
        if experts <= MAX_EXPERTS:
            yield case.but(**changes, expert_map=None)


def _gate_bias(case: Case, d: GateDomain) -> Iterator[Case]:
    logits = case.tensors["logits"]
    experts = logits.shape[1]
    if d.bias == "none":
        yield case.but(bias=constant(logits.dtype, (experts,)))
        return
    if d.bias == "required":
        yield case.but(bias=None)
    good = [t for t in d.bias_dtypes if t == logits.dtype or not d.bias_same_dtype]
    for count in (experts - 1, experts + 1):
        yield case.but(bias=constant(good[0], (count,)))
    yield case.but(bias=constant(good[0], (1, experts)))
    for dtype in DTYPES:
        if dtype not in good:
            yield case.but(bias=constant(dtype, (experts,)))


def _align(case: Case, d: AlignDomain) -> Iterator[Case]:
    """Yield variants of an inside case, each wrong in one respect."""
    ids = case.tensors["topk_ids"]
    tokens, topk = ids.shape
    for block_size in (0, -1, d.block_sizes[-1] + 1):
        if block_size < UNBOUNDED:
            yield case.but(block_size=block_size)
    for experts in (0, -1, max(d.experts) + 1):
        yield case.but(num_experts=experts, expert_map=None)
    for k in (d.topk[-1] + 1, d.topk[0] - 1):
        if 0 <= k < UNBOUNDED and tokens * k <= d.max_ids:
            yield case.but(topk_ids=constant(ids.dtype, (tokens, k)))
    for change in _other_dtypes("topk_ids", ids, d.ids_dtypes):
        yield case.but(**change)
    for change in _other_layouts("topk_ids", ids, d.layouts):
        yield case.but(**change)
    yield case.but(topk_ids=constant(ids.dtype, (tokens * topk,)))
    if topk and d.max_ids < MAX_STEPPED and d.max_ids // topk + 1 in d.tokens:
        yield case.but(topk_ids=constant(ids.dtype, (d.max_ids // topk + 1, topk)))
    yield from _map(case, int(case.params["num_experts"]), d.expert_map)


def _append(case: Case, d: AppendDomain) -> Iterator[Case]:
    """Yield variants of an inside case, each wrong in one respect."""
    ids, weights, own = (case.tensors[n] for n in ("topk_ids", "topk_weights", "shared_weights"))
    (tokens, topk), shared = ids.shape, int(case.params["num_fused_shared_experts"])
    yield case.but(num_experts=-1)
    if ids.dtype == "int32":
        yield case.but(num_experts=2**31)
    for s in (0, -1, d.shared[-1] + 1):
        if s not in d.shared and s < UNBOUNDED:
            shape = (tokens, max(s, 0)) if len(own.shape) == 2 else own.shape
            yield case.but(num_fused_shared_experts=s, shared_weights=constant(own.dtype, shape))
    for k in (d.topk[-1] + 1, d.topk[0] - 1):
        if 0 <= k < UNBOUNDED:
            wide = (tokens, k)
            yield case.but(topk_ids=constant(ids.dtype, wide), topk_weights=constant(weights.dtype, wide))
    yield case.but(topk_weights=constant(weights.dtype, (tokens, topk + 1)))
    yield case.but(topk_weights=constant(weights.dtype, (tokens + 1, topk)))
    for shape in ((tokens, shared + 1), (tokens + 1, shared), (tokens + 2,)):
        yield case.but(shared_weights=constant(own.dtype, shape))
    dtypes = {"topk_ids": d.ids_dtypes, "topk_weights": d.weights_dtypes, "shared_weights": d.shared_dtypes}
    for name, allowed in dtypes.items():
        spec = case.tensors[name]
        for change in (*_other_dtypes(name, spec, allowed), *_other_layouts(name, spec, d.layouts)):
            yield case.but(**change)
    yield from _padding(case, d.padding)
