"""Groups routed tokens by expert in padded blocks on CUDA: a stable, bitwise repeatable counting sort."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from . import eager, validate
from .align_plan import MAX_SLICES, SCAN_EXPERTS, THREADS, AlignPlan, capacity, plan
from .eager import current_device, dispatch_modes, empty_on, is_compiling, never, storage_of
from .kept import Calls, Prepared
from .launcher import Bound, Params, bind, capability, load_kernel, sm_count

__all__ = ["capacity", "moe_align_block_size"]

_FILE = "align_block_size.cu"
_params = Params(6, "3qIiIi10i")  # AlignParams of align_block_size.cu
_NAMES = ("sorted_token_ids", "expert_ids", "num_tokens_post_pad")

Aligned = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


Call = tuple[torch.Tensor, int, int, torch.Tensor | None]
"""The arguments of `moe_align_block_size` but ``out``, in its order."""


@dataclass(slots=True, kw_only=True)
class _Prepared(Prepared):
    """What a call of this op is compared with, and what it launches."""

    num_experts: int
    block_size: int
    mapped: bool
    places: tuple[int]
    blocks: tuple[int]
    scratch: tuple[int]  # int32 elements
    launches: tuple[Bound, ...] = ()  # none: no ids


_calls: Calls[_Prepared] = Calls()
_ONE = (1,)
"""Stride of a vector, and length of `num_tokens_post_pad`."""


def moe_align_block_size(
    topk_ids: torch.Tensor,
    num_experts: int,
    block_size: int,
    *,
    expert_map: torch.Tensor | None = None,
    out: Aligned | None = None,
) -> Aligned:
    """Group flat indices by expert, as docs/contracts.md says. One to three launches on the current stream.

    Stable: indices ascend within an expert. Ids of −1 and ids outside [0, num_experts) are dropped. Plain
    tensors go straight to the kernels. Under torch.compile and modes that see every call of torch, and for meta
    tensors and subclasses (fake tensors among them), the call goes through
    ``torch.ops.moeproof.moe_align_block_size``.

    Parameters
    ----------
    topk_ids : Tensor
        ``[T, k]`` int32 or int64, any strides.
    num_experts : int
        E, up to 4096.
    block_size : int
        B ≥ 1; the outputs must stay below 2^31 elements.
    expert_map : Tensor, optional
        ``[E]`` int32, applied to every id first; −1 drops.
    out : tuple of Tensor, optional
        Contiguous outputs to fill.

    Returns
    -------
    sorted_token_ids : Tensor
        ``[capacity(T·k, E, B)]`` int32, padded with T·k.
    expert_ids : Tensor
        ``[capacity / B]`` int32, −1 past the last block in use.
    num_tokens_post_pad : Tensor
        ``[1]`` int32.

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
        return run((topk_ids, num_experts, block_size, expert_map), out)
    validate.tensor("topk_ids", topk_ids, 2, validate.INTEGERS)
    if out is not None:
        raise TypeError("out is given for a traced or wrapped call; allowed there: None")
    from . import ops

    return ops.moe_align_block_size(topk_ids, num_experts, block_size, expert_map=expert_map)


def run(call: Call, out: Aligned | None = None) -> Aligned:
    """Do what `moe_align_block_size` says, past the dispatcher."""
    topk_ids, num_experts, block_size, expert_map = call
    given = (topk_ids,) if expert_map is None else (topk_ids, expert_map)
    prepared = _calls.last
    # What equals a right value may be of a wrong type, as True equals 1.
    if (
        prepared is None
        or type(num_experts) is not int
        or num_experts != prepared.num_experts
        or type(block_size) is not int
        or block_size != prepared.block_size
        or (expert_map is not None) is not prepared.mapped
        or not prepared.same(*given)
        or not topk_ids.untyped_storage()
        or (expert_map is not None and not expert_map.untyped_storage())
    ):
        prepared = _calls.find((num_experts, block_size), given, partial(_prepare, call, out))
    if prepared.current is not None and prepared.current != current_device():
        with torch.cuda.device(prepared.current):
            return run(call, out)
    empty = prepared.empty
    if out is None:
        places = empty(prepared.places, _ONE, torch.int32)
        blocks = empty(prepared.blocks, _ONE, torch.int32)
        total = empty(_ONE, _ONE, torch.int32)
    else:
        if type(out) is not tuple or len(out) != 3 or not prepared.fits(*out) or not all(map(storage_of, out)):
            check_arguments(*call, out)
            prepared.fits = eager.guard(*out) if eager.is_kept(topk_ids) else never
        places, blocks, total = out
    if not prepared.launches:
        total.zero_()
        return places, blocks, total
    scratch = empty(prepared.scratch, _ONE, torch.int32) if prepared.scratch[0] else None
    pointers = (
        topk_ids.data_ptr(),
        0 if expert_map is None else expert_map.data_ptr(),
        places.data_ptr(),
        blocks.data_ptr(),
        total.data_ptr(),
        0 if scratch is None else scratch.data_ptr(),
    )
    for launch in prepared.launches:
        launch(*pointers)
    return places, blocks, total


