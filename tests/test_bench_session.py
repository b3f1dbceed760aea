"""Measuring one shape in this process, and what the results say."""

from __future__ import annotations

import itertools
import json
import random

import pytest
import torch

from moeproof.strategies.domain import GateDomain
from moeproof.verify.bench import analysis, report
from moeproof.verify.bench.against import changes
from moeproof.verify.bench.interleave import MIN_ROUNDS, compare_calls
from moeproof.verify.bench.results import Measured, Results, ResultsError, ShapeResult, Timing
from moeproof.verify.bench.session import DISPATCH, Session, Settings
from moeproof.verify.bench.shapes import Shape
from moeproof.verify.bench.timers import EAGER_CALLS, EagerTimer
from moeproof.verify.subject import Subject, Unavailable, find

SHAPE = Shape("gate", 4, 64)
REFERENCE = find(["torch:fused_gate"])[0]


def _subject(name: str, call=None, load=None, domain: GateDomain | None = None, tags: tuple[str, ...] = ()) -> Subject:
    return Subject(
        name=f"{name}:fused_gate",
        op="fused_gate",
        load=load or (lambda: call),
        domain=domain or GateDomain(),
        device="cpu",
        tags=tags,
    )


def _copying(change=lambda made: made):
    """Return a call that fills the carved outputs with the reference's, changed."""
    reference = REFERENCE.load()

    def call(args, outputs):
        for name, value in change(dict(reference(args, {}))).items():
            outputs[name].copy_(value)

    return call


def _raise_later(count: int):
    calls, right = itertools.count(), _copying()

    def call(args, outputs):
        if next(calls) >= count:
            raise RuntimeError("out of luck")
        return right(args, outputs)

    return call


def _unavailable():
    raise Unavailable("needs another machine")


def _broken():
    raise ImportError("no such symbol")


def measure(*subjects: Subject, rounds: int = 8) -> ShapeResult:
    return Session(Settings("cpu", rounds)).measure(SHAPE, subjects)


def test_every_fate_of_a_subject_is_told_and_stops_no_other():
    swapped = _copying(lambda made: {**made, "indices": made["indices"].flip(1)})
    result = measure(
        _subject("right", _copying()),
        _subject("returns", REFERENCE.load()),
        _subject("wrong", swapped),
        _subject("unwritten", lambda args, outputs: None),
        _subject("raises", _raise_later(0)),
        _subject("raises_later", _raise_later(30)),
        _subject("elsewhere", load=_unavailable),
        _subject("broken", load=_broken),
        _subject("narrow", _copying(), domain=GateDomain(experts=(128,))),
    )
    found = {name.partition(":")[0]: m for name, m in result.subjects.items()}
    assert {name: m.status for name, m in found.items()} == {
        "right": "right",
        "returns": "right",
        "wrong": "wrong",
        "unwritten": "wrong",
        "raises": "failed",
        "raises_later": "failed",
        "elsewhere": "unavailable",
        "broken": "unavailable",
        "narrow": "outside",
    }
    assert "tie_order" in found["wrong"].detail or "selection" in found["wrong"].detail
    assert found["raises"].detail == found["raises_later"].detail == "RuntimeError: out of luck"
    assert found["elsewhere"].detail == "needs another machine"
    assert "no such symbol" in found["broken"].detail
    assert "64; allowed: 128" in found["narrow"].detail
    timed = {name for name, m in found.items() if m.eager is not None}
    assert timed == {"right", "returns", "wrong", "unwritten"}
    lengths = {len(found[name].eager.samples) for name in timed}
    assert lengths == {8}
    assert all(sample > 0 for name in timed for sample in found[name].eager.samples)


def test_subjects_run_announced_by_name():
    seen: list[str] = []
    Session(Settings("cpu", 7), seen.append).measure(SHAPE, [_subject("right", _copying()), REFERENCE])
    assert set(seen) == {"right:fused_gate", "torch:fused_gate", DISPATCH, ""}
    assert seen[-1] == ""


def test_each_call_gets_inputs_and_outputs_of_its_own():
    seen: dict[int, int] = {}
    right = _copying()

    def call(args, outputs):
        seen[args["logits"].data_ptr()] = outputs["weights"].data_ptr()
        return right(args, outputs)

    result = measure(_subject("right", call))
    assert result.dispatch is not None
    assert len(seen) == result.sets == len(set(seen.values()))


def test_few_rounds_are_raised_to_what_an_interval_needs():
    assert (
        len(measure(_subject("right", _copying()), rounds=1).subjects["right:fused_gate"].eager.samples) == MIN_ROUNDS
    )


class Clock:
    """A host clock that calls move on."""

    def __init__(self) -> None:
        self.now = 0

    def perf_counter_ns(self) -> int:
        return self.now

    def spend(self, microseconds: float) -> None:
        self.now += round(1000 * microseconds)


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("moeproof.verify.bench.timers.time", made)
    return made


def test_eager_timer_counts_what_it_calls(clock: Clock):
    calls: list[int] = []
    timer = EagerTimer([lambda i=i: calls.append(i) or clock.spend(2) for i in range(3)], torch.device("cpu"))
    assert timer.number == EAGER_CALLS
    calls.clear()
    assert timer.sample() == 2
    assert calls == [i % 3 for i in range(EAGER_CALLS)]


