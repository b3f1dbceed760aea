"""Medians, intervals and ratios of the benchmark."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from moeproof.verify.bench.analysis import compare_at
from moeproof.verify.bench.interleave import MIN_ROUNDS, compare_samplers, interleave
from moeproof.verify.bench.results import RIGHT, Timing
from moeproof.verify.bench.statistics import estimate, median, paired_ratio, unpaired_ratio


def test_median_of_odd_and_even_counts():
    assert median([3.0]) == 3.0
    assert median([5.0, 1.0, 3.0]) == 3.0
    assert median([4.0, 1.0, 3.0, 2.0]) == 2.5


@pytest.mark.parametrize(
    ("count", "low", "high"),
    # Ranks from tables of the sign test: n = 6 the extremes, n = 10 the 2nd, n = 30 the 10th.
    [(1, 1, 1), (5, 1, 5), (6, 1, 6), (8, 1, 8), (9, 2, 8), (10, 2, 9), (30, 10, 21), (100, 40, 61)],
)
def test_interval_has_the_ranks_of_the_sign_test(count: int, low: int, high: int):
    samples = list(range(1, count + 1))
    random.Random(0).shuffle(samples)
    about = estimate([float(s) for s in samples])
    assert (about.low, about.high) == (low, high)


def test_interval_holds_the_median_as_often_as_it_says():
    draw = random.Random(1)
    true = 0.6931471805599453  # of the exponential distribution, as skewed as times are
    intervals = [estimate([draw.expovariate(1.0) for _ in range(20)]) for _ in range(2000)]
    held = sum(about.low <= true <= about.high for about in intervals) / len(intervals)
    assert 0.945 <= held <= 0.99


def test_more_confidence_is_a_wider_interval():
    samples = [float(n) for n in range(40)]
    narrow, wide = estimate(samples, 0.8), estimate(samples, 0.999)
    assert wide.low < narrow.low <= narrow.high < wide.high


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="samples are empty; allowed: at least one"):
        estimate([])


def test_paired_ratio_is_blind_to_drift_that_hits_both():
    draw = random.Random(2)
    drift = [1 + 0.5 * i / 30 for i in range(30)]
    one = [2.1 * d * draw.uniform(0.999, 1.001) for d in drift]
    two = [2.0 * d * draw.uniform(0.999, 1.001) for d in drift]
    ratio = paired_ratio(one, two)
    assert ratio.low <= 1.05 <= ratio.high
    assert ratio.high - ratio.low < 0.003
    # Two separate intervals would be as wide as the drift.
    assert unpaired_ratio(one, two).high > 1.1


def test_paired_ratio_refuses_samples_that_are_no_pairs():
    with pytest.raises(ValueError, match="shorter"):
        paired_ratio([1.0, 2.0], [1.0])


def test_unpaired_ratio_holds_the_truth():
    draw = random.Random(3)
    held = 0
    for _ in range(300):
        one = [3 * draw.lognormvariate(0, 0.1) for _ in range(25)]
        two = [2 * draw.lognormvariate(0, 0.1) for _ in range(25)]
        ratio = unpaired_ratio(one, two)
        held += ratio.low <= 1.5 <= ratio.high
    assert held >= 285


def test_interleaving_takes_one_sample_of_each_a_round_in_changing_order():
    taken: list[str] = []
    samplers = {name: (lambda name=name: taken.append(name) or float(len(taken))) for name in "abc"}
    samples = interleave(samplers, rounds=12, seed=4)
    rounds = [taken[i : i + 3] for i in range(0, 36, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len({tuple(r) for r in rounds}) > 2
    for i in range(12):
        assert {samples[name][i] for name in "abc"} == {3 * i + 1.0, 3 * i + 2.0, 3 * i + 3.0}


def test_interleaving_depends_on_the_seed_only():
    def order(seed: int) -> list[str]:
        taken: list[str] = []
        interleave(
            {name: (lambda name=name: taken.append(name) or 0.0) for name in "abcd"},
            rounds=8,
            seed=seed,
        )
        return taken

    assert order(5) == order(5) != order(6)


def test_time_ends_the_rounds_but_not_before_an_interval_can_be_had():
    samples = interleave({"a": lambda: 1.0}, rounds=1000, seed=0, seconds=0.0)
    assert len(samples["a"]) == MIN_ROUNDS


def test_comparison_tells_a_difference_from_noise():
    draw = random.Random(7)

    def noisy(middle: float):
        return lambda: middle * draw.lognormvariate(0, 0.05)

    ratio, noise = compare_samplers(noisy(1.3), noisy(1.0), rounds=40)
    assert ratio.low > noise.high
    assert ratio.low <= 1.3 <= ratio.high
    ratio, noise = compare_samplers(noisy(1.0), noisy(1.0), rounds=40)
    assert ratio.low < noise.high
    assert noise.low < ratio.high


def test_a_variant_of_an_own_kernel_is_no_rival_of_it():
    times = {"own:op": 2.0, "own:op@delays": 3.0, "library:op": 5.0}
    measured = {
        n: SimpleNamespace(status=RIGHT, device=Timing((t,) * 9, 1, "graph"), eager=None) for n, t in times.items()
    }
    results = SimpleNamespace(families={n: n.partition(":")[0] for n in times})
    row = compare_at(results, SimpleNamespace(subjects=measured, floor=None))
    assert (row.ours.name, row.rival.name) == ("own:op", "library:op")
