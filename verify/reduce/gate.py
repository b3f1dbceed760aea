"""Passes that reduce a fused_gate case."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify.violation import Violation

from .common import fewer_tokens, flatter, plain_tensors, simpler_values
from .cost import OPTIONAL, PLAIN
from .literal import spelled_case, take_columns, tokens
from .probe import Probe

JOINT = 32
"""Largest E at which experts and places are left out together."""
BATCHED = ("selection", "tie_order", "nan_policy", "weights", "ids_invalid", "unwritten")
"""Checks that name the failing rows, so that many contents can be tried in one launch."""


def candidates(case: Case, violation: Violation, probe: Probe) -> Iterator[Case]:
    """Yield smaller cases, most hopeful first."""
    yield from fewer_tokens(case, violation)
    yield from _plain_flags(case)
    yield from plain_tensors(case, OPTIONAL)
    if any(spec.rows is None for spec in case.tensors.values()):
        yield spelled_case(case)
        return
    yield from _fewer_experts(case, probe)
    yield from _fewer_places(case)
    if tokens(case) == 1 and probe.check in BATCHED and probe.attempts == 1:
        yield from _batched_values(case, probe)
    yield from flatter(case, "bias")
    yield from simpler_values(case, ("logits", "bias", "expert_map", "num_token_non_padded"))


def _plain_flags(case: Case) -> Iterator[Case]:
    odd = {n: v for n, v in PLAIN.items() if n in case.params and case.params[n] != v}
    for name, value in odd.items():
        if name == "num_fused_shared_experts":
            shared, topk = int(case.params[name]), int(case.params["topk"])
            yield _drop_shared(case, shared).but(topk=topk - shared)
            yield _drop_shared(case, shared)
            if shared > 1:
                yield _drop_shared(case, shared - 1).but(topk=topk - shared + 1)
        elif name == "num_expert_group":
            yield case.but(num_expert_group=1, topk_group=1)
        elif name == "topk_group":
            for count in range(1, min(4, int(case.params[name]))):
                yield case.but(topk_group=count)
        else:
            yield case.but(**{name: value})
    if case.params.get("routed_scaling_factor", 1.0) not in (1.0, 2.0):
        yield case.but(routed_scaling_factor=2.0)


def _drop_shared(case: Case, count: int) -> Case:
    """Return the case with `count` fewer shared experts, its expert map shortened to match."""
    smaller = case.but(num_fused_shared_experts=int(case.params["num_fused_shared_experts"]) - count)
    if "expert_map" in case.tensors and case.tensors["expert_map"].rows is not None:
        spec = case.tensors["expert_map"]
        smaller = smaller.but(expert_map=take_columns(spec, range(spec.shape[0] - count)))
    return smaller


def _fewer_experts(case: Case, probe: Probe) -> Iterator[Case]:
    """Leave experts out: whole groups, then the same places of every group (single experts if ungrouped)."""
    experts = case.tensors["logits"].shape[1]
    groups = int(case.params.get("num_expert_group", 1))
    size = experts // groups
    allowed = probe.executor.subject.domain.experts  # type: ignore[union-attr]
    if not isinstance(allowed, range):
        for smaller in sorted(e for e in allowed if e < experts and e % groups == 0):
            keep = smaller // groups
            for first in (0, size - keep):
                yield _keep(case, [g * size + first + j for g in range(groups) for j in range(keep)], groups)
        # Where few numbers are allowed, those between cannot be passed one expert at a time.
        for kept in _scattered(groups) if probe.check in BATCHED else ():
            yield _keep(case, [g * size + j for g in kept for j in range(size)], len(kept))
        for places in _scattered(size) if probe.check in BATCHED else ():
            yield _keep(case, [g * size + j for g in range(groups) for j in places], groups)
    if groups > 1:
        for part in _parts(groups):
            kept = [g for g in range(groups) if g not in part]
            yield _keep(case, [g * size + j for g in kept for j in range(size)], len(kept))
    for part in _parts(size):
        places = [j for j in range(size) if j not in part]
        yield _keep(case, [g * size + j for g in range(groups) for j in places], groups)
        fewer = int(case.params["topk"]) - groups * len(part)
        if experts <= JOINT and fewer > int(case.params.get("num_fused_shared_experts", 0)):
            # What fails only if k stands in a fixed relation to E shrinks with both at once.
            yield _keep(case, [g * size + j for g in range(groups) for j in places], groups).but(topk=fewer)


def _scattered(count: int) -> Iterator[list[int]]:
    """Yield pairs and halves of a few, and the halves that one bit of the number tells apart."""
    if 2 < count <= 8:
        for number in dict.fromkeys((2, count // 2)):
            yield from map(list, itertools.combinations(range(count), number))
    for bit in range((count - 1).bit_length()):
        for half in (0, 1):
            kept = [n for n in range(count) if n >> bit & 1 == half]
            if 0 < len(kept) < count:
                yield kept


def _parts(count: int) -> Iterator[range]:
    """Yield runs to leave out, long ones first, down to pairs and single items."""
    lengths = [count - 1, count * 3 // 4]
    while lengths[-1] > 2:
        lengths.append(lengths[-1] // 2)
    for length in dict.fromkeys([*lengths, 2, 1]):
        for start in range(0, count, max(length, 1)):
            part = range(start, min(start + length, count))
            if 0 < len(part) < count:
                yield part


def _keep(case: Case, columns: Sequence[int], groups: int) -> Case:
    """Return the case with only these experts; ids of shared places in the map move along."""
    experts = case.tensors["logits"].shape[1]
    changes: dict[str, TensorSpec] = {"logits": take_columns(case.tensors["logits"], columns)}
    if "bias" in case.tensors:
        changes["bias"] = take_columns(case.tensors["bias"], columns)
    if "expert_map" in case.tensors:
        spec = case.tensors["expert_map"]
        changes["expert_map"] = take_columns(spec, [*columns, *range(experts, spec.shape[0])])
    routed = int(case.params["topk"]) - int(case.params.get("num_fused_shared_experts", 0))
    topk = int(case.params["topk"]) - max(0, routed - len(columns))
    kept = case.but(topk=topk, **changes)
    if groups != int(case.params.get("num_expert_group", 1)):
        topk_group = min(int(case.params["topk_group"]), groups)
        return kept.but(num_expert_group=groups, topk_group=topk_group)
    return kept


def _fewer_places(case: Case) -> Iterator[Case]:
    topk, shared = int(case.params["topk"]), int(case.params.get("num_fused_shared_experts", 0))
    tried = [shared + 1, shared + 2, (topk + shared) // 2, topk - 2, topk - 1]
    for count in dict.fromkeys(t for t in tried if shared < t < topk):
        yield case.but(topk=count)


def _batched_values(case: Case, probe: Probe) -> Iterator[Case]:
    """Try many contents of the one row in one launch, and yield the best."""
    spec = case.tensors["logits"]
    assert spec.rows is not None
    row: tuple[float, ...] = spec.rows[0]
    for contents in _plans(row):
        fresh = [c for c in dict.fromkeys(contents) if repr(c) != repr(row)]
        failing = probe.failing_rows(case, fresh)
        if not failing:
            continue
        merged = _merged(row, [fresh[i] for i in failing])
        for choice in (*merged, *(fresh[i] for i in failing)):
            yield case.but(logits=replace(spec, rows=(choice,)))


def _plans(row: tuple[float, ...]) -> Iterator[list[tuple[float, ...]]]:
    """Yield batches of contents: ranks for values, ever smaller runs flattened, then single values made simple."""
    finite = [v for v in row if math.isfinite(v)]
    values = sorted(set(finite))
    if 1 < len(values) <= 4096:
        order = {v: i for i, v in enumerate(values)}
        last = len(values) - 1
        yield [
            tuple(float(order[v]) if math.isfinite(v) else v for v in row),
            tuple(float(order[v] - last) if math.isfinite(v) else v for v in row),
            tuple(float(v == values[-1]) if math.isfinite(v) else v for v in row),
            tuple(float(v >= values[len(values) // 2]) if math.isfinite(v) else v for v in row),
        ]
    backgrounds = list(dict.fromkeys([0.0, min(finite), -1.0, 1.0])) if finite else [0.0]
    length = len(row)
    while length >= 1:
        starts = range(0, len(row), length)
        yield [
            (*row[:s], *([fill] * len(row[s : s + length])), *row[s + length :]) for s in starts for fill in backgrounds
        ]
        length //= 2
    simple = {v: [0.0, 1.0, -1.0, float(round(v)), round(v, 1)] for v in values[:64]}
    yield [tuple(new if x == old else x for x in row) for old, news in simple.items() for new in news if new != old]


def _merged(row: tuple[float, ...], variants: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Return the changes of all variants together, and of the first half of them."""
    results = []
    for count in (len(variants), len(variants) // 2):
        if count > 1:
            together = list(row)
            for variant in variants[:count]:
                for place, (old, new) in enumerate(zip(row, variant, strict=True)):
                    if repr(old) != repr(new):
                        together[place] = new
            results.append(tuple(together))
    return results