@pytest.mark.parametrize(("microseconds", "number"), [(1, 200), (10, 200), (100, 20), (3000, 1)])
def test_eager_timer_shortens_its_sample_for_slow_calls(clock: Clock, microseconds: float, number: int):
    timer = EagerTimer([lambda: clock.spend(microseconds)] * 4, torch.device("cpu"))
    assert timer.number == number
    assert timer.sample() == microseconds


def test_comparing_calls_sees_a_call_that_takes_a_tenth_more(clock: Clock):
    draw = random.Random(1)

    def taking(microseconds: float):
        return [lambda: clock.spend(microseconds * draw.lognormvariate(0, 0.1))]

    ratio, noise = compare_calls(taking(22), taking(20), graph=False)
    assert ratio.low <= 1.1 <= ratio.high
    assert noise.low <= 1.0 <= noise.high < ratio.low


def _timing(*samples: float, method: str = "graph") -> Timing:
    return Timing(samples, 10, method)


def _results(own: float = 2.0, floor: float = 1.0) -> Results:
    eager = _timing(*[9.0 + i / 10 for i in range(8)], method="host")

    def times(value: float, method: str = "graph") -> Timing:
        return _timing(*[value * (1 + i / 1000) for i in range(8)], method=method)

    subjects = {
        "fast:fused_gate": Measured("right", device=times(3.0), eager=eager),
        "own:fused_gate": Measured("right", path="warp", device=times(own), eager=eager),
        "slow:fused_gate@v": Measured("right", device=times(4.0, "events"), eager=eager),
        "cheat:fused_gate": Measured("wrong", "selection: row 0", device=times(0.1), eager=eager),
        "gone:fused_gate": Measured("unavailable", "not | here"),
    }
    shapes = [
        ShapeResult(Shape("gate", t, 64), 1024, 64, 8, False, times(floor), times(0.5), eager, dict(subjects))
        for t in (1, 8)
    ]
    families = dict.fromkeys(subjects, "library") | {"own:fused_gate": "own"}
    return Results({"device": "Test GPU", "libraries": {"fast": "1.0"}}, families, shapes)


def test_ours_is_compared_with_the_fastest_right_rival():
    row = analysis.compare(_results())[0]
    assert row.ours is not None
    assert row.rival is not None
    assert (row.ours.name, row.rival.name) == ("own:fused_gate", "fast:fused_gate")
    assert row.speedup.value == pytest.approx(1.5)
    assert row.speedup.low == pytest.approx(row.speedup.high)
    assert row.floors.value == pytest.approx(2.0)
    assert "speed-up 1.50 [1.50, 1.50]" in report.line(row)
    assert "cheat:fused_gate wrong" in report.line(row)


def test_a_wrong_result_of_ours_is_not_compared():
    results = _results()
    results.shapes[0].subjects["own:fused_gate"].status = "wrong"
    row = analysis.compare(results)[0]
    assert row.ours is row.speedup is row.floors is None
    assert "no right result of ours" in report.line(row)


def test_markdown_says_all_that_was_measured_and_why_the_rest_was_not():
    text = report.markdown(_results())
    assert "| gate E=64 T=1 | 2.01 [2.00, 2.01] | 3.01 [3.00, 3.02] | fast | 1.50 [1.50, 1.50] | 1.00 |" in text
    assert "0.10 [0.10, 0.10], eager 9.35 (wrong)" in text
    assert "(events)" in text
    assert "- gone:fused_gate, 2 shapes: unavailable: not | here" in text
    assert "libraries: fast 1.0" in text


def test_json_gives_back_what_it_was_made_of():
    results = _results()
    again = Results.loads(results.dumps())
    assert again.dumps() == results.dumps()
    assert Results.loads(again.dumps()) == again
    assert again.shapes[0].shape == results.shapes[0].shape
    assert again.families == results.families
    first = json.loads(results.dumps())["shapes"][0]
    assert first["label"] == "gate E=64 T=1"
    assert first["subjects"]["own:fused_gate"]["device"]["median"] == pytest.approx(2.007)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"moeproof_bench": 99}', '{"moeproof_bench": 1, "shapes": [{}]}', "\x00"]
)
def test_json_that_holds_no_results_is_refused(text: str):
    with pytest.raises(ResultsError):
        Results.loads(text)


def test_a_change_counts_only_beyond_what_the_floor_has_changed():
    old = _results()
    slower = [c for c in changes(_results(own=2.2), old) if c.subject.startswith("own") and c.clock == "device"]
    assert [c.verdict for c in slower] == ["slower", "slower"]
    assert slower[0].ratio.value == pytest.approx(1.1)
    # A machine on which the floor is a tenth slower too says nothing of the code.
    drifted = [c for c in changes(_results(own=2.2, floor=1.1), old) if c.subject.startswith("own")]
    assert {c.verdict for c in drifted} == {"same"}
    faster = [c for c in changes(_results(own=1.9), old) if c.subject.startswith("own") and c.clock == "device"]
    assert [c.verdict for c in faster] == ["faster", "faster"]


def test_only_right_results_of_both_runs_by_the_same_method_are_compared():
    old, new = _results(), _results()
    new.shapes.pop()
    new.shapes[0].subjects["slow:fused_gate@v"].device = _timing(*[4.0] * 8)
    found = {(c.subject, c.clock) for c in changes(new, old)}
    assert found == {
        ("fast:fused_gate", "device"),
        ("fast:fused_gate", "eager"),
        ("own:fused_gate", "device"),
        ("own:fused_gate", "eager"),
        ("slow:fused_gate@v", "eager"),
    }
