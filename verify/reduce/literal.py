"""Cases whose tensors are spelled out, and edits of them that keep the case well-formed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from moeproof.strategies.case import DTYPES, Case, TensorSpec, literal
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
    return case.main.shape[0]


def is_row_tensor(case: Case, name: str) -> bool:
    """Say whether a tensor has a row for each token."""
    return name in ROW_TENSORS[case.op] and len(case.tensors[name].shape) > 0


def relaid(spec: TensorSpec, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return strides that give a tensor of another shape the same kind of layout."""
    if spec.strides is None or len(shape) != 2 or len(spec.shape) != 2:
        return spec.strides
    outer, inner = spec.strides
    if outer == 0:
        return (0, inner)
    if outer == 1 and inner >= spec.shape[0]:
        return (1, shape[0] + inner - spec.shape[0])
    return (max(shape[1] * inner + outer - spec.shape[1] * inner, 1), inner)


def spelled(spec: TensorSpec, rows: Sequence[int] | None = None) -> TensorSpec:
    """Return a spec of literals with the layout kept: all of a tensor, or some of its rows."""
    index = range(spec.shape[0]) if rows is None and spec.shape else rows
    shape = spec.shape if rows is None else (len(rows), *spec.shape[1:])
    return TensorSpec(spec.dtype, shape, _contents(spec, index), strides=relaid(spec, shape), offset=spec.offset)


def _contents(spec: TensorSpec, rows: Sequence[int] | None) -> tuple[Any, ...]:
    broadcast = spec.strides is not None and len(spec.shape) == 2 and spec.strides[0] == 0
    if spec.rows is not None:
        if rows is None or not spec.rows:
            return spec.rows
        return tuple(spec.rows[0 if broadcast else r % len(spec.rows)] for r in rows)
    if rows is None:
        return literal(spec.contents("cpu"))
    index = [0] * len(rows) if broadcast else list(rows)
    return literal(rows_of(spec.recipe or {}, spec.shape, DTYPES[spec.dtype], "cpu", index))


def with_rows(case: Case, rows: Sequence[int], *, count: int | None = None) -> Case:
    """Return the case with only these tokens, spelled out; repeated up to `count` tokens if given.

    As many tokens are padding as were among those that stay.
    """
    changes: dict[str, Any] = {}
    for name, spec in case.tensors.items():
        if is_row_tensor(case, name):
            kept = spelled(spec, rows)
            if count is not None:
                shape = (count, *spec.shape[1:])
                kept = replace(kept, shape=shape, strides=relaid(spec, shape))
            changes[name] = kept
        elif name == "num_token_non_padded" and spec.rows and count is None:
            changes[name] = replace(spec, rows=(sum(r < spec.rows[0] for r in rows),))
        else:
            changes[name] = small(spec)
    return case.but(**changes)


def small(spec: TensorSpec) -> TensorSpec:
    """Spell out a tensor that has no token rows (bias, map, scalar)."""
    return spec if spec.rows is not None else spelled(spec)


def spelled_case(case: Case) -> Case:
    """Return the case with every tensor spelled out that is small enough."""
    recipes = {n: s for n, s in case.tensors.items() if s.recipe is not None and math.prod(s.shape) <= MAX_VALUES}
    return case.but(**{name: spelled(spec) for name, spec in recipes.items()})


def map_values(spec: TensorSpec, function: Any) -> TensorSpec:
    """Return the spec with a function applied to each literal."""

    def over(value: Any) -> Any:
        return tuple(over(v) for v in value) if isinstance(value, tuple) else function(value)

    return replace(spec, rows=over(spec.rows))


def take_columns(spec: TensorSpec, columns: Sequence[int]) -> TensorSpec:
    """Return the spec with only some columns of a 2-d tensor, or entries of a 1-d one; the layout is kept."""
    assert spec.rows is not None
    if len(spec.shape) == 2:
        shape: tuple[int, ...] = (spec.shape[0], len(columns))
        rows = tuple(tuple(row[c] for c in columns) for row in spec.rows)
    else:
        shape = (len(columns),)
        rows = tuple(spec.rows[c % len(spec.rows)] for c in columns)
    return replace(spec, shape=shape, rows=rows, strides=relaid(spec, shape))


def values_of(spec: TensorSpec) -> list[Any]:
    """Return the distinct literals of a spec, ascending, NaN last."""
    found: dict[str, Any] = {}

    def walk(value: Any) -> None:
        if isinstance(value, tuple):
            for v in value:
                walk(v)
        else:
            found[repr(value)] = value

    walk(spec.rows or ())
    return sorted(found.values(), key=lambda v: (math.isnan(v), v))
