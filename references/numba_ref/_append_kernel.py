"""The kernel of the Numba reference of `append_shared_experts`: a thread owns an element; integers only."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._cuda import cuda

FLOAT32, BFLOAT16, FLOAT16 = range(3)


@cuda.jit(device=True)
def narrowed(magnitude: int, kind: int) -> int:
    """Round a float32 without its sign to 16 bits, nearest even; bits in, bits out."""
    if kind == BFLOAT16:
        if magnitude > 0x7F800000:
            return 0x7FC0
        # A tie rounds up if the last bit kept is 1, down if it is 0.
        return (magnitude + 0x7FFF + ((magnitude >> 16) & 1)) >> 16
    if magnitude > 0x7F800000:
        return 0x7E00
    if magnitude >= 0x477FF000:  # 65520, halfway from float16's largest to the next power of two
        return 0x7C00
    if magnitude >= 0x38800000:  # 2**-14, float16's smallest normal number: rebias by 127 - 15
        rebiased = magnitude - (112 << 23)
        return (rebiased + 0xFFF + ((rebiased >> 13) & 1)) >> 13
    exponent = magnitude >> 23
    if exponent < 102:  # below 2**-25: less than half of the smallest denormal
        return 0
    # A float16 denormal counts units of 2**-24; the float32 is mantissa * 2**(exponent - 150).
    mantissa = (magnitude & 0x7FFFFF) | 0x800000
    shift = 126 - exponent
    quotient = mantissa >> shift
    rest = mantissa - (quotient << shift)
    half = 1 << (shift - 1)
    if rest > half or (rest == half and quotient & 1 == 1):
        quotient += 1
    return quotient


@cuda.jit
def append_kernel(
    topk_ids: Any,
    topk_bits: Any,
    shared_bits: Any,
    num_experts: int,
    kind: int,
    num_token_non_padded: Any,
    has_padding: bool,
    ids: Any,
    bits: Any,
) -> None:
    """Write one place of `ids` and of `bits`, the weights' bits; `shared_bits` [T, S] are float32's."""
    i = cuda.grid(1)
    tokens, places = ids.shape
    if i >= tokens * places:
        return
    t, place = i // places, i % places
    topk = topk_ids.shape[1]
    if has_padding and t >= num_token_non_padded[0]:
        ids[t, place] = -1
        bits[t, place] = 0
    elif place < topk:
        ids[t, place] = topk_ids[t, place]
        bits[t, place] = topk_bits[t, place]
    else:
        ids[t, place] = num_experts + place - topk
        word = np.int64(shared_bits[t, place - topk])
        if kind == FLOAT32:
            bits[t, place] = word
        else:
            short = narrowed(word & 0x7FFFFFFF, kind)
            bits[t, place] = short - 0x8000 if word < 0 else short
