"""When a change of speed counts: the interval of a ratio, measured in turns, has to be clear of a threshold."""

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

    Each round takes two samples of each, in a random order, and of each two the better counts. Those of the baseline
    differ by nothing but noise, so a ratio within their interval says nothing, however narrow its own.

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
    samplers = {"candidate": candidate, "candidate again": candidate, "baseline": baseline, "again": baseline}
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    begin, rounds = time.monotonic(), FIRST_ROUNDS
    while True:
        more = interleave(samplers, rounds=rounds, seed=seed + len(samples["again"]))
        for name, taken in more.items():
            samples[name] += taken
        ours = _best(samples["candidate"], samples["candidate again"])
        theirs = _best(samples["baseline"], samples["again"])
        # Of two rounds each, so that the noise is that of the ratio: of the better of two samples.
        again, before = (_best(s[::2], s[1::2]) for s in (samples["again"], samples["baseline"]))
        noise = paired_ratio(again, before, CONFIDENCE)
        ratio = paired_ratio(ours, theirs, CONFIDENCE)
        found = Ratio(ratio, noise, median(ours), median(theirs), len(ours), threshold)
        rounds = len(samples["baseline"])
        # As many rounds again take as long again.
        late = seconds is not None and 2 * (time.monotonic() - begin) > seconds
        if found.change != UNCLEAR or 2 * rounds > MOST_ROUNDS or late:
            return found


def _best(first: list[float], second: list[float]) -> list[float]:
    """Return the lower of each two samples: what holds a sample up only ever makes it longer."""
    return [min(a, b) for a, b in zip(first, second, strict=True)]
