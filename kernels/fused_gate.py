"""The fused MoE gate on CUDA: scores, groups, top-k, weights, shared experts and id mapping in one launch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from . import validate
from .eager import Empty, Guard, current_device, dispatch_modes, empty_on, guard, is_compiling, is_kept, never
from .gate_plan import SCORINGS, plan
from .launcher import Bound, Params, bind, device_name, load_kernel, sm_count

_params = Params(6, "5q10i2f")  # GateParams of gate_row.cuh
_DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_OUTPUT_DTYPES = (torch.float32, torch.int32)
_TYPES = tuple([int, str, int, int, bool, number, bool, int] for number in (float, int))
"""Types of the values of a call that is kept. True and 1.0 equal 1 and hash alike."""
_MAX_PREPARED = 4096


@dataclass(slots=True)
class _Prepared:
    """A validated call: everything but addresses."""

    topk: int
    scoring: str
    groups: int
    kept: int
    renormalize: bool
    factor: float
    on_output: bool
    shared: int
    has_bias: bool
    alignment: int
    bias_alignment: int
    shape: tuple[int, int]
    strides: tuple[int, int]
    current: int | None  # which CUDA device has to be current
    empty: Empty
    launch: Bound | None = None  # None: no tokens
    same: Guard = never  # are logits and bias as they were?
    fits: Guard = never  # are outputs as they were?


_prepared: dict[Any, _Prepared] = {}
"""By everything that `_Prepared` depends on; under _LAST, that of the last call that had to look it up."""
_LAST = None


def fused_gate(
    logits: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    topk: int,
    scoring: str = "sigmoid",
    num_expert_group: int = 1,
    topk_group: int = 1,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
    apply_routed_scaling_factor_on_output: bool = False,
    num_fused_shared_experts: int = 0,
    num_token_non_padded: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Route tokens to experts, as docs/contracts.md says. One launch on the current stream; no gradient.

    Plain tensors go straight to the kernel. Under torch.compile and modes that see every call of torch, and for
    meta tensors and subclasses (fake tensors among them), the call goes through ``torch.ops.moeproof.fused_gate``.

    Parameters
    ----------
    logits : Tensor
        ``[T, E]`` float32, bfloat16 or float16, E from 1 to 4096, any strides and alignment.
    bias : Tensor, optional
        ``[E]`` float32, bfloat16 or float16: ranks experts, never enters a weight.
    topk : int
        Places a row, shared ones included, up to 32.
    scoring : str
        ``sigmoid``, ``softmax`` or ``sqrtsoftplus``.
    num_expert_group, topk_group : int
        Groups that the experts fall into, and how many are kept.
    renormalize : bool
        Divide routed weights by their sum.
    routed_scaling_factor : float
        f > 0.
    apply_routed_scaling_factor_on_output : bool
        Multiply routed weights by f; shared weights are then 1, else 1/f.
    num_fused_shared_experts : int
        Last places of a row that go to shared experts, ids E and up.
    num_token_non_padded : Tensor, optional
        int32 scalar or ``[1]``: rows at or past it hold ids −1 and weights 0.
    expert_map : Tensor, optional
        ``[E + shared]`` int32, logical to physical id.
    out : tuple of Tensor, optional
        Contiguous weights and indices to fill.

    Returns
    -------
    weights : Tensor
        ``[T, topk]`` float32.
    indices : Tensor
        ``[T, topk]`` int32, best first.

    Raises
    ------
    TypeError, ValueError
        For an argument outside the domain.
    """
    if (
        type(logits) is torch.Tensor
        and not is_compiling()
        and not logits.is_meta
        and not (dispatch_modes() and logits.is_cuda)
    ):
        return run(
            logits,
            bias,
            topk,
            scoring,
            num_expert_group,
            topk_group,
            renormalize,
            routed_scaling_factor,
            apply_routed_scaling_factor_on_output,
            num_fused_shared_experts,
            num_token_non_padded,
            expert_map,
            out,
        )
    validate.tensor("logits", logits, 2, validate.FLOATS)
    if out is not None:
        raise TypeError("out is given for a traced or wrapped call; allowed there: None")
    from . import ops

    return ops.fused_gate(
        logits,
        bias,
        topk=topk,
        scoring=scoring,
        num_expert_group=num_expert_group,
        topk_group=topk_group,
        renormalize=renormalize,
        routed_scaling_factor=routed_scaling_factor,
        apply_routed_scaling_factor_on_output=apply_routed_scaling_factor_on_output,
        num_fused_shared_experts=num_fused_shared_experts,
        num_token_non_padded=num_token_non_padded,
        expert_map=expert_map,
    )


