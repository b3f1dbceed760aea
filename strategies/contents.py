"""What a tensor may hold, told from its recipe or literals without building it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from .case import TensorSpec

_INFINITE = {"float32": (2 - 2.0**-24) * 2.0**127, "bfloat16": (2 - 2.0**-8) * 2.0**127, "float16": 65520.0}
"""Least magnitude that a dtype rounds to infinity: half a unit past its largest number."""


def marked_values(spec: TensorSpec) -> Iterator[float]:
    """Yield the values that a tensor's description names: literals, constants, special values and edits.

    Every NaN, infinity, -1 and id out of range that a tensor can hold is among them: what its dtype makes infinite
    comes as an infinity. A block's value counts even if the tensor has too few rows for that block.
    """
    if not math.prod(spec.shape):
        return
    above = _INFINITE.get(spec.dtype, math.inf)
    for value in _named(spec):
        yield math.copysign(math.inf, value) if abs(value) >= above else value


def _named(spec: TensorSpec) -> Iterator[float]:
    if spec.rows is not None:
        for row in spec.rows:
            yield from row if isinstance(row, tuple) else (row,)
        return
    recipe: Any = spec.recipe
    for block in recipe.get("blocks", ()):
        yield from (block[name] for name in ("value", "fill", "special") if name in block)
    rows, columns = (1, 1, *spec.shape)[-2:]
    yield from (value for row, column, value in recipe.get("edits", ()) if row < rows and column < columns)


def holds_nan(spec: TensorSpec) -> bool:
    """Return whether a tensor holds NaN."""
    return any(math.isnan(v) for v in marked_values(spec))


def holds_inf(spec: TensorSpec) -> bool:
    """Return whether a tensor holds an infinity."""
    return any(math.isinf(v) for v in marked_values(spec))


def holds_both_infinities(spec: TensorSpec) -> bool:
    """Return whether a tensor holds +inf and -inf, whose sum is NaN."""
    return {math.inf, -math.inf} <= set(marked_values(spec))
