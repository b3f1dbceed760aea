"""The kernel of the Numba reference of `fused_gate`: one thread owns one token."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ._cuda import cuda

MAX_ROUTED = 32
SIGMOID, SOFTMAX, SQRTSOFTPLUS = range(3)

# Numba computes in float64 as soon as one operand is: every constant below is a float32, and F32 holds to it
# each result of a math function, which the simulator returns as a Python float.
F32 = np.float32
ZERO, HALF, ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
NEGATIVE_INFINITY = np.float32(-np.inf)
LOW_SOFTPLUS = np.float32(-20.0)
"""Below it log(1 + exp(x)) is exp(x) within half an ulp of the root."""


@cuda.jit(device=True)
def is_better(a: Any, b: Any) -> bool:
    """Whether a ranks strictly before b: larger first, NaN below everything."""
    if math.isnan(b):
        return not math.isnan(a)
    return a > b


@cuda.jit(device=True)
def score(x: Any, scoring: int, row_max: Any, row_sum: Any) -> Any:
    """Return the score of a logit; the row's maximum and sum matter to softmax only."""
    if scoring == SOFTMAX:
        if math.isnan(row_sum):
            return row_sum
        return F32(F32(math.exp(x - row_max)) / row_sum)
    power = F32(math.exp(-abs(x)))
    if scoring == SIGMOID:
        if x < ZERO:
            return F32(power / (ONE + power))
        return F32(ONE / (ONE + power))
    if x < LOW_SOFTPLUS:
        return F32(math.exp(x * HALF))
    softplus = F32(math.log1p(power))
    if x > ZERO:
        softplus = F32(softplus + x)
    # NaN got this far: power, and so the sum, is NaN.
    return F32(math.sqrt(softplus))


@cuda.jit(device=True)
def softmax_max(logits: Any, t: int) -> Any:
    """Return the largest logit of row t, NaN ignored."""
    row_max = NEGATIVE_INFINITY
    for e in range(logits.shape[1]):
        if logits[t, e] > row_max:
            row_max = logits[t, e]
    return row_max


@cuda.jit(device=True)
def softmax_sum(logits: Any, t: int, row_max: Any) -> Any:
    """Return the sum of exp(x − row_max) over row t, Kahan-compensated; NaN where no score is a number."""
    if math.isinf(row_max):
        return F32(math.nan)
    total = ZERO
    lost = ZERO
    for e in range(logits.shape[1]):
        term = F32(F32(math.exp(logits[t, e] - row_max)) - lost)
        grown = F32(total + term)
        lost = F32(F32(grown - total) - term)
        total = grown
    return total


@cuda.jit(device=True)
def ranking(logits: Any, bias: Any, has_bias: bool, t: int, e: int, scoring: int, top: Any, total: Any) -> Any:
    """Return c, the number that ranks expert e of row t."""
    c = score(logits[t, e], scoring, top, total)
    if has_bias:
        c = F32(c + bias[e])
    return c


@cuda.jit(device=True)
def keep_groups(
    logits: Any,
    bias: Any,
    has_bias: bool,
    t: int,
    scoring: int,
    top: Any,
    total: Any,
    kept_groups: int,
    group_scores: Any,
    kept: Any,
) -> None:
    """Fill row t of `group_scores` and of `kept`: 1 for the `kept_groups` best groups, 0 for the others."""
    groups = kept.shape[1]
    size = logits.shape[1] // groups
    for g in range(groups):
        first = ranking(logits, bias, has_bias, t, g * size, scoring, top, total)
        if size > 1:
            second = ranking(logits, bias, has_bias, t, g * size + 1, scoring, top, total)
            if is_better(second, first):
                first, second = second, first
            for e in range(g * size + 2, (g + 1) * size):
                c = ranking(logits, bias, has_bias, t, e, scoring, top, total)
                if is_better(c, first):
                    first, second = c, first
                elif is_better(c, second):
                    second = c
            first = F32(first + second)
        group_scores[t, g] = first
        kept[t, g] = 0
    for _ in range(kept_groups):
        best = -1
        for g in range(groups):
            if kept[t, g] == 0 and (best < 0 or is_better(group_scores[t, g], group_scores[t, best])):
                best = g
        kept[t, best] = 1


@cuda.jit
def gate_kernel(
    logits: Any,
    bias: Any,
    has_bias: bool,
    scoring: int,
    routed: int,
    shared: int,
    kept_groups: int,
    group_scores: Any,
    kept: Any,
    renormalize: bool,
    scale: Any,
    shared_weight: Any,
    num_token_non_padded: Any,
    has_padding: bool,
    expert_map: Any,
    has_map: bool,
    weights: Any,
    indices: Any,
) -> None:
    """Route token t; `scale` multiplies routed weights, `kept_groups` of 0 leaves every expert in."""
    t = cuda.grid(1)
    tokens, experts = logits.shape
    if t >= tokens:
        return
    if has_padding and t >= num_token_non_padded[0]:
        for place in range(routed + shared):
            weights[t, place] = ZERO
            indices[t, place] = -1
        return

    top = ZERO
    total = ONE
    if scoring == SOFTMAX:
        top = softmax_max(logits, t)
        total = softmax_sum(logits, t, top)
    size = experts
    if kept_groups > 0:
        keep_groups(logits, bias, has_bias, t, scoring, top, total, kept_groups, group_scores, kept)
        size = experts // kept.shape[1]

    # The best so far, best first. Experts come by ascending id, so one that ties goes behind.
    best_c = cuda.local.array(MAX_ROUTED, np.float32)
    best_e = cuda.local.array(MAX_ROUTED, np.int32)
    for e in range(experts):
        c = NEGATIVE_INFINITY
        if kept_groups == 0 or kept[t, e // size] == 1:
            c = ranking(logits, bias, has_bias, t, e, scoring, top, total)
        place = min(e, routed)
        while place > 0 and is_better(c, best_c[place - 1]):
            if place < routed:
                best_c[place] = best_c[place - 1]
                best_e[place] = best_e[place - 1]
            place -= 1
        if place < routed:
            best_c[place] = c
            best_e[place] = e

    weight_sum = ZERO
    for place in range(routed):
        e = best_e[place]
        weight = ZERO
        if kept_groups == 0 or kept[t, e // size] == 1:
            s = score(logits[t, e], scoring, top, total)
            if not math.isnan(s):
                weight = s
        weights[t, place] = weight
        weight_sum = F32(weight_sum + weight)
    for place in range(routed):
        if renormalize and weight_sum != ZERO:
            weights[t, place] = F32(weights[t, place] / weight_sum)
        weights[t, place] = F32(weights[t, place] * scale)
        indices[t, place] = expert_map[best_e[place]] if has_map else best_e[place]
    for place in range(shared):
        weights[t, routed + place] = shared_weight
        indices[t, routed + place] = expert_map[experts + place] if has_map else experts + place
