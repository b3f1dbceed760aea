"""Passes that reduce a moe_align_block_size case."""

from __future__ import annotations

from collections.abc import Iterator

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify.violation import Violation

from .common import plain_tensors, simpler_values
from .literal import MAX_VALUES, map_values, spelled, spelled_case, take_columns, values_of, with_rows
from .probe import Probe


def candidates(case: Case, violation: Violation, probe: Probe) -> Iterator[Case]:
    """Yield smaller cases, most hopeful first."""
    spec = case.tensors["topk_ids"]
    if spec.recipe is not None:
        yield from _fewer_recipe_rows(case)
        yield spelled_case(case)
    yield from plain_tensors(case, ("expert_map",))
    if spec.rows is not None:
        yield from _fewer_ids(case)
    experts, block = int(case.params["num_experts"]), int(case.params["block_size"])
    used = max((v for row in spec.rows or () for v in row), default=0) + 1
    for count in dict.fromkeys((1, 2, used, used + 1, experts // 2, experts - 1)):
        if 0 < count < experts:
            yield _with_experts(case, count)
    yield from _relabelled(case)
    for size in (1, 2, 4, 8, 16, 32, block // 2, block - 1):
        if 0 < size < block:
            yield case.but(block_size=size)
    yield from simpler_values(case, ("topk_ids", "expert_map"))


def _with_experts(case: Case, count: int) -> Case:
    """Return the case with fewer experts, the map shortened; what mapped to an expert left out maps to -1."""
    smaller = case.but(num_experts=count)
    spec = case.tensors.get("expert_map")
    if spec is None or spec.rows is None:
        return smaller
    shorter = take_columns(spec, range(count))
    return smaller.but(expert_map=map_values(shorter, lambda v: v if v < count else -1))


def _relabelled(case: Case) -> Iterator[Case]:
    """Name the experts in use 0, 1, ... and leave the others out: what goes wrong with the last one stays last."""
    spec = case.tensors["topk_ids"]
    experts = int(case.params["num_experts"])
    used = [v for v in values_of(spec) if 0 <= v < experts]
    if used and "expert_map" not in case.tensors:
        names = {v: i for i, v in enumerate(used)}
        yield case.but(topk_ids=map_values(spec, lambda v: names.get(v, v)), num_experts=len(used))


def _fewer_recipe_rows(case: Case) -> Iterator[Case]:
    rows, topk = case.tensors["topk_ids"].shape
    # What is wrong in one place only is most likely one of those that were edited.
    edited = sorted({edit[0] for edit in (case.tensors["topk_ids"].recipe or {}).get("edits", ())})
    yield from (with_rows(case, [row]) for row in edited)
    if 1 < len(edited) * topk <= MAX_VALUES:
        yield with_rows(case, edited)
    size = rows
    while size > 1:
        size //= 2
        if size * topk <= MAX_VALUES:
            yield with_rows(case, range(size))
            yield with_rows(case, range(rows - size, rows))


def _fewer_ids(case: Case) -> Iterator[Case]:
    """Leave ids out: runs of them, long ones first. One place a row, where the subject allows."""
    spec = case.tensors["topk_ids"]
    assert spec.rows is not None
    rows, topk = spec.shape
    full = spelled(spec).rows or ()
    if topk > 1:
        flat = tuple((v,) for row in full for v in row)
        yield case.but(topk_ids=TensorSpec(spec.dtype, (len(flat), 1), rows=flat))
        for place in range(topk):
            yield case.but(topk_ids=take_columns(spec, [p for p in range(topk) if p != place]))
    length = rows
    while length >= 1:
        for start in range(0, rows, length):
            yield case.but(topk_ids=spelled(spec, [*range(start), *range(start + length, rows)]))
        length //= 2
