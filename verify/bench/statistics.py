"""Medians and ratios with intervals that assume nothing about how times are distributed.

An interval of a median is a pair of order statistics: that the median of the population lies between the i-th
smallest and the i-th largest of n samples has a probability that the binomial distribution gives exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A median with its interval.

    Attributes
    ----------
    value, low, high : float
        The median and the ends of the interval, in the samples' unit.
    """

    value: float
    low: float
    high: float


def median(samples: Sequence[float]) -> float:
    """Return the median of one sample or more."""
    ordered, half = sorted(samples), len(samples) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def estimate(samples: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Return the median of independent samples and an interval for it.

    Parameters
    ----------
    samples : sequence of float
        At least one. Fewer than six can't give an interval of 95%: the smallest and largest are returned then.
    confidence : float
        Least probability that the interval holds the population's median.

    Raises
    ------
    ValueError
        If there are no samples.
    """
    if not samples:
        raise ValueError("samples are empty; allowed: at least one")
    ordered = sorted(samples)
    rank = _rank(len(ordered), confidence)
    return Estimate(median(ordered), ordered[rank], ordered[-1 - rank])


def _rank(count: int, confidence: float) -> int:
    """Return the largest i ≥ 0 for which the i-th from either end bound an interval of that confidence."""
    outside, rank = 0.0, 0
    for i in range(count // 2):
        # Half the chance that the median lies outside the i-th from either end.
        outside += math.comb(count, i) / 2**count
        if 2 * outside > 1 - confidence:
            break
        rank = i
    return rank


def paired_ratio(over: Sequence[float], under: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Return the median of ``over[i] / under[i]``: samples of one round drift together, so their ratio does not.

    Raises
    ------
    ValueError
        If the lengths differ, or there are no samples.
    """
    return estimate([a / b for a, b in zip(over, under, strict=True)], confidence)


def unpaired_ratio(over: Sequence[float], under: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Return the ratio of the medians of two runs.

    The interval is made of the ends of two intervals that miss half as often each, so it is on the wide side.
    """
    each = 1 - (1 - confidence) / 2
    a, b = estimate(over, each), estimate(under, each)
    return Estimate(a.value / b.value, a.low / b.high, a.high / b.low)
