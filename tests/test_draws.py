"""Choices: the same from Hypothesis's engine and from bytes, in bounds, and all of them likely."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moeproof.strategies.align import cases as align_cases
from moeproof.strategies.append import cases as append_cases
from moeproof.strategies.case import Case
from moeproof.strategies.domain import AlignDomain, AppendDomain, GateDomain
from moeproof.strategies.draws import Bytes, NoChoicesLeftError, _Engine, chance, composite, function_of, pick
from moeproof.strategies.gate import cases as gate_cases
from moeproof.verify.explore import beyond, explore

STRATEGIES = {
    "gate": gate_cases(GateDomain(), max_elements=1 << 12),
    "align": align_cases(AlignDomain(), max_elements=1 << 12),
    "append": append_cases(AppendDomain(), max_elements=1 << 12),
    "beyond": beyond(GateDomain()),
}


class Replay:
    """Choices made before, asked for again."""

    def __init__(self, made: list[tuple[int, int, int]]) -> None:
        self.left = list(made)

    def integer(self, low: int, high: int) -> int:
        *asked, value = self.left.pop(0)
        assert asked == [low, high]
        return value


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_function_draws_what_its_strategy_draws(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int, int]] = []
    engine = _Engine.integer

    def recorded(self: _Engine, low: int, high: int) -> int:
        value = engine(self, low, high)
        made.append((low, high, value))
        return value

    monkeypatch.setattr(_Engine, "integer", recorded)
    seen: list[tuple[Case, list[tuple[int, int, int]]]] = []

    @settings(database=None, deadline=None, max_examples=30)
    @given(st.builds(made.clear).flatmap(lambda _: STRATEGIES[name]))
    def run(case: Case) -> None:
        seen.append((case, list(made)))

    run()
    assert len({case.dumps() for case, _ in seen}) > 10
    for case, choices in seen:
        replay = Replay(choices)
        assert function_of(STRATEGIES[name])(replay).dumps() == case.dumps()
        assert not replay.left


@pytest.mark.parametrize(("low", "high"), [(0, 0), (3, 3), (0, 1), (-2, 2), (5, 260), (0, 2**32 - 1), (-(2**70), 0)])
def test_integers_from_bytes(low: int, high: int) -> None:
    source = Bytes(random.Random(1).randbytes(1 << 18))
    drawn = Counter(source.integer(low, high) for _ in range(8000))
    assert min(drawn) >= low
    assert max(drawn) <= high
    most = high - low + 1
    if most < 300:
        assert len(drawn) == most
        assert max(drawn.values()) < 3 * min(drawn.values()) + 20
    else:
        assert len(drawn) > 7900
        assert max(drawn) - min(drawn) > 0.99 * most


def test_bytes_run_out() -> None:
    source = Bytes(b"\x01\x00")
    assert source.integer(0, 255) == 1
    assert source.integer(7, 7) == 7
    with pytest.raises(NoChoicesLeftError):
        source.integer(0, 256)


def test_no_such_int() -> None:
    with pytest.raises(ValueError, match="high is 3; allowed: an int >= low, which is 4"):
        Bytes(b"1234").integer(4, 3)


def test_a_strategy_of_another_making_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed: one that draws"):
        explore(gate_cases(GateDomain()).map(lambda case: case), lambda case: None, start=0, count=1)


def test_exploring_is_repeatable_and_an_exception_ends_it() -> None:
    runs: list[list[str]] = []
    for start in (4, 4, 5):
        drawn: list[str] = []
        explore(STRATEGIES["gate"], lambda case, to=drawn: to.append(case.dumps()), start=start, count=20)  # type: ignore[misc]
        runs.append(drawn)
    assert runs[0] == runs[1] != runs[2]
    assert len(set(runs[0])) > 15
    with pytest.raises(ZeroDivisionError):
        explore(STRATEGIES["gate"], lambda case: 1 // 0, start=0, count=1)  # type: ignore[arg-type, return-value]


def test_exploring_says_if_nothing_can_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moeproof.verify.explore.CHOICES", 1)
    with pytest.raises(NoChoicesLeftError, match="1 random bytes were too few for each of 3 tries"):
        explore(STRATEGIES["gate"], lambda case: None, start=0, count=3)  # type: ignore[arg-type]


def test_helpers_draw_from_any_source() -> None:
    @composite
    def pairs(draw: Bytes, choices: str) -> tuple[str, bool]:
        return pick(draw, choices), chance(draw, 2)

    function = function_of(pairs("ab"))
    source = Bytes(random.Random(0).randbytes(400))
    assert {function(source) for _ in range(100)} == {("a", True), ("a", False), ("b", True), ("b", False)}
