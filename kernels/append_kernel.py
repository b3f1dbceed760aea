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


@triton.jit
def after_previous():
    """Do what stream.cuh says of its function of this name. Triton's own functions for it differ by version."""
    word: tl.constexpr = "=r"
    tl.inline_asm_elementwise(
        "griddepcontrol.launch_dependents; // $0", word, [], dtype=tl.int32, is_pure=False, pack=1
    )
    tl.inline_asm_elementwise("griddepcontrol.wait; // $0", word, [], dtype=tl.int32, is_pure=False, pack=1)


POINTERS = ("topk_ids", "topk_weight_bits", "shared_weights", "ids", "weight_bits", "num_valid_rows")
VALUES = (
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


# Compiled once per combination of the constexprs and dtypes: neither a value nor an alignment is specialized on.
@triton.jit(do_not_specialize=POINTERS + VALUES)
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
    ONE_PASS: tl.constexpr,
    WIDE: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Write ROWS rows a program, PLACES places of each at a time: routed ones first, then shared ones.

    Routed weights move as integers, so that no bit changes; weights are written as the bits of DTYPE. If `limited`
    is not 0, rows at or past `num_valid_rows` get ids −1 and weights 0. ONE_PASS: rows have up to PLACES places.
    WIDE: an offset needs 64 bits. OVERLAP: the kernel may start before the one before it has ended.
    """
    if OVERLAP:
        after_previous()
    if not WIDE:
        tokens, topk, shared = tokens.to(tl.int32), topk.to(tl.int32), shared.to(tl.int32)
        id_row_stride, id_column_stride = id_row_stride.to(tl.int32), id_column_stride.to(tl.int32)
        weight_row_stride, weight_column_stride = weight_row_stride.to(tl.int32), weight_column_stride.to(tl.int32)
        shared_row_stride, shared_column_stride = shared_row_stride.to(tl.int32), shared_column_stride.to(tl.int32)
    lane = tl.arange(0, ROWS * PLACES)
    row = (tl.program_id(0) * ROWS + lane // PLACES).to(tokens.dtype)
    exists = row < tokens
    # Padded rows are read too, so that no load waits for this one.
    valid = (row < tl.load(num_valid_rows, mask=limited != 0, other=0)) | (limited == 0)
    width = topk + shared
    for first in range(0, PLACES if ONE_PASS else width, PLACES):
        place = first + (lane % PLACES).to(tokens.dtype)
        extra = place - topk
        inside = exists & (place < width)
        is_shared = inside & (extra >= 0)
        is_routed = exists & (extra < 0)
        expert = tl.load(topk_ids + row * id_row_stride + place * id_column_stride, mask=is_routed, other=0)
        bits = tl.load(
            topk_weight_bits + row * weight_row_stride + place * weight_column_stride, mask=is_routed, other=0
        )
        source = row * shared_row_stride + extra * shared_column_stride
        weight = tl.load(shared_weights + source, mask=is_shared, other=0.0)
        expert = tl.where(is_shared, (num_experts + extra).to(expert.dtype), expert)
        bits = tl.where(is_shared, float_bits(weight.to(tl.float32), DTYPE), bits)
        expert = tl.where(valid, expert, -1)
        bits = tl.where(valid, bits, 0)
        target = row * width + place
        tl.store(ids + target, expert, mask=inside)
        tl.store(weight_bits + target, bits, mask=inside)