def run(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    topk: int,
    scoring: str,
    num_expert_group: int,
    topk_group: int,
    renormalize: bool,
    routed_scaling_factor: float,
    apply_routed_scaling_factor_on_output: bool,
    num_fused_shared_experts: int,
    num_token_non_padded: torch.Tensor | None,
    expert_map: torch.Tensor | None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `fused_gate` says, past the dispatcher. Arguments by position."""
    last = _prepared.get(_LAST)
    # What equals a right value may be of a wrong type, as True equals 1: so values are compared by identity.
    if (
        last is not None
        and topk is last.topk
        and scoring is last.scoring
        and num_expert_group is last.groups
        and topk_group is last.kept
        and renormalize is last.renormalize
        and type(routed_scaling_factor) is float
        and routed_scaling_factor == last.factor
        and apply_routed_scaling_factor_on_output is last.on_output
        and num_fused_shared_experts is last.shared
        and num_token_non_padded is None
        and expert_map is None
        and last.has_bias is (bias is not None)
        and (last.same(logits) if bias is None else last.same(logits, bias))
        and (address := logits.data_ptr()) & 15 == last.alignment
        and (bias_address := 0 if bias is None else bias.data_ptr()) & 15 == last.bias_alignment
    ):
        prepared = last
    else:
        prepared = _find(
            logits,
            bias,
            topk,
            scoring,
            num_expert_group,
            topk_group,
            renormalize,
            routed_scaling_factor,
            apply_routed_scaling_factor_on_output,
            num_fused_shared_experts,
            num_token_non_padded,
            expert_map,
            out,
        )
        address, bias_address = logits.data_ptr(), 0 if bias is None else bias.data_ptr()
    if prepared.current != current_device():
        with torch.cuda.device(prepared.current):
            return run(
                logits,
                bias,
                topk,
                scoring,
                num_expert_group,
                topk_group,
                renormalize,
                routed_scaling_factor,
                apply_routed_scaling_factor_on_output,
                num_fused_shared_experts,
                num_token_non_padded,
                expert_map,
                out,
            )
    if out is None:
        weights = prepared.empty(prepared.shape, prepared.strides, torch.float32)
        indices = prepared.empty(prepared.shape, prepared.strides, torch.int32)
    else:
        if type(out) is not tuple or len(out) != 2 or not prepared.fits(*out):
            check_arguments(
                logits,
                bias,
                topk,
                scoring,
                num_expert_group,
                topk_group,
                renormalize,
                routed_scaling_factor,
                apply_routed_scaling_factor_on_output,
                num_fused_shared_experts,
                num_token_non_padded,
                expert_map,
                out,
            )
            prepared.fits = guard(*out) if is_kept(logits) else never
        weights, indices = out
    if prepared.launch is not None:
        prepared.launch(
            address,
            bias_address,
            weights.data_ptr(),
            indices.data_ptr(),
            0 if num_token_non_padded is None else num_token_non_padded.data_ptr(),
            0 if expert_map is None else expert_map.data_ptr(),
        )
    return weights, indices


def _find(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    topk: int,
    scoring: str,
    groups: int,
    kept: int,
    renormalize: bool,
    factor: float,
    on_output: bool,
    shared: int,
    limit: torch.Tensor | None,
    expert_map: torch.Tensor | None,
    out: tuple[torch.Tensor, torch.Tensor] | None,
) -> _Prepared:
    """Return a call prepared for these arguments: an earlier one of theirs, or a new one once they are checked."""
    call = (topk, scoring, groups, kept, renormalize, factor, on_output, shared)
    key, prepared = None, None
    if [*map(type, call)] in _TYPES:
        try:
            key = (
                call,
                *_signature(logits, 15),
                None if bias is None else _signature(bias, 15),
                None if limit is None else _signature(limit),
                None if expert_map is None else _signature(expert_map),
            )
            prepared = _prepared.get(key)
        except (TypeError, AttributeError, RuntimeError):  # an argument of a wrong kind, which check_arguments names
            pass
    if prepared is None:
        check_arguments(logits, bias, *call, limit, expert_map, out)
        prepared = _prepare(logits, bias, *call, limit, expert_map)
    if key is not None and is_kept(logits):
        # The objects of this call: equal ones of the next are likely the same.
        prepared.topk, prepared.scoring, prepared.groups, prepared.kept = topk, scoring, groups, kept
        given = (logits,) if bias is None else (logits, bias)
        if not prepared.same(*given):
            prepared.same = guard(*given)
        if len(_prepared) >= _MAX_PREPARED:
            _prepared.clear()
        _prepared[key] = prepared
        if limit is None and expert_map is None:
            _prepared[_LAST] = prepared
    return prepared


def _signature(tensor: torch.Tensor, alignment: int = 0) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, alignment and tensor.data_ptr() & alignment


def check_arguments(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    topk: int,
    scoring: str,
    num_expert_group: int,
    topk_group: int,
    renormalize: bool,
    routed_scaling_factor: float,
    apply_routed_scaling_factor_on_output: bool,
    num_fused_shared_experts: int,
    num_token_non_padded: torch.Tensor | None,
    expert_map: torch.Tensor | None,
    out: tuple[torch.Tensor, torch.Tensor] | None,
) -> None:
    """Raise TypeError or ValueError for arguments outside the domain; the device's kind is not looked at."""
    validate.tensor("logits", logits, 2, validate.FLOATS)
    tokens, experts = logits.shape
    if tokens > validate.INT32_MAX:
        raise ValueError(f"logits has {tokens} tokens; allowed: up to {validate.INT32_MAX}")
    if not 1 <= experts <= validate.MAX_EXPERTS:
        raise ValueError(f"logits has {experts} experts; allowed: 1 to {validate.MAX_EXPERTS}")
    if bias is not None:
        validate.tensor("bias", bias, 1, validate.FLOATS)
        validate.shape("bias", bias, (experts,), "one value an expert")
        validate.same_device("bias", bias, logits, "logits")
    validate.integer("topk", topk, 1, validate.MAX_PLACES)
    validate.integer("num_fused_shared_experts", num_fused_shared_experts, 0, topk - 1)
    routed = topk - num_fused_shared_experts
    if routed > experts:
        raise ValueError(f"topk is {topk} with {num_fused_shared_experts} shared; allowed: {experts} routed places")
    validate.choice("scoring", scoring, tuple(SCORINGS))
    validate.integer("num_expert_group", num_expert_group, 1, experts)
    if experts % num_expert_group:
        raise ValueError(f"num_expert_group is {num_expert_group}; allowed: a divisor of {experts}")
    validate.integer("topk_group", topk_group, 1, num_expert_group)
    if num_expert_group > 1 and routed > topk_group * (experts // num_expert_group):
        raise ValueError(
            f"topk_group is {topk_group}; allowed: groups of {experts // num_expert_group} experts"
            f" for {routed} routed places"
        )
    validate.boolean("renormalize", renormalize)
    validate.boolean("apply_routed_scaling_factor_on_output", apply_routed_scaling_factor_on_output)
    validate.scale("routed_scaling_factor", routed_scaling_factor)
    validate.row_limit(num_token_non_padded, logits, "logits")
    if expert_map is not None:
        validate.tensor("expert_map", expert_map, 1, (torch.int32,))
        validate.shape("expert_map", expert_map, (experts + num_fused_shared_experts,), "one id an expert")
        validate.same_device("expert_map", expert_map, logits, "logits")
    if out is not None:
        shapes = ((tokens, topk), (tokens, topk))
        validate.outputs(out, ("weights", "indices"), shapes, _OUTPUT_DTYPES, logits)


def _prepare(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    topk: int,
    scoring: str,
    groups: int,
    kept: int,
    renormalize: bool,
    factor: float,
    on_output: bool,
    shared: int,
    limit: torch.Tensor | None,
    expert_map: torch.Tensor | None,
) -> _Prepared:
    """Plan a call whose arguments have been checked."""
    validate.on_cuda("logits", logits)
    tokens, experts = logits.shape
    device = logits.device
    index = device.index
    prepared = _Prepared(
        topk,
        scoring,
        groups,
        kept,
        renormalize,
        factor,
        on_output,
        shared,
        has_bias=bias is not None,
        alignment=logits.data_ptr() & 15,
        bias_alignment=0 if bias is None else bias.data_ptr() & 15,
        shape=(tokens, topk),
        strides=(topk, 1),
        current=current_device() if index is None else index,
        empty=empty_on(device),
    )
    if tokens == 0:
        return prepared
    rows, columns = logits.stride()
    chosen = plan(
        tokens,
        experts,
        dtype=_DTYPE_NAMES[logits.dtype],
        scoring=scoring,
        biased=bias is not None,
        groups=groups,
        places=topk,
        unit_stride=columns == 1 or experts == 1,
        alignment=_alignment(logits.data_ptr(), rows * logits.itemsize if tokens > 1 else 0),
        bias_aligned=bias is None or (bias.stride(0) == 1 and bias.data_ptr() % (4 * bias.itemsize) == 0),
        sm_count=sm_count(index),
        device=device_name(index),
    )
    constants = _params.freeze(
        tokens,
        rows,
        columns,
        0 if bias is None else bias.stride(0),
        0 if expert_map is None else expert_map.stride(0),
        experts,
        topk - shared,
        topk,
        groups,
        kept,
        _DTYPE_CODES[logits.dtype],
        0 if bias is None else _DTYPE_CODES[bias.dtype],
        int(renormalize),
        SCORINGS[scoring],
        int(bias is not None or groups > 1),
        factor if on_output else 1.0,
        1.0 if on_output else 1.0 / factor,
    )
    kernel = load_kernel(chosen.file, chosen.name, index)
    prepared.launch = bind(kernel, _params, constants, chosen.grid, chosen.block, overlap=True)
    return prepared


def _alignment(address: int, step: int) -> int:
    """Return the largest power of two, up to 16, that divides both."""
    both = address | step | 16
    return both & -both
