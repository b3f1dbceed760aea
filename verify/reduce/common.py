"""Passes that serve every op: fewer tokens, plain layouts and dtypes, simple values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify.violation import Violation

from .literal import (
    MAX_VALUES,
    ROW_TENSORS,
    is_row_tensor,
    map_values,
    spelled_case,
    tokens,
    values_of,
    with_rows,
)

LEADS = 4
"""Failing rows that are tried alone."""


def fewer_tokens(case: Case, violation: Violation) -> Iterator[Case]:
    """One failing row alone, repeated, with a neighbour, then ever smaller parts of the batch.

    Repeated comes early: where the number of rows is what matters, and each try costs a process, there is no time to
    try what shorter batches hold.
    """
    count = tokens(case)
    if count <= 1:
        return
    leads = [r for r in violation.rows if r < count][:LEADS] or [0, count - 1]
    for row in leads:
        yield with_rows(case, [row])
    row = leads[0]
    yield with_rows(case, [row], count=count)
    alike = all(len(case.tensors[n].rows or ()) == 1 for n in ROW_TENSORS[case.op] if is_row_tensor(case, n))
    if alike and "num_token_non_padded" not in case.tensors:
        yield from (with_rows(case, [row], count=size) for size in _shorter(count))
        return
    for pair in ((row - 1, row), (row, row + 1), (0, row), (row, count - 1)):
        if 0 <= pair[0] < pair[1] < count:
            yield with_rows(case, pair)
    width = sum(math.prod(case.tensors[n].shape[1:]) for n in ROW_TENSORS[case.op] if is_row_tensor(case, n))
    for size in _shorter(count):
        yield with_rows(case, [row], count=size)
        for start in (0, count - size, max(0, min(row - size // 2, count - size))):
            if size * width <= MAX_VALUES:
                yield with_rows(case, range(start, start + size))
    if count <= 64:
        for left_out in range(count):
            yield with_rows(case, [r for r in range(count) if r != left_out])


def _shorter(count: int) -> Iterator[int]:
    """Lengths below `count`: halving the distance each time."""
    step = count // 2
    while step >= 1:
        yield count - step
        step //= 2
    small = 2
    while small < count // 2:
        yield small
        small *= 2


def plain_tensors(case: Case, optional: tuple[str, ...]) -> Iterator[Case]:
    """Leave optional tensors out; contiguous and aligned layouts; float32 and int32; literal contents."""
    for name in optional:
        if name in case.tensors:
            yield case.but(**{name: None})
    plain = {n: replace(s, strides=None, offset=0) for n, s in case.tensors.items() if s.strides or s.offset}
    if plain:
        yield case.but(**plain)
    for name, spec in plain.items():
        yield case.but(**{name: spec})
        yield case.but(**{name: replace(case.tensors[name], strides=None)})
        yield case.but(**{name: replace(case.tensors[name], offset=0)})
        if case.tensors[name].offset > 1:
            yield case.but(**{name: replace(case.tensors[name], offset=1)})
    widened = {
        n: replace(s, dtype={"bfloat16": "float32", "float16": "float32", "int64": "int32"}[s.dtype])
        for n, s in case.tensors.items()
        if s.dtype in ("bfloat16", "float16", "int64") and s.rows is not None
    }
    if widened:
        yield case.but(**widened)
    for name, spec in widened.items():
        yield case.but(**{name: spec})
    literal = spelled_case(case)
    if any(literal.tensors[n] is not s for n, s in case.tensors.items()):
        yield literal


def simpler_values(case: Case, names: tuple[str, ...]) -> Iterator[Case]:
    """One value everywhere, then each distinct value replaced by a simpler one or by its neighbour."""
    for name in names:
        spec = case.tensors.get(name)
        if spec is None or spec.rows is None:
            continue
        values = values_of(spec)
        if not 1 <= len(values) <= 64:
            continue
        for value in values:
            yield case.but(**{name: map_values(spec, lambda _, v=value: v)})
        ranks = {repr(v): float(i) if isinstance(v, float) else i for i, v in enumerate(values)}
        if all(math.isfinite(v) for v in values) and name != "expert_map":
            yield case.but(**{name: map_values(spec, lambda v, r=ranks: r[repr(v)])})
        for value in values:
            for simple in _simple(value):
                yield case.but(**{name: _swap(spec, value, simple)})
        for value, other in itertools.pairwise(values):
            yield case.but(**{name: _swap(spec, other, value)})
        yield from _cells(case, name, spec)


def flatter(case: Case, name: str) -> Iterator[Case]:
    """Set runs of a 1-d float tensor to 0, long runs first."""
    spec = case.tensors.get(name)
    if spec is None or spec.rows is None or len(spec.shape) != 1:
        return
    row = spec.rows
    length = len(row)
    while length >= 1:
        for start in range(0, len(row), length):
            if any(repr(v) != "0.0" for v in row[start : start + length]):
                zeros = (0.0,) * len(row[start : start + length])
                yield case.but(**{name: replace(spec, rows=(*row[:start], *zeros, *row[start + length :]))})
        length //= 2


def _cells(case: Case, name: str, spec: TensorSpec) -> Iterator[Case]:
    """Single cells set to 0, in small tensors."""
    assert spec.rows is not None
    zero: Any = 0.0 if spec.dtype.startswith(("float", "bf")) else 0
    if len(spec.shape) == 2 and len(spec.rows) * spec.shape[1] <= 128:
        for r, row in enumerate(spec.rows):
            for c, value in enumerate(row):
                if repr(value) != repr(zero):
                    changed = (*row[:c], zero, *row[c + 1 :])
                    yield case.but(**{name: replace(spec, rows=(*spec.rows[:r], changed, *spec.rows[r + 1 :]))})


def _simple(value: Any) -> list[Any]:
    """Return simpler values than this one, simplest first."""
    if isinstance(value, int):
        return [0] if value < 0 else [v for v in (0, 1, value // 2, value - 1) if 0 <= v < value]
    if not math.isfinite(value):
        return [0.0, 1.0, -1.0]
    tried = [0.0, 1.0, -1.0, float(round(value)), round(value, 1), round(value, 2)]
    if abs(value) > 16:
        tried.append(math.copysign(2.0 ** min(round(math.log2(abs(value))), 127), value))
    return [v for v in dict.fromkeys(tried) if len(repr(v)) < len(repr(value)) or abs(v) < abs(value)]


def _swap(spec: TensorSpec, old: Any, new: Any) -> TensorSpec:
    mark = repr(old)
    return map_values(spec, lambda v: new if repr(v) == mark else v)
