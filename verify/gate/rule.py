"""When a change of speed counts: two things timed in turns, until the interval of their ratio is clear of a threshold."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from moeproof.verify.bench.interleave import interleave
from moeproof.verify.bench.statistics import Estimate, median, paired_ratio

CONFIDENCE = 0.99
FIRST_ROUNDS = 20
MOST_ROUNDS = 160
"""Rounds are doubled from the first number to the last while the interval holds a threshold."""
SLOWER, FASTER, SAME, UNCLEAR = "slower", "faster", "same", "unclear"


@dataclass(frozen=True)
class Ratio:
    """How the times of a candidate and a baseline compare.

    Attributes
    ----------
    ratio : Estimate
        Time of the candidate over that of the baseline, above 1 where it is slower.
    noise : Estimate
        The same of the baseline and itself, measured in the same rounds.
    candidate, baseline : float
        Median times in microseconds a call.
    rounds : int
        Samples of each.
    threshold : float
        What a change has to exceed, as a part of the time: 0.05 for 5%.
    """

    ratio: Estimate
    noise: Estimate
    candidate: float
    baseline: float
    rounds: int
    threshold: float

    @property
    def change(self) -> str:
        """`SLOWER` or `FASTER` if the whole interval is past the threshold and the noise, `SAME` if none of it is."""
        slow, fast = 1 + self.threshold, 1 / (1 + self.threshold)
        if self.ratio.low > max(slow, self.noise.high):
            return SLOWER
        if self.ratio.high < min(fast, self.noise.low):
            return FASTER
        return SAME if fast <= self.ratio.low and self.ratio.high <= slow else UNCLEAR


def compare(
    candidate: Callable[[], float],
    baseline: Callable[[], float],
    *,
    threshold: float,
    seed: int = 0,
    seconds: float | None = None,
) -> Ratio:
    """Time two things in turns, until it is clear whether they differ by more than a threshold.

    Each round takes one sample of the candidate and two of the baseline, in a random order. The two differ by
    nothing but noise, so a ratio within their interval says nothing, however narrow its own.

    Parameters
    ----------
    candidate, baseline : callable
        Take a sample: microseconds a call.
    threshold : float
        Least change that counts, as a part of the time.
    seed : int
        Of the orders.
    seconds : float, optional
        Time to aim at; the first rounds are run whatever they take.
    """
    samplers = {"candidate": candidate, "baseline": baseline, "again": baseline}
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    begin, rounds = time.monotonic(), FIRST_ROUNDS
    while True:
        more = interleave(samplers, rounds=rounds, seed=seed + len(samples["again"]))
        for name, taken in more.items():
            samples[name] += taken
        found = Ratio(
            paired_ratio(samples["candidate"], samples["baseline"], CONFIDENCE),
            paired_ratio(samples["again"], samples["baseline"], CONFIDENCE),
            median(samples["candidate"]),
            median(samples["baseline"]),
            len(samples["baseline"]),
            threshold,
        )
        rounds = len(samples["baseline"])
        # As many rounds again take as long again.
        late = seconds is not None and 2 * (time.monotonic() - begin) > seconds
        if found.change != UNCLEAR or 2 * rounds > MOST_ROUNDS or late:
            return found
