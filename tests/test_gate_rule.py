"""When a change of speed counts: no false alarm on the same code, and none missed that is past the threshold."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import cast

import pytest
from gate_kit.repository import TEAM, forget

from moeproof.verify.bench.statistics import Estimate
from moeproof.verify.gate.rule import FASTER, FIRST_ROUNDS, MOST_ROUNDS, SAME, SLOWER, UNCLEAR, Ratio, compare
from moeproof.verify.gate.speed import Speed, SpeedError, Target, Timed, Trees, measure, shapes_of
from moeproof.verify.subject import find, load_file

THRESHOLD = 0.03
RUNS = 20


class Machine:
    """A clock that drifts and jitters, and is sometimes held up, as those of shared machines are."""

    def __init__(self, seed: int, jitter: float) -> None:
        self._random = random.Random(seed)
        self._jitter = jitter
        self._time = 0

    def sampler(self, microseconds: float) -> Callable[[], float]:
        def sample() -> float:
            self._time += 1
            drift = 1 + 0.2 * math.sin(self._time / 300)
            held_up = 3.0 if self._random.random() < 0.02 else 1.0
            return microseconds * drift * held_up * self._random.lognormvariate(0, self._jitter)

        return sample

    def compare(self, factor: float, threshold: float = THRESHOLD) -> Ratio:
        return compare(self.sampler(10 * factor), self.sampler(10), threshold=threshold)


@pytest.mark.parametrize("jitter", [0.003, 0.01, 0.03])
def test_twenty_runs_of_the_same_code_raise_no_alarm(jitter: float) -> None:
    made = [Machine(seed, jitter).compare(1.0) for seed in range(RUNS)]
    assert [m.change for m in made if m.change not in (SAME, UNCLEAR)] == []
    assert sum(m.change == SAME for m in made) >= RUNS - 1


@pytest.mark.parametrize("jitter", [0.003, 0.01, 0.03])
def test_a_slow_down_of_five_percent_is_caught_twenty_times_of_twenty(jitter: float) -> None:
    made = [Machine(seed, jitter).compare(1.05) for seed in range(RUNS)]
    assert [m.change for m in made] == [SLOWER] * RUNS
    assert all(m.ratio.low <= 1.05 <= m.ratio.high or abs(m.ratio.value - 1.05) < 0.01 for m in made)


def test_a_slow_down_below_the_threshold_is_none() -> None:
    assert all(Machine(seed, 0.01).compare(1.02).change != SLOWER for seed in range(RUNS))
    assert all(Machine(seed, 0.01).compare(1.05, threshold=0.08).change == SAME for seed in range(RUNS))


def test_what_is_faster_is_said_to_be() -> None:
    assert Machine(0, 0.01).compare(1 / 1.1).change == FASTER


def test_rounds_go_on_only_while_it_is_unclear() -> None:
    assert Machine(0, 0.003).compare(1.0).rounds == FIRST_ROUNDS
    unclear = Machine(1, 0.05).compare(1 + THRESHOLD)
    assert unclear.change == UNCLEAR
    assert unclear.rounds == MOST_ROUNDS
    machine = Machine(1, 0.05)
    assert compare(machine.sampler(10.3), machine.sampler(10), threshold=0.03, seconds=0.0).rounds == FIRST_ROUNDS


def test_a_change_within_the_noise_of_the_base_is_none() -> None:
    wide = Ratio(Estimate(1.1, 1.08, 1.12), Estimate(1.0, 0.9, 1.09), 11.0, 10.0, 40, THRESHOLD)
    assert wide.change == UNCLEAR
    assert replace(wide, noise=Estimate(1.0, 0.99, 1.01)).change == SLOWER


# -- two processes, and two more where it is slower --------------------------------------------------------------------


class FakeProcess:
    """Stands for a tree's process."""

    def __init__(self, machine: Machine, microseconds: float, error: SpeedError | None = None) -> None:
        self._sample = machine.sampler(microseconds)
        self._error = error

    def ask(self, *request: object, seconds: float = 0.0) -> object:
        if self._error is not None:
            raise self._error
        if request[0] == "prepare":
            return {"host": 1}
        return self._sample() if request[0] == "sample" else None


class FakeTrees:
    """Gives pairs of fake processes: each candidate takes so many times as long, or fails."""

    device = "cpu"

    def __init__(self, *factors: float | SpeedError) -> None:
        self.factors = list(factors)
        self.swapped: list[bool] = []

    def processes(self, *, swapped: bool = False) -> AbstractContextManager[tuple[FakeProcess, FakeProcess]]:
        factor, machine = self.factors.pop(0), Machine(len(self.factors), 0.01)
        self.swapped.append(swapped)
        base = FakeProcess(machine, 10)
        if isinstance(factor, SpeedError):
            return nullcontext((FakeProcess(machine, 10, factor), base))
        return nullcontext((FakeProcess(machine, 10 * factor), base))


def measured(*factors: float | SpeedError) -> Timed:
    trees = FakeTrees(*factors)
    (subject,) = find(["numpy:fused_gate"])
    targets = [Target(subject, shapes_of(subject, ["gate:E=64,T=1"], "cpu"), THRESHOLD)]
    made = measure(cast(Trees, trees), targets, seed=0)
    assert trees.factors == []
    assert trees.swapped == [False, True][: len(factors)]  # the second pair is started in the other order
    return made


def test_a_slow_down_has_to_show_in_two_pairs_of_processes() -> None:
    (same,) = measured(1.0).speeds
    assert (same.change, same.second) == (SAME, None)
    (slow,) = measured(1.08, 1.08).speeds
    assert slow.change == SLOWER
    assert slow.ratio is slow.second
    (once,) = measured(1.08, 1.0).speeds
    assert once.change == UNCLEAR


def test_what_can_not_be_timed_is_told_by_tree() -> None:
    made = measured(SpeedError("it is new", of_base=True))
    assert (made.absent, made.failed) == ({"numpy:fused_gate": "it is new"}, {})
    made = measured(SpeedError("it crashes", of_base=False))
    assert (made.absent, made.failed) == ({}, {"numpy:fused_gate": "it crashes"})


def test_shapes_are_those_of_the_lane_inside_the_domain() -> None:
    (team,) = load_file(TEAM / "routing.py")
    forget()
    assert [s.tokens for s in shapes_of(team, ["gate:E=64,T=1/1000,bias=0,k=4", "align:E=8,T=1,k=2"], "cpu")] == [1]
    assert all(s.experts <= 64 for s in shapes_of(team, [], "cpu"))
    assert {s.op for s in shapes_of(find(["own:append_shared_experts"])[0], [], "cuda")} == {"append"}
    assert Speed("a", "b", "host", Machine(0, 0.01).compare(1.0)).change == SAME
