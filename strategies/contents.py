"""What a tensor may hold, told from its recipe or literals without building it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from .case import TensorSpec


def marked_values(spec: TensorSpec) -> Iterator[float]:
    """Yield the values that a tensor's description names: literals, constants, special values and edits.

    Every NaN, infinity, -1 and id out of range that a tensor can hold is among them. A block's value counts
    even if the tensor has too few rows for that block.
    """
    if not math.prod(spec.shape):
        return
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
