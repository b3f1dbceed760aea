"""Measures several things in turn, again and again, so that a drift of clocks or load hits all alike."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence

from .statistics import CONFIDENCE, Estimate, paired_ratio

MIN_ROUNDS = 7
"""Fewest rounds of a run, whatever its time: six are needed for an interval of 95%."""

Sampler = Callable[[], float]
"""Takes one sample: microseconds a call."""


def interleave(
    samplers: Mapping[str, Sampler],
    *,
    rounds: int,
    seed: int,
    seconds: float | None = None,
    before: Callable[[str], None] | None = None,
) -> dict[str, list[float]]:
    """Take samples round by round, in each round one of each thing, in a shuffled order.

    Parameters
    ----------
    samplers : mapping of str to callable
        What to measure, by name.
    rounds : int
        Rounds at most.
    seed : int
        Of the orders.
    seconds : float, optional
        No round is begun after this time, `MIN_ROUNDS` excepted.
    before : callable, optional
        Called with the name before each sample.

    Returns
    -------
    dict of str to list of float
        Samples by name, in the order of rounds: entry i of each list is of the same round.
    """
    order = random.Random(seed)
    names = list(samplers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    deadline = None if seconds is None else time.monotonic() + seconds
    collecting = gc.isenabled()
    gc.disable()
    try:
        for done in range(rounds):
            if deadline is not None and done >= MIN_ROUNDS and time.monotonic() > deadline:
                break
            order.shuffle(names)
            for name in names:
                if before is not None:
                    before(name)
                samples[name].append(samplers[name]())
    finally:
        if collecting:
            gc.enable()
    return samples


def compare_samplers(
    candidate: Sampler,
    baseline: Sampler,
    *,
    rounds: int = 40,
    seed: int = 0,
    seconds: float | None = None,
    confidence: float = CONFIDENCE,
) -> tuple[Estimate, Estimate]:
    """Measure two things interleaved and return the ratio of their times, and the noise of that ratio.

    The baseline is measured twice a round. Its two samples differ by nothing but noise, so a ratio that lies within
    the interval of the second estimate says nothing, however narrow its own interval.

    Parameters
    ----------
    candidate, baseline : callable
        Samplers, such as ``GraphTimer(calls).sample``.
    rounds, seed, seconds
        As for `interleave`.
    confidence : float
        Of both intervals.

    Returns
    -------
    ratio : Estimate
        Time of the candidate over that of the baseline: above 1 is slower.
    noise : Estimate
        Time of the baseline over that of the baseline.
    """
    samplers = {"candidate": candidate, "baseline": baseline, "again": baseline}
    samples = interleave(samplers, rounds=rounds, seed=seed, seconds=seconds)
    ratio = paired_ratio(samples["candidate"], samples["baseline"], confidence)
    return ratio, paired_ratio(samples["again"], samples["baseline"], confidence)


def compare_calls(
    candidate: Sequence[Callable[[], object]],
    baseline: Sequence[Callable[[], object]],
    *,
    graph: bool,
    rounds: int = 40,
    seed: int = 0,
    seconds: float | None = None,
    confidence: float = CONFIDENCE,
) -> tuple[Estimate, Estimate]:
    """Compare the times of two implementations, each given as one call for each set of inputs.

    Parameters
    ----------
    candidate, baseline : sequence of callable
        Calls without arguments.
    graph : bool
        Measure the device's time by graph replay on the current CUDA device, rather than on the host's clock.
    rounds, seed, seconds, confidence
        As for `compare_samplers`, which also says what is returned.
    """
    import torch

    from .graph import GraphTimer
    from .timers import EagerTimer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    timers = [GraphTimer(calls) if graph else EagerTimer(calls, device) for calls in (candidate, baseline)]
    return compare_samplers(
        timers[0].sample, timers[1].sample, rounds=rounds, seed=seed, seconds=seconds, confidence=confidence
    )
