"""Gold reference of `append_shared_experts`."""

from __future__ import annotations

import math

import numpy as np
import torch

from ._arguments import FLOATS, IDS, check_int, check_tensor, doubles, integers, padding_start, refuse

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def append_shared_experts(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    shared_weights: torch.Tensor,
    num_experts: int,
    num_fused_shared_experts: int = 1,
    *,
    num_token_non_padded: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Append the shared experts' ids and weights to each token's routed ones.

    Parameters
    ----------
    topk_ids : Tensor [T, k], int32 or int64
        Routed ids.
    topk_weights : Tensor [T, k], float32, bfloat16 or float16
        Routed weights, copied bit for bit.
    shared_weights : Tensor [T, S], [T] or scalar, float32, bfloat16 or float16
        Each token's shared weights, or what is broadcast to them.
    num_experts : int
        E, the first shared id.
    num_fused_shared_experts : int
        S ≥ 1.
    num_token_non_padded : Tensor scalar or [1], int32, optional
        Rows at or past it are padding.

    Returns
    -------
    ids : Tensor [T, k + S], dtype of `topk_ids`
        Routed ids, then E … E+S−1.
    weights : Tensor [T, k + S], dtype of `topk_weights`
        Routed weights, then the shared ones rounded to nearest even.

    Raises
    ------
    ValueError
        If an argument is not what the contract allows; names it, its value and what is allowed.
    """
    check_tensor("topk_ids", topk_ids, IDS, (None, None))
    tokens, topk = topk_ids.shape
    shared = num_fused_shared_experts
    check_tensor("topk_weights", topk_weights, FLOATS, (tokens, topk))
    check_int("num_fused_shared_experts", shared, 1)
    check_int("num_experts", num_experts, 1)
    last_id = num_experts + shared - 1
    if last_id > torch.iinfo(topk_ids.dtype).max:
        raise refuse("num_experts", num_experts, f"ids that fit {topk_ids.dtype}, the last is {last_id}")
    check_tensor("shared_weights", shared_weights, FLOATS, (tokens, shared), (tokens,), ())
    padding = padding_start(num_token_non_padded, tokens)

    ids = np.full((tokens, topk + shared), -1, np.int64)
    ids[:padding, :topk] = integers(topk_ids)[:padding]
    ids[:padding, topk:] = np.arange(num_experts, num_experts + shared)

    dtype, bits = topk_weights.dtype, _BITS[topk_weights.dtype]
    values = doubles(shared_weights)
    per_place = np.broadcast_to(values[:, None] if values.ndim == 1 else values, (tokens, shared))
    # `_nearest` leaves nothing for the conversion to round.
    shared_bits = torch.from_numpy(_nearest(per_place, dtype)).to(dtype).view(bits).numpy()
    words = np.zeros((tokens, topk + shared), shared_bits.dtype)
    words[:padding, :topk] = topk_weights.detach().cpu().contiguous().view(bits).numpy()[:padding]
    words[:padding, topk:] = shared_bits[:padding]

    device = topk_ids.device
    return (
        torch.from_numpy(ids).to(topk_ids.dtype).to(device),
        torch.from_numpy(words).view(dtype).to(device),
    )


def _nearest(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Return the values of `dtype` nearest to float64 values, ties to even, as float64."""
    info = torch.finfo(dtype)
    exponent = np.frexp(values)[1] - 1
    smallest = math.frexp(info.tiny)[1] - 1
    # The distance between neighbours of the dtype; denormals share that of the smallest normal number.
    spacing = np.ldexp(info.eps, np.maximum(exponent, smallest))
    with np.errstate(invalid="ignore"):
        rounded = np.rint(values / spacing) * spacing
    rounded = np.where(np.abs(rounded) > info.max, np.copysign(np.inf, values), rounded)
    return np.where(np.isfinite(values), rounded, values)
