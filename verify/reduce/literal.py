"""Cases whose tensors are spelled out, and edits of them that keep the case well-formed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from moeproof.strategies.case import Case, TensorSpec, literal
from moeproof.strategies.expand import rows_of

ROW_TENSORS = {
    "fused_gate": ("logits",),
    "moe_align_block_size": ("topk_ids",),
    "append_shared_experts": ("topk_ids", "topk_weights", "shared_weights"),
}
"""Tensors whose first dimension is the tokens."""
MAX_VALUES = 1 << 17
"""Largest number of values that is spelled out; larger cases stay recipes until they have fewer rows."""


def tokens(case: Case) -> int:
    """Return T."""
    return case.tensors[ROW_TENSORS[case.op][0]].shape[0]


def is_row_tensor(case: Case, name: str) -> bool:
    """Say whether a tensor has a row for each token."""
    return name in ROW_TENSORS[case.op] and len(case.tensors[name].shape) > 0


def spelled(spec: TensorSpec, rows: Sequence[int] | None = None) -> TensorSpec:
    """Return a contiguous spec of literals: all of a tensor, or some of its rows."""
    if rows is None:
        return TensorSpec(spec.dtype, spec.shape, rows=_contents(spec, range(spec.shape[0]) if spec.shape else None))
    return TensorSpec(spec.dtype, (len(rows), *spec.shape[1:]), rows=_contents(spec, rows))


def _contents(spec: TensorSpec, rows: Sequence[int] | None) -> tuple[Any, ...]:
    broadcast = spec.strides is not None and len(spec.shape) == 2 and spec.strides[0] == 0
    if spec.rows is not None:
        if rows is None or not spec.rows:
            return spec.rows
        return tuple(spec.rows[0 if broadcast else r % len(spec.rows)] for r in rows)
    if rows is None:
        return literal(spec.contents("cpu"))
    index = [0] * len(rows) if broadcast else list(rows)
    dtype = getattr(__import__("torch"), spec.dtype)
    return literal(rows_of(spec.recipe or {}, spec.shape, dtype, "cpu", index))


def with_rows(case: Case, rows: Sequence[int], *, count: int | None = None) -> Case:
    """Return the case with only these tokens, spelled out; repeated up to `count` tokens if given."""
    changes: dict[str, Any] = {}
    for name in case.tensors:
        if is_row_tensor(case, name):
            spec = spelled(case.tensors[name], rows)
            if count is not None:
                spec = replace(spec, shape=(count, *spec.shape[1:]))
            changes[name] = spec
        else:
            changes[name] = small(case.tensors[name])
    return case.but(**changes)


def small(spec: TensorSpec) -> TensorSpec:
    """Spell out a tensor that has no token rows (bias, map, scalar)."""
    return spec if spec.rows is not None else spelled(spec)


def spelled_case(case: Case) -> Case:
    """Return the case with every tensor spelled out but its layout kept, if it is small enough."""
    changes = {}
    for name, spec in case.tensors.items():
        size = 1
        for n in spec.shape:
            size *= n
        if spec.recipe is not None and size <= MAX_VALUES:
            changes[name] = replace(spelled(spec), strides=spec.strides, offset=spec.offset)
    return case.but(**changes)


def map_values(spec: TensorSpec, function: Any) -> TensorSpec:
    """Return the spec with a function applied to each literal."""

    def over(value: Any) -> Any:
        return tuple(over(v) for v in value) if isinstance(value, tuple) else function(value)

    return replace(spec, rows=over(spec.rows))


def take_columns(spec: TensorSpec, columns: Sequence[int]) -> TensorSpec:
    """Return the spec with only some columns of a 2-d tensor, or entries of a 1-d one, contiguous."""
    assert spec.rows is not None
    if len(spec.shape) == 2:
        rows = tuple(tuple(row[c] for c in columns) for row in spec.rows)
        return TensorSpec(spec.dtype, (spec.shape[0], len(columns)), rows=rows)
    rows = tuple(spec.rows[c % len(spec.rows)] for c in columns)
    return TensorSpec(spec.dtype, (len(columns),), rows=rows)


def distinct(case: Case) -> int:
    """Return how many distinct values the spelled-out tensors hold."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, tuple):
            for v in value:
                walk(v)
        else:
            found.add(repr(value))

    for spec in case.tensors.values():
        if spec.rows is not None:
            walk(spec.rows)
    return len(found)
