"""The Triton kernel of `append_shared_experts`. Importing it imports Triton."""

# Triton resolves annotations as names of its own, so only constexpr ones can stay.
# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def float_bits(value, DTYPE: tl.constexpr):
    """Return the bits of a float32 value rounded once, to nearest even, to a dtype."""
    if DTYPE == "float16":
        bits = value.to(tl.float16).to(tl.int16, bitcast=True)
    elif DTYPE == "bfloat16":  # by hand: Triton's interpreter truncates
        wide = value.to(tl.int32, bitcast=True)
        rounded = wide + 0x7FFF + ((wide >> 16) & 1)
        bits = (tl.where(value == value, rounded, wide | 0x400000) >> 16).to(tl.int16)
    else:
        bits = value.to(tl.int32, bitcast=True)
    return bits


_RUN_TIME = (
    "topk_ids",
    "topk_weight_bits",
    "shared_weights",
    "ids",
    "weight_bits",
    "num_valid_rows",
    "limited",
    "tokens",
    "topk",
    "shared",
    "id_row_stride",
    "id_column_stride",
    "weight_row_stride",
    "weight_column_stride",
    "shared_row_stride",
    "shared_column_stride",
    "num_experts",
)


# Compiled once per combination of dtypes: neither a value nor an alignment is specialized on.
@triton.jit(do_not_specialize=_RUN_TIME)
def append_rows(
    topk_ids,
    topk_weight_bits,
    shared_weights,
    ids,
    weight_bits,
    num_valid_rows,
    limited: tl.int64,
    tokens: tl.int64,
    topk: tl.int64,
    shared: tl.int64,
    id_row_stride: tl.int64,
    id_column_stride: tl.int64,
    weight_row_stride: tl.int64,
    weight_column_stride: tl.int64,
    shared_row_stride: tl.int64,
    shared_column_stride: tl.int64,
    num_experts: tl.int64,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    PLACES: tl.constexpr,
):
    """Write ROWS rows a program, PLACES places of each at a time: routed ones first, then shared ones.

    Routed weights move as integers, so that no bit changes; weights are written as the bits of DTYPE. Rows at
    or past `num_valid_rows` get ids −1 and weights 0, if `limited` is not 0.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    exists = row < tokens
    limit = tokens
    if limited != 0:
        limit = tl.load(num_valid_rows).to(tl.int64)
    valid = exists & (row < limit)

    width = topk + shared
    for first in range(0, width, PLACES):
        place = first + tl.arange(0, PLACES)[None, :].to(tl.int64)
        is_routed = place < topk
        inside = exists & (place < width)

        source = row * id_row_stride + place * id_column_stride
        expert = tl.load(topk_ids + source, mask=valid & is_routed, other=-1)
        source = row * weight_row_stride + place * weight_column_stride
        bits = tl.load(topk_weight_bits + source, mask=valid & is_routed, other=0)

        extra = place - topk
        is_shared = valid & (extra >= 0) & inside
        source = row * shared_row_stride + extra * shared_column_stride
        weight = tl.load(shared_weights + source, mask=is_shared, other=0.0)
        expert = tl.where(is_shared, (num_experts + extra).to(ids.dtype.element_ty), expert)
        bits = tl.where(is_shared, float_bits(weight.to(tl.float32), DTYPE), bits)

        target = row * width + place
        tl.store(ids + target, expert, mask=inside)
        tl.store(weight_bits + target, bits, mask=inside)
