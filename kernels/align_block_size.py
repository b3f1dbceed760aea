"""Groups routed tokens by expert in padded blocks on CUDA: a stable, bitwise repeatable counting sort."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from . import validate
from .align_plan import MAX_SLICES, SCAN_EXPERTS, THREADS, AlignPlan, capacity, plan
from .launcher import Launchable, Params, capability, load_kernel, sm_count

__all__ = ["capacity", "moe_align_block_size"]

_FILE = "align_block_size.cu"
_params = Params(6, "3qIiIi10i")  # AlignParams of align_block_size.cu
_NAMES = ("sorted_token_ids", "expert_ids", "num_tokens_post_pad")
_MAX_PREPARED = 4096

Aligned = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A validated call: everything but addresses."""

    places: int
    blocks: int
    scratch: int  # int32 elements
    plan: AlignPlan | None  # None: no ids
    launches: tuple[tuple[Launchable, int, int, int, bool], ...]  # kernel, grid, block, shared memory, overlap
    constants: bytes


_prepared: dict[Any, _Prepared] = {}


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
    tensors go straight to the kernels. Under torch.compile, and for meta tensors and subclasses (fake tensors
    among them), the call goes through ``torch.ops.moeproof.moe_align_block_size``.

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
    if type(topk_ids) is torch.Tensor and not topk_ids.is_meta and not torch.compiler.is_compiling():
        return run(topk_ids, num_experts, block_size, expert_map, out)
    validate.tensor("topk_ids", topk_ids, 2, validate.INTEGERS)
    if out is not None:
        raise TypeError("out is given for a traced or wrapped call; allowed there: None")
    from . import ops

    return ops.moe_align_block_size(topk_ids, num_experts, block_size, expert_map=expert_map)


def run(
    topk_ids: torch.Tensor,
    num_experts: int,
    block_size: int,
    expert_map: torch.Tensor | None = None,
    out: Aligned | None = None,
) -> Aligned:
    """Do what `moe_align_block_size` says, past the dispatcher. Arguments by position."""
    try:
        key = (
            *_signature(topk_ids),
            num_experts,
            block_size,
            None if expert_map is None else _signature(expert_map),
            None if out is None else tuple(map(_signature, out)),
        )
        prepared = _prepared.get(key)
    except (TypeError, AttributeError, RuntimeError):  # an argument of a wrong kind, which _prepare names
        key, prepared = None, None
    if prepared is None:
        prepared = _prepare(topk_ids, num_experts, block_size, expert_map, out)
        if len(_prepared) >= _MAX_PREPARED:
            _prepared.clear()
        if key is not None and topk_ids.is_cuda:  # on the CPU the kernels are one executor's own
            _prepared[key] = prepared
    if out is None:
        device = topk_ids.device
        places = torch.empty(prepared.places, dtype=torch.int32, device=device)
        blocks = torch.empty(prepared.blocks, dtype=torch.int32, device=device)
        total = torch.empty(1, dtype=torch.int32, device=device)
    else:
        places, blocks, total = out
    if prepared.plan is None:
        total.zero_()
        return places, blocks, total
    scratch = 0
    if prepared.scratch:
        memory = torch.empty(prepared.scratch, dtype=torch.int32, device=topk_ids.device)
        scratch = memory.data_ptr()
    params = _params.pack(
        prepared.constants,
        topk_ids.data_ptr(),
        0 if expert_map is None else expert_map.data_ptr(),
        places.data_ptr(),
        blocks.data_ptr(),
        total.data_ptr(),
        scratch,
    )
    for kernel, grid, block, shared, overlap in prepared.launches:
        kernel.launch(grid, block, params, shared, overlap)
    return places, blocks, total


def _signature(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


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


def _prepare(
    topk_ids: torch.Tensor,
    num_experts: int,
    block_size: int,
    expert_map: torch.Tensor | None,
    out: Aligned | None,
) -> _Prepared:
    check_arguments(topk_ids, num_experts, block_size, expert_map, out)
    validate.on_cuda("topk_ids", topk_ids)
    numel = topk_ids.numel()
    length = capacity(numel, num_experts, block_size)
    if numel == 0:
        return _Prepared(length, length // block_size, 0, None, (), b"")
    index = topk_ids.device.index
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
    scratch = 0 if chosen.variant == "few" else (chosen.tiles + 1) * num_experts + MAX_SLICES  # ScanScratch
    launches = tuple(
        (load_kernel(_FILE, name, index, shared), grid, THREADS, shared, i > 0)
        for i, (name, grid, shared) in enumerate(_launches(chosen, num_experts))
    )
    return _Prepared(length, length // block_size, scratch, chosen, launches, constants)


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
