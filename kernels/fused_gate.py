"""The fused MoE gate on CUDA: scores, groups, top-k, weights, shared experts and id mapping in one launch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from . import eager, tuning, validate
from .eager import current_device, dispatch_modes, empty_on, is_compiling, never, storage_of
from .gate_plan import SCORINGS, plan
from .kept import Calls, Prepared
from .launcher import Bound, Params, bind, device_name, load_kernel, sm_count

Routed = tuple[torch.Tensor, torch.Tensor]
Call = tuple[
    torch.Tensor,
    torch.Tensor | None,
    int,
    str,
    int,
    int,
    bool,
    float,
    bool,
    int,
    torch.Tensor | None,
    torch.Tensor | None,
]
"""The arguments of `fused_gate` but ``out``, in its order."""
_params = Params(6, "5q10i2fi4x")  # GateParams of gate_row.cuh
_NAMES = ("weights", "indices")
_DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@dataclass(slots=True, kw_only=True)
class _Prepared(Prepared):
    """What a call of this op is compared with, and what it launches."""

    topk: int
    scoring: str
    groups: int
    kept: int
    renormalize: bool
    factor: float
    on_output: bool
    shared: int
    biased: bool
    limited: bool
    mapped: bool
    alignment: int  # of the logits
    bias_alignment: int
    tuned: object  # the table that the plan was made by
    shape: tuple[int, int]
    strides: tuple[int, int]
    launch: Bound | None = None  # None: no tokens


_calls: Calls[_Prepared] = Calls(aligned=2)


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
    out: Routed | None = None,
) -> Routed:
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
        call = (
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
        )
        return run(call, out)
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


def run(call: Call, out: Routed | None = None) -> Routed:
    """Do what `fused_gate` says, past the dispatcher."""
    logits, bias, topk, scoring, groups, kept, renormalize, factor, on_output, shared, limit, expert_map = call
    given: tuple[torch.Tensor, ...] = (logits,) if bias is None else (logits, bias)
    if limit is not None:
        given = (*given, limit)
    if expert_map is not None:
        given = (*given, expert_map)
    prepared = _calls.last
    # What equals a right value may be of a wrong type, as True equals 1: so values are compared by identity.
    if (
        prepared is None
        or topk is not prepared.topk
        or scoring is not prepared.scoring
        or groups is not prepared.groups
        or kept is not prepared.kept
        or renormalize is not prepared.renormalize
        or type(factor) is not float
        or factor != prepared.factor
        or on_output is not prepared.on_output
        or shared is not prepared.shared
        or (bias is not None) is not prepared.biased
        or (limit is not None) is not prepared.limited
        or (expert_map is not None) is not prepared.mapped
        or tuning.GATE is not prepared.tuned
        or not prepared.same(*given)
        or logits.data_ptr() & 15 != prepared.alignment
        or not logits.untyped_storage()
        or (bias is not None and (bias.data_ptr() & 15 != prepared.bias_alignment or not bias.untyped_storage()))
        or (limit is not None and not limit.untyped_storage())
        or (expert_map is not None and not expert_map.untyped_storage())
    ):
        values = (*call[2:10], bias is None, limit is None, expert_map is None, tuning.GATE)
        prepared = _calls.find(values, given, partial(_prepare, call, out))
        # The objects of this call: those of the next are likely the same.
        prepared.topk, prepared.scoring, prepared.groups, prepared.kept = topk, scoring, groups, kept
    if prepared.current is not None and prepared.current != current_device():
        with torch.cuda.device(prepared.current):
            return run(call, out)
    if out is None:
        weights = prepared.empty(prepared.shape, prepared.strides, torch.float32)
        indices = prepared.empty(prepared.shape, prepared.strides, torch.int32)
    else:
        if type(out) is not tuple or len(out) != 2 or not prepared.fits(*out) or not all(map(storage_of, out)):
            check_arguments(*call, out)
            prepared.fits = eager.guard(*out) if eager.is_kept(logits) else never
        weights, indices = out
    if prepared.launch is not None:
        prepared.launch(
            logits.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            weights.data_ptr(),
            indices.data_ptr(),
            0 if limit is None else limit.data_ptr(),
            0 if expert_map is None else expert_map.data_ptr(),
        )
    return weights, indices


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
        validate.outputs(out, _NAMES, shapes, (torch.float32, torch.int32), logits)


def _prepare(call: Call, out: Routed | None) -> _Prepared:
    """Check a call and plan it."""
    check_arguments(*call, out)
    logits, bias, topk, scoring, groups, kept, renormalize, factor, on_output, shared, limit, expert_map = call
    validate.on_cuda("logits", logits)
    named = {"logits": logits, "bias": bias, "num_token_non_padded": limit, "expert_map": expert_map}
    validate.in_memory(named)
    tokens, experts = logits.shape
    index = logits.device.index
    prepared = _Prepared(
        topk=topk,
        scoring=scoring,
        groups=groups,
        kept=kept,
        renormalize=renormalize,
        factor=factor,
        on_output=on_output,
        shared=shared,
        biased=bias is not None,
        limited=limit is not None,
        mapped=expert_map is not None,
        alignment=logits.data_ptr() & 15,
        bias_alignment=0 if bias is None else bias.data_ptr() & 15,
        tuned=tuning.GATE,
        shape=(tokens, topk),
        strides=(topk, 1),
        current=index,
        empty=empty_on(logits.device),
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
        int(chosen.early),
    )
    kernel = load_kernel(chosen.file, chosen.name, index)
    prepared.launch = bind(kernel, _params, constants, chosen.grid, chosen.block, overlap=True)
    return prepared


def _alignment(address: int, step: int) -> int:
    """Return the largest power of two, up to 16, that divides both."""
    both = address | step | 16
    return both & -both
