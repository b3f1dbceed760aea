"""Memory layouts of a tensor: how it lies in a larger storage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from .case import TensorSpec
from .draws import Draw, integer, pick

PADDINGS = (1, 3, 4, 7, 8, 16, 33)
"""Elements between the rows of a row-strided tensor: odd ones break the alignment of every other row."""

USUAL_PADDINGS = (8, 64)
"""The same where every row stays aligned: what a slice of a wider matrix has."""


def layouts_of(spec: TensorSpec) -> frozenset[str]:
    """Return what a tensor's layout asks of an implementation.

    Strides of sizes 0 and 1 say nothing, as in `torch.Tensor.is_contiguous`.

    Returns
    -------
    frozenset of str
        Among ``"row_stride"``, ``"offset"``, ``"transposed"`` and ``"broadcast"``; empty if contiguous.
    """
    found = {"offset"} if spec.offset else set()
    if math.prod(spec.shape) and spec.strides is not None:
        rows, columns = (1, *spec.shape)[-2:]
        row_stride, column_stride = (0, *spec.strides)[-2:]
        if columns > 1 and column_stride != 1:
            found.add("transposed" if column_stride else "broadcast")
        if rows > 1 and row_stride == 0:
            found.add("broadcast")
        elif rows > 1 and (columns == 1 or column_stride == 1) and row_stride != columns:
            found.add("row_stride")
    return frozenset(found)


def with_layout(draw: Draw, spec: TensorSpec, allowed: Sequence[str], *, usual: bool = False) -> TensorSpec:
    """Draw a layout for a tensor among those allowed; shrinks towards a contiguous one.

    Parameters
    ----------
    draw : Draw
        Where choices come from.
    spec : TensorSpec
        A contiguous tensor of one or two dimensions.
    allowed : sequence of str
        Names of `domain.LAYOUTS`; a contiguous tensor is always allowed.
    usual : bool
        Rows lie in order and start at multiples of 16 bytes, as far as their length allows it.
    """
    if usual:
        gap = pick(draw, (0, 0, 0, *USUAL_PADDINGS)) if len(spec.shape) == 2 and "row_stride" in allowed else 0
        return replace(spec, strides=(spec.shape[1] + gap, 1)) if gap else spec
    kinds = ((), ("offset",), ("offset", "row_stride", "transposed", "broadcast"))[len(spec.shape)]
    names = [n for n in kinds if n in allowed]
    # Contiguous half of the time: other layouts close fast paths.
    name = pick(draw, [*["contiguous"] * len(names), *names]) if names else "contiguous"
    if name == "offset":
        return replace(spec, offset=integer(draw, 1, 7))
    if name == "row_stride":
        stride = max(spec.shape[1], 1) + pick(draw, PADDINGS)
        offset = integer(draw, 0, 7) if "offset" in allowed else 0
        return replace(spec, strides=(stride, 1), offset=offset)
    if name == "transposed":
        return replace(spec, strides=(1, max(spec.shape[0], 1)))
    if name == "broadcast":
        return replace(spec, strides=(0, 1))
    return spec