def check_arguments(
    topk_ids: torch.Tensor,
    num_experts: int,
    block_size: int,
    expert_map: torch.Tensor | None,
    out: Aligned | None,
) -> None:
    """Raise TypeError or ValueError for arguments outside the domain; the device's kind is not looked at."""
    validate.tensor("topk_ids", topk_ids, 2, validate.INTEGERS)
    validate.integer("num_experts", num_experts, 1, validate.MAX_EXPERTS)
    validate.integer("block_size", block_size, 1, None)
    numel = topk_ids.numel()
    if numel > validate.INT32_MAX:
        raise ValueError(f"topk_ids has {numel} ids; allowed: up to {validate.INT32_MAX}")
    places = numel + min(numel, num_experts) * (block_size - 1)
    if places > validate.INT32_MAX:
        raise ValueError(f"block_size is {block_size}, giving {places} places; allowed: up to {validate.INT32_MAX}")
    if expert_map is not None:
        validate.tensor("expert_map", expert_map, 1, (torch.int32,))
        validate.shape("expert_map", expert_map, (num_experts,), "one id an expert")
        validate.same_device("expert_map", expert_map, topk_ids, "topk_ids")
    if out is not None:
        length = capacity(numel, num_experts, block_size)
        shapes = ((length,), (length // block_size,), (1,))
        validate.outputs(out, _NAMES, shapes, (torch.int32,) * 3, topk_ids)


def _prepare(call: Call, out: Aligned | None) -> _Prepared:
    """Check a call and plan it."""
    check_arguments(*call, out)
    topk_ids, num_experts, block_size, expert_map = call
    validate.on_cuda("topk_ids", topk_ids)
    validate.in_memory({"topk_ids": topk_ids, "expert_map": expert_map})
    numel = topk_ids.numel()
    length = capacity(numel, num_experts, block_size)
    index = topk_ids.device.index
    prepared = _Prepared(
        num_experts=num_experts,
        block_size=block_size,
        mapped=expert_map is not None,
        places=(length,),
        blocks=(length // block_size,),
        scratch=(0,),
        current=index,
        empty=empty_on(topk_ids.device),
    )
    if numel == 0:
        return prepared
    chosen = plan(numel, num_experts, block_size, sm_count=sm_count(index), capability=capability(index))
    topk, row_stride, column_stride = _as_rows(topk_ids)
    constants = _params.freeze(
        column_stride,
        row_stride - topk * column_stride if topk else 0,
        0 if expert_map is None else expert_map.stride(0),
        *(_divisor(topk) if topk else (0, 0)),
        *_divisor(block_size),
        int(topk_ids.dtype is torch.int64),
        numel,
        num_experts,
        block_size,
        length,
        chosen.tiles,
        chosen.tile_length,
        chosen.own,
        chosen.rank_warps,
        chosen.chunks,
    )
    if chosen.variant != "few":
        prepared.scratch = ((chosen.tiles + 1) * num_experts + MAX_SLICES,)  # ScanScratch
    prepared.launches = tuple(
        bind(load_kernel(_FILE, name, index, shared), _params, constants, grid, THREADS, shared, overlap=True)
        for name, grid, shared in _launches(chosen, num_experts)
    )
    return prepared


def _launches(chosen: AlignPlan, num_experts: int) -> list[tuple[str, int, int]]:
    """Return (name, blocks, bytes of shared memory) of each launch."""
    last = (chosen.place, chosen.grid, chosen.shared)
    if chosen.variant == "few":
        return [last]
    tiles = (chosen.histogram, chosen.tiles, chosen.histogram_shared)
    return [tiles, ("scan_tiles", -(-num_experts // SCAN_EXPERTS), 0), last]


def _divisor(value: int) -> tuple[int, int]:
    """Return (multiplier, shift): n // value == n * multiplier >> shift for 0 ≤ n < 2^31."""
    bits = (value - 1).bit_length()
    return -(-(1 << 31 + bits) // value), 31 + bits


def _as_rows(ids: torch.Tensor) -> tuple[int, int, int]:
    """Return (places a row, row stride, column stride); 0 places for evenly spaced ids: no division."""
    (tokens, topk), (rows, columns) = ids.shape, ids.stride()
    if tokens == 1 or rows == topk * columns:
        return 0, 0, columns
    if topk == 1:
        return 0, 0, rows
    return topk, rows, columns
