"""Gold reference of `fused_gate`."""

from __future__ import annotations

import numpy as np
import torch

from ._arguments import (
    FLOATS,
    check_bool,
    check_int,
    check_positive,
    check_tensor,
    doubles,
    integers,
    padding_start,
    refuse,
)

SCORINGS = ("sigmoid", "softmax", "sqrtsoftplus")
CHUNK_ELEMENTS = 1 << 21
"""Logits scored at a time: bounds the float64 temporaries to some 100 MB."""


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Route each token to its `topk` best experts, as docs/contracts.md says.

    Parameters
    ----------
    logits : Tensor [T, E], float32, bfloat16 or float16
        Router logits.
    bias : Tensor [E], float32, bfloat16 or float16, optional
        Correction bias: ranks experts, never enters a weight.
    topk : int
        Places a row, shared places included.
    scoring : {"sigmoid", "softmax", "sqrtsoftplus"}
        Score of a logit.
    num_expert_group, topk_group : int
        Groups of neighbouring experts, and how many of them are kept.
    renormalize : bool
        Divide routed weights by their sum.
    routed_scaling_factor : float
        Finite, > 0.
    apply_routed_scaling_factor_on_output : bool
        Multiply routed weights by the factor.
    num_fused_shared_experts : int
        The last places of each row go to this many shared experts.
    num_token_non_padded : Tensor scalar or [1], int32, optional
        Rows at or past it are padding.
    expert_map : Tensor [E + S], int32, optional
        Logical to physical id.

    Returns
    -------
    weights : Tensor [T, topk], float32
        Computed in float64 and rounded once.
    indices : Tensor [T, topk], int32
        Best expert first.

    Raises
    ------
    ValueError
        If an argument is not what the contract allows; names it, its value and what is allowed.
    """
    check_tensor("logits", logits, FLOATS, (None, None))
    tokens, experts = logits.shape
    shared = num_fused_shared_experts
    if experts < 1:
        raise refuse("logits.shape", list(logits.shape), "[T, E] with E >= 1")
    if bias is not None:
        check_tensor("bias", bias, FLOATS, (experts,))
    check_int("num_fused_shared_experts", shared, 0)
    check_int("topk", topk, shared + 1, shared + experts)
    if scoring not in SCORINGS:
        raise refuse("scoring", scoring, ", ".join(SCORINGS))
    check_int("num_expert_group", num_expert_group, 1, experts)
    if experts % num_expert_group:
        raise refuse("num_expert_group", num_expert_group, f"a divisor of {experts}")
    check_int("topk_group", topk_group, 1, num_expert_group)
    check_bool("renormalize", renormalize)
    check_bool("apply_routed_scaling_factor_on_output", apply_routed_scaling_factor_on_output)
    check_positive("routed_scaling_factor", routed_scaling_factor)
    if expert_map is not None:
        check_tensor("expert_map", expert_map, (torch.int32,), (experts + shared,))
    padding = padding_start(num_token_non_padded, tokens)

    routed = topk - shared
    scale = float(routed_scaling_factor)
    weights = np.zeros((tokens, topk), np.float64)
    indices = np.full((tokens, topk), -1, np.int64)
    bias64 = np.zeros(experts) if bias is None else doubles(bias)
    rows_at_a_time = max(1, CHUNK_ELEMENTS // experts)
    with np.errstate(all="ignore"):
        for first in range(0, padding, rows_at_a_time):
            rows = slice(first, min(first + rows_at_a_time, padding))
            scores = _scores(doubles(logits[rows]), scoring)
            chosen, usable = _select(scores + bias64, routed, num_expert_group, topk_group)
            indices[rows, :routed] = chosen
            weights[rows, :routed] = _weights(np.take_along_axis(scores, chosen, 1), usable, renormalize)
        if apply_routed_scaling_factor_on_output:
            weights[:, :routed] *= scale
        indices[:padding, routed:] = np.arange(experts, experts + shared)
        weights[:padding, routed:] = 1.0 if apply_routed_scaling_factor_on_output else 1.0 / scale
        if expert_map is not None:
            indices[:padding] = integers(expert_map)[indices[:padding]]
        rounded = weights.astype(np.float32)
    device = logits.device
    return torch.from_numpy(rounded).to(device), torch.from_numpy(indices.astype(np.int32)).to(device)


def _scores(x: np.ndarray, scoring: str) -> np.ndarray:
    """Rule 1: the score of each logit, [T, E] to [T, E]."""
    if scoring == "softmax":
        powers = np.exp(x - x.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)
    # exp of a number that is never positive can't overflow, and keeps the digits of tiny scores.
    power = np.exp(-np.abs(x))
    if scoring == "sigmoid":
        return np.where(x >= 0, 1.0, power) / (1.0 + power)
    softplus = np.maximum(x, 0.0) + np.log1p(power)
    # Below -40, log(1 + exp(x)) is exp(x) to the last bit; halving x first keeps it from underflowing.
    return np.where(x < -40.0, np.exp(x / 2.0), np.sqrt(softplus))


def _best(values: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the `count` best of the last axis: larger first, NaN last, ties by position."""
    # A stable sort keeps equal values in order, takes -0 for 0, and puts NaN at the end.
    return np.argsort(-values, axis=-1, kind="stable")[..., :count]


def _select(choice: np.ndarray, routed: int, groups: int, kept: int) -> tuple[np.ndarray, np.ndarray]:
    """Rules 2 and 3: the chosen experts [T, routed], and which of them are in a kept group."""
    tokens, experts = choice.shape
    keep = np.ones((tokens, groups), bool)
    if kept < groups:
        grouped = choice.reshape(tokens, groups, experts // groups)
        two_best = np.take_along_axis(grouped, _best(grouped, 2), axis=2)
        keep[:] = False
        np.put_along_axis(keep, _best(two_best.sum(axis=2), kept), True, axis=1)
    usable = np.repeat(keep, experts // groups, axis=1)
    chosen = _best(np.where(usable, choice, -np.inf), routed)
    return chosen, np.take_along_axis(usable, chosen, axis=1)


def _weights(scores: np.ndarray, usable: np.ndarray, renormalize: bool) -> np.ndarray:
    """Rule 4 without the scale: routed weights from the scores of the chosen experts."""
    weights = np.where(usable & ~np.isnan(scores), scores, 0.0)
    if renormalize:
        total = weights.sum(axis=1, keepdims=True)
        weights = np.where(total == 0.0, 0.0, weights / total)
    return weights
