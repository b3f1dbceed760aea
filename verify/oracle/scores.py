"""Scores in float64, and how far any float32 evaluation of them may be off.

Bounds are derived, not tuned. One ulp is at most ``ULP`` = 2^-23 relative, one rounding ``U`` = 2^-24. The
exponential is allowed the error that CUDA documents for ``__expf``, 2 + floor(1.173·|x|) ulp, which covers
``expf`` and ``exp2f(x·log2 e)`` too. Results below 2^-126 may be flushed to zero.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

ULP = 2.0**-23
U = 2.0**-24
TINY = 2.0**-126


SERIAL = 1 << 14
"""Elements that torch handles on one CPU thread, and a multiple of any vector width."""


def each(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Apply an elementwise function so that equal elements give equal bits, wherever they stand.

    On a CPU torch computes the last few elements of a thread's share with other code than the rest, and the
    last bit can differ: exact ties would come apart. So shares are made of whole vectors.
    """
    if x.device.type != "cpu" or not x.numel():
        return function(x)
    flat, rest = x.reshape(-1), -x.numel() % 64
    if rest:
        flat = torch.nn.functional.pad(flat, (0, rest))
    if torch.get_num_threads() == 1 or len(flat) <= SERIAL:
        made = function(flat)
    else:
        made = torch.cat([function(part) for part in flat.split(SERIAL)])
    return (made[: x.numel()] if rest else made).view(x.shape)


def exp_error(x: torch.Tensor, rounding: float = 0.0) -> torch.Tensor:
    """Return the relative error bound of a float32 exp(x), where x itself is off by `rounding` of it at most."""
    return x.abs().mul_(1.2 * ULP + rounding).add_(2.0 * ULP)


def scores(logits: torch.Tensor, scoring: str) -> torch.Tensor:
    """Return the scores of rows of logits.

    Parameters
    ----------
    logits : Tensor
        ``[T, E]`` float64, the exact values of the input.
    scoring : str
        ``sigmoid``, ``softmax`` or ``sqrtsoftplus``.

    Returns
    -------
    Tensor
        ``[T, E]`` float64.
    """
    if scoring == "sigmoid":
        return each(torch.sigmoid, logits)
    if scoring == "softmax":
        shifted = each(torch.exp, logits - logits.amax(1, keepdim=True))
        return shifted / shifted.sum(1, keepdim=True)
    return each(softplus, logits).sqrt()


def softplus(x: torch.Tensor) -> torch.Tensor:
    """Return log(1 + exp(x)) without overflow or cancellation."""
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def sum_error(logits: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """Return ``[T, 1]``: the relative error bound of softmax's sum over rows of logits with scores `s`."""
    own = _power_error(logits - logits.amax(1, keepdim=True))
    return (s * own).sum(1, keepdim=True) + logits.shape[1] * U


def _power_error(shifted: torch.Tensor) -> torch.Tensor:
    """Return the relative error bound of exp of a rounded difference."""
    return exp_error(shifted, U).masked_fill_(shifted == -torch.inf, 0.0)


def score_error(
    logits: torch.Tensor,
    s: torch.Tensor,
    scoring: str,
    *,
    top: torch.Tensor | None = None,
    common: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the absolute error bound of float32 scores.

    Parameters
    ----------
    logits, s : Tensor
        ``[T, n]`` float64: any logits of a row, and their exact scores.
    scoring : str
        As in `scores`.
    top : Tensor, optional
        ``[T, 1]``: the largest logit of the row, for softmax.
    common : Tensor, optional
        ``[T, 1]``: `sum_error` of the row, for softmax. Left out where it can't matter, as all scores of a
        row share it.

    Returns
    -------
    Tensor
        ``[T, n]`` float64; 0 where every evaluation is exact (logits of ±inf), NaN where s is NaN.
    """
    if scoring == "sigmoid":
        # ds = s(1-s)·d(exp)/exp, then an addition, a division and the final rounding.
        relative = exp_error(logits).mul_(1 - s).add_(3 * ULP)
        flushed = s < 2 * TINY
        floor = TINY
    elif scoring == "softmax":
        if top is None:
            raise ValueError("top is None; allowed for softmax: the largest logit of each row")
        relative = _power_error(logits - top).add_(3 * ULP)
        if common is not None:
            relative.add_(common)
        flushed = s < 2 * TINY
        floor = TINY
    else:
        sp = softplus(logits)
        slope = torch.where(sp > 0, torch.sigmoid(logits) / sp, 1.0)
        slope = torch.where(logits == torch.inf, 0.0, slope * exp_error(logits))
        relative = slope.mul_(0.5).add_(3 * ULP)
        flushed = sp < 2 * TINY
        floor = TINY**0.5
    return relative.mul_(s).add_(flushed, alpha=floor).masked_fill_(logits.isinf(), 0.0)
