"""Passes that reduce a moe_align_block_size case."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify.violation import Violation

from .common import plain_tensors, simpler_values
from .literal import MAX_VALUES, spelled_case, with_rows
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
    if "expert_map" not in case.tensors:
        used = max((v for row in spec.rows or () for v in row), default=0) + 1
        for count in dict.fromkeys((1, 2, used, used + 1, experts // 2, experts - 1)):
            if 0 < count < experts:
                yield case.but(num_experts=count)
    for size in (1, 2, 4, 8, 16, 32, block // 2, block - 1):
        if 0 < size < block:
            yield case.but(block_size=size)
    yield from simpler_values(case, ("topk_ids", "expert_map"))


def _fewer_recipe_rows(case: Case) -> Iterator[Case]:
    rows, topk = case.tensors["topk_ids"].shape
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
    full = tuple(spec.rows[r % len(spec.rows)] for r in range(rows)) if spec.rows else ()
    if topk > 1:
        flat = tuple((v,) for row in full for v in row)
        yield case.but(topk_ids=TensorSpec(spec.dtype, (len(flat), 1), rows=flat))
        for place in range(topk):
            yield case.but(
                topk_ids=TensorSpec(spec.dtype, (rows, topk - 1), rows=tuple((*r[:place], *r[place + 1 :]) for r in full))
            )
    length = rows
    while length >= 1:
        for start in range(0, rows, length):
            kept = (*full[:start], *full[start + length :])
            yield case.but(topk_ids=replace(spec, shape=(len(kept), topk), rows=kept, strides=None))
        length //= 2
