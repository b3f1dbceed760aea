"""Appends shared experts to routed ids and weights: one Triton launch."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import eager, validate
from .eager import current_device, dispatch_modes, empty_on, is_compiling, never, storage_of
from .kept import Calls, Prepared
from .launcher import OVERLAP_CAPABILITY, Bound, Launchable, Params, bind, capability

Appended = tuple[torch.Tensor, torch.Tensor]
Call = tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int, torch.Tensor | None]
"""The arguments of `append_shared_experts` but ``out``, in its order."""
FEW_TOKENS, FEW_ROWS, ROWS = 4096, 8, 64
"""Rows a program: one place a thread up to FEW_TOKENS, where latency counts; beyond, enough of them to hide it."""
PLACES = 16
"""Places that a program handles at a time: all of a row's, for the common numbers of experts a token."""
_NAMES = ("ids", "weights")
_BITS = {4: torch.int32, 2: torch.int16}
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}
"""Triton's names."""
_params = Params(6, "13q", separate=True)  # the parameters of append_rows, and Triton's two for scratch memory


@dataclass(slots=True, kw_only=True)
class _Prepared(Prepared):
    """What a call of this op is compared with, and what it launches."""

    num_experts: int
    shared: int
    limited: bool
    shape: tuple[int, int]
    strides: tuple[int, int]
    dtypes: tuple[torch.dtype, torch.dtype]
    launch: Bound | None = None  # of addresses
    by_triton: Callable[..., None] | None = None  # of tensors, through Triton's own launcher; neither: no tokens


_calls: Calls[_Prepared] = Calls()


@functools.cache
def _kernel() -> Any:
    """Return the kernel; Triton is imported on first use, and reads TRITON_INTERPRET then."""
    from .append_kernel import append_rows

    return append_rows


def rows_per_program(tokens: int) -> int:
    """Return how many rows a program of the kernel handles."""
    return FEW_ROWS if tokens <= FEW_TOKENS else ROWS


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
    torch.compile and modes that see every call of torch, and for meta tensors and subclasses (fake tensors
    among them), the call goes through ``torch.ops.moeproof.append_shared_experts``. Runs on CPU tensors under
    ``TRITON_INTERPRET=1``.

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
    if (
        type(topk_ids) is torch.Tensor
        and not is_compiling()
        and not topk_ids.is_meta
        and not (dispatch_modes() and topk_ids.is_cuda)
    ):
        call = (
            topk_ids,
            topk_weights,
            shared_weights,
            num_experts,
            num_fused_shared_experts,
            num_token_non_padded,
        )
        return run(call, out)
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


def run(call: Call, out: Appended | None = None) -> Appended:
    """Do what `append_shared_experts` says, past the dispatcher."""
    topk_ids, topk_weights, shared_weights, num_experts, shared, limit = call
    given: tuple[torch.Tensor, ...] = (topk_ids, topk_weights, shared_weights)
    if limit is not None:
        given = (*given, limit)
    prepared = _calls.last
    # What equals a right value may be of a wrong type, as True equals 1.
    if (
        prepared is None
        or type(num_experts) is not int
        or num_experts != prepared.num_experts
        or shared is not prepared.shared
        or (limit is not None) is not prepared.limited
        or not prepared.same(*given)
        or not topk_ids.untyped_storage()
        or not topk_weights.untyped_storage()
        or not shared_weights.untyped_storage()
        or (limit is not None and not limit.untyped_storage())
    ):
        prepared = _calls.find((num_experts, shared), given, functools.partial(_prepare, call, out))
        prepared.shared = shared  # this object: the next call's is likely the same
    if prepared.current is not None and prepared.current != current_device():
        with torch.cuda.device(prepared.current):
            return run(call, out)
    if out is None:
        ids = prepared.empty(prepared.shape, prepared.strides, prepared.dtypes[0])
        weights = prepared.empty(prepared.shape, prepared.strides, prepared.dtypes[1])
    else:
        if type(out) is not tuple or len(out) != 2 or not prepared.fits(*out) or not all(map(storage_of, out)):
            check_arguments(*call, out)
            prepared.fits = eager.guard(*out) if eager.is_kept(topk_ids) else never
        ids, weights = out
    if prepared.launch is not None:
        prepared.launch(
            topk_ids.data_ptr(),
            topk_weights.data_ptr(),
            shared_weights.data_ptr(),
            ids.data_ptr(),
            weights.data_ptr(),
            0 if limit is None else limit.data_ptr(),
        )
    elif prepared.by_triton is not None:
        bits = _BITS[weights.itemsize]
        prepared.by_triton(
            topk_ids,
            topk_weights.view(bits),
            shared_weights,
            ids,
            weights.view(bits),
            ids if limit is None else limit,
        )
    return ids, weights


