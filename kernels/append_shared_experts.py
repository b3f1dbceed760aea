"""Appends shared experts to routed ids and weights: one Triton launch."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch

from . import validate

Appended = tuple[torch.Tensor, torch.Tensor]
ROWS = 64
"""Rows a program; small, since a decode batch is one program and a large batch has thousands."""
PLACES = 16
"""Places that a program handles at a time: all of a row's, for the common numbers of experts a token."""
_NAMES = ("ids", "weights")
_BITS = {4: torch.int32, 2: torch.int16}
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


@functools.cache
def _kernel() -> Any:
    """Return the kernel; Triton is imported on first use, and reads TRITON_INTERPRET then."""
    from .append_kernel import append_rows

    return append_rows


def append_shared_experts(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    shared_weights: torch.Tensor,
    num_experts: int,
    num_fused_shared_experts: int = 1,
    *,
    num_token_non_padded: torch.Tensor | None = None,
    out: Appended | None = None,
) -> Appended:
    """Append shared experts' ids and weights to each token's, as docs/contracts.md says. One launch.

    Routed ids and weights are copied bit for bit. Plain tensors go straight to the kernel. Under
    torch.compile, and for meta tensors and subclasses (fake tensors among them), the call goes through
    ``torch.ops.moeproof.append_shared_experts``. Runs on CPU tensors under ``TRITON_INTERPRET=1``.

    Parameters
    ----------
    topk_ids : Tensor
        ``[T, k]`` int32 or int64, any strides.
    topk_weights : Tensor
        ``[T, k]`` float32, bfloat16 or float16, any strides.
    shared_weights : Tensor
        ``[T, S]``, ``[T]`` or scalar, float32, bfloat16 or float16; cast once to the dtype of `topk_weights`.
    num_experts : int
        Id of the first shared expert.
    num_fused_shared_experts : int
        S ≥ 1.
    num_token_non_padded : Tensor, optional
        int32 scalar or ``[1]``: rows at or past it hold ids −1 and weights 0.
    out : tuple of Tensor, optional
        Contiguous ids and weights to fill.

    Returns
    -------
    ids : Tensor
        ``[T, k + S]``, dtype of `topk_ids`.
    weights : Tensor
        ``[T, k + S]``, dtype of `topk_weights`.

    Raises
    ------
    TypeError, ValueError
        For an argument outside the domain.
    """
    if type(topk_ids) is torch.Tensor and not topk_ids.is_meta and not torch.compiler.is_compiling():
        return run(
            topk_ids,
            topk_weights,
            shared_weights,
            num_experts,
            num_fused_shared_experts,
            num_token_non_padded,
            out,
        )
    validate.tensor("topk_ids", topk_ids, 2, validate.INTEGERS)
    if out is not None:
        raise TypeError("out is given for a traced or wrapped call; allowed there: None")
    from . import ops

    return ops.append_shared_experts(
        topk_ids,
        topk_weights,
        shared_weights,
        num_experts,
        num_fused_shared_experts,
        num_token_non_padded=num_token_non_padded,
    )


def check_arguments(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    shared_weights: torch.Tensor,
    num_experts: int,
    num_fused_shared_experts: int,
    num_token_non_padded: torch.Tensor | None,
    out: Appended | None,
) -> None:
    """Raise TypeError or ValueError for arguments outside the domain; the device's kind is not looked at."""
    validate.tensor("topk_ids", topk_ids, 2, validate.INTEGERS)
    validate.tensor("topk_weights", topk_weights, 2, validate.FLOATS)
    validate.shape("topk_weights", topk_weights, topk_ids.shape, "the shape of topk_ids")
    validate.same_device("topk_weights", topk_weights, topk_ids, "topk_ids")
    validate.integer("num_fused_shared_experts", num_fused_shared_experts, 1, None)
    highest = torch.iinfo(topk_ids.dtype).max - num_fused_shared_experts
    validate.integer("num_experts", num_experts, 0, highest)
    tokens, topk = topk_ids.shape
    if topk < 1:
        raise ValueError(f"topk_ids has shape {tuple(topk_ids.shape)}; allowed: at least one place a token")
    validate.tensor("shared_weights", shared_weights, (0, 1, 2), validate.FLOATS)
    full = (tokens, num_fused_shared_experts)
    validate.shape("shared_weights", shared_weights, full[: shared_weights.dim()], "[T, S], [T] or a scalar")
    validate.same_device("shared_weights", shared_weights, topk_ids, "topk_ids")
    validate.row_limit(num_token_non_padded, topk_ids, "topk_ids")
    if out is not None:
        shapes = ((tokens, topk + num_fused_shared_experts),) * 2
        validate.outputs(out, _NAMES, shapes, (topk_ids.dtype, topk_weights.dtype), topk_ids)


def run(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    shared_weights: torch.Tensor,
    num_experts: int,
    num_fused_shared_experts: int = 1,
    num_token_non_padded: torch.Tensor | None = None,
    out: Appended | None = None,
) -> Appended:
    """Do what `append_shared_experts` says, past the dispatcher. Arguments by position."""
    check_arguments(
        topk_ids,
        topk_weights,
        shared_weights,
        num_experts,
        num_fused_shared_experts,
        num_token_non_padded,
        out,
    )
    if topk_ids.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        validate.on_cuda("topk_ids", topk_ids)
    tokens, topk = topk_ids.shape
    width = topk + num_fused_shared_experts
    if out is None:
        ids = torch.empty((tokens, width), dtype=topk_ids.dtype, device=topk_ids.device)
        weights = torch.empty((tokens, width), dtype=topk_weights.dtype, device=topk_ids.device)
    else:
        ids, weights = out
    if tokens == 0:
        return ids, weights
    bits = _BITS[topk_weights.itemsize]
    strides = (*shared_weights.stride(), 0, 0)[:2]
    arguments = (
        topk_ids,
        topk_weights.view(bits),
        shared_weights,
        ids,
        weights.view(bits),
        ids if num_token_non_padded is None else num_token_non_padded,
        int(num_token_non_padded is not None),
        tokens,
        topk,
        num_fused_shared_experts,
        *topk_ids.stride(),
        *topk_weights.stride(),
        *strides,
        num_experts,
    )
    constants = {"DTYPE": _DTYPES[topk_weights.dtype], "ROWS": ROWS, "PLACES": PLACES}
    grid = (-(-tokens // ROWS),)
    if topk_ids.device.type == "cuda" and topk_ids.device.index != torch.cuda.current_device():
        with torch.cuda.device(topk_ids.device):
            _kernel()[grid](*arguments, **constants)
    else:
        _kernel()[grid](*arguments, **constants)
    return ids, weights
