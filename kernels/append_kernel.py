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


@triton.jit(do_not_specialize=["tokens", "num_experts"])
def append_rows(
    topk_ids,
    topk_weight_bits,
    shared_weights,
    ids,
    weight_bits,
    num_valid_rows,
    tokens,
    id_row_stride,
    id_column_stride,
    weight_row_stride,
    weight_column_stride,
    shared_row_stride,
    shared_column_stride,
    num_experts,
    DTYPE: tl.constexpr,
    LIMITED: tl.constexpr,
    TOPK: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    TOPK_PADDED: tl.constexpr,
    SHARED_PADDED: tl.constexpr,
):
    """Write ROWS rows a program: the routed part as integers, so that no bit changes, then the shared part.

    Weights are written as the bits of DTYPE. Padded rows get ids −1 and weights 0.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    exists = row < tokens
    valid = exists
    if LIMITED:
        valid = exists & (row < tl.load(num_valid_rows))

    place = tl.arange(0, TOPK_PADDED)[None, :].to(tl.int64)
    inside = place < TOPK
    target = row * (TOPK + SHARED) + place
    source = row * id_row_stride + place * id_column_stride
    expert = tl.load(topk_ids + source, mask=valid & inside, other=-1)
    source = row * weight_row_stride + place * weight_column_stride
    bits = tl.load(topk_weight_bits + source, mask=valid & inside, other=0)
    tl.store(ids + target, expert, mask=exists & inside)
    tl.store(weight_bits + target, bits, mask=exists & inside)

    shared = tl.arange(0, SHARED_PADDED)[None, :].to(tl.int64)
    inside = shared < SHARED
    target = row * (TOPK + SHARED) + TOPK + shared
    source = row * shared_row_stride + shared * shared_column_stride
    weight = tl.load(shared_weights + source, mask=valid & inside, other=0.0)
    expert = tl.where(valid, num_experts + shared, -1)
    tl.store(ids + target, expert.to(ids.dtype.element_ty), mask=exists & inside)
    tl.store(weight_bits + target, float_bits(weight.to(tl.float32), DTYPE), mask=exists & inside)