def _prepare(call: Call, out: Appended | None) -> _Prepared:
    """Check a call and plan it."""
    check_arguments(*call, out)
    topk_ids, topk_weights, shared_weights, num_experts, shared, limit = call
    device = topk_ids.device
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        validate.on_cuda("topk_ids", topk_ids)
    named = {"topk_ids": topk_ids, "topk_weights": topk_weights, "shared_weights": shared_weights}
    validate.in_memory({**named, "num_token_non_padded": limit})
    tokens, topk = topk_ids.shape
    width = topk + shared
    dtypes = (topk_ids.dtype, topk_weights.dtype)
    prepared = _Prepared(
        num_experts=num_experts,
        shared=shared,
        limited=limit is not None,
        shape=(tokens, width),
        strides=(width, 1),
        dtypes=dtypes,
        current=device.index,
        empty=empty_on(device),
    )
    if tokens == 0:
        return prepared
    rows = rows_per_program(tokens)
    grid = -(-tokens // rows)
    by_row, by_place = (*shared_weights.stride(), 0, 0)[:2]
    steps = (*topk_ids.stride(), *topk_weights.stride(), by_row, by_place)
    values = (int(limit is not None), tokens, topk, shared, *steps, num_experts)
    reach = max(_reach(topk_ids), _reach(topk_weights), _reach(shared_weights), grid * rows * width)
    constants = {
        "DTYPE": _DTYPES[topk_weights.dtype],
        "ROWS": rows,
        "PLACES": PLACES,
        "ONE_PASS": width <= PLACES,
        "WIDE": reach > validate.INT32_MAX,
    }
    loaded = _loaded(device.index, *dtypes, shared_weights.dtype, tuple(constants.items()))
    if loaded is None:
        prepared.by_triton = functools.partial(_by_triton, grid, values, {**constants, "OVERLAP": False})
    else:
        kernel, block, memory = loaded
        prepared.launch = bind(kernel, _params, _params.freeze(*values, 0, 0), grid, block, memory, overlap=True)
    return prepared


def _reach(tensor: torch.Tensor) -> int:
    """Return the largest offset of an element."""
    return sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))


@functools.cache
def _loaded(
    device: int | None,
    ids: torch.dtype,
    weights: torch.dtype,
    shared_weights: torch.dtype,
    constants: tuple[tuple[str, Any], ...],
) -> tuple[Launchable, int, int] | None:
    """Return the kernel, its threads a block and its bytes of shared memory.

    None where only Triton can launch it, as on the CPU, which has no device index.
    """
    if device is None:
        return None
    from .append_kernel import VALUES
    from .triton_loader import load_triton

    bits = f"*{_TYPES[_BITS[weights.itemsize]]}"
    pointers = {"topk_ids": f"*{_TYPES[ids]}", "topk_weight_bits": bits, "shared_weights": f"*{_TYPES[shared_weights]}"}
    pointers |= {"ids": pointers["topk_ids"], "weight_bits": bits, "num_valid_rows": "*i32"}
    overlap = capability(device) >= OVERLAP_CAPABILITY
    return load_triton(
        _kernel(), pointers | dict.fromkeys(VALUES, "i64"), {**dict(constants), "OVERLAP": overlap}, device
    )


def _by_triton(grid: int, values: tuple[int, ...], constants: dict[str, Any], *tensors: torch.Tensor) -> None:
    _kernel()[(grid,)](*tensors, *values, **constants)
