"""Measures one shape in this process: inputs, judgement, timers, rounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from moeproof.strategies.case import Case
from moeproof.strategies.domain_check import why_outside
from moeproof.verify.contract import judge, output_specs
from moeproof.verify.execute import describe_error, is_cuda_failure
from moeproof.verify.guard import POISONS, carve
from moeproof.verify.subject import Call, Subject, Unavailable

from .inputs import InputSet, count_sets, input_bytes, make_inputs, make_outputs, output_bytes
from .interleave import MIN_ROUNDS, interleave
from .results import FAILED, OUTSIDE, RIGHT, UNAVAILABLE, WRONG, Measured, ShapeResult, Timing
from .shapes import Shape
from .timers import EagerTimer, EventTimer, LaunchCall

FLOOR, EMPTY, DISPATCH = "(floor)", "(empty)", "(dispatch)"
"""Names under which the floors and the host's control are measured among the subjects."""
MAX_DETAIL = 300


class LostError(RuntimeError):
    """The process can't go on: a subject has ruined its CUDA context, or a capture has failed."""

    def __init__(self, subject: str, message: str, *, capture: bool = False) -> None:
        super().__init__(message)
        self.subject = subject
        self.capture = capture


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes
    ----------
    device : str
        ``"cuda"`` or ``"cpu"``.
    rounds : int
        Rounds at most.
    seed : int
        Of contents and orders.
    uncaptured : frozenset of str
        Subjects that are not to be captured in a graph.
    """

    device: str
    rounds: int = 30
    seed: int = 0
    uncaptured: frozenset[str] = frozenset()


class Session:
    """Measures shapes, one after the other; subjects are loaded once.

    Parameters
    ----------
    settings : Settings
        How to measure.
    announce : callable, optional
        Called with a subject's name before anything of it runs, with an empty name when nothing of any does.
    """

    def __init__(self, settings: Settings, announce: Callable[[str], None] = lambda name: None) -> None:
        self.settings = settings
        self._device = torch.device(settings.device)
        self._announce = announce
        self._loaded: dict[str, Call | str] = {}
        self._at = ""

    @torch.inference_mode()
    def measure(self, shape: Shape, subjects: Sequence[Subject], seconds: float | None = None) -> ShapeResult:
        """Measure subjects at a shape.

        Parameters
        ----------
        shape : Shape
            The shape.
        subjects : sequence of Subject
            Those of its op.
        seconds : float, optional
            Time to aim at, everything included.

        Raises
        ------
        LostError
            If a subject has made this process useless.
        """
        begin = time.monotonic()
        case = shape.case()
        read, written = input_bytes(case), output_bytes(output_specs(case, subjects[0]))
        sets, cold = count_sets(read + written, _cache_bytes(self._device))
        inputs = [make_inputs(shape, self._device, self.settings.seed + i) for i in range(sets)]
        result = ShapeResult(shape, read, written, sets, cold)
        calls: dict[str, list[LaunchCall]] = {}
        for subject in subjects:
            self._mark(subject.name)
            result.subjects[subject.name] = measured = self._try(subject, case, inputs, calls)
            if subject.path is not None and measured.status == RIGHT:
                measured.path = subject.path(case)
        self._mark("")
        left = None if seconds is None else seconds - (time.monotonic() - begin)
        # Compiling may have taken all the time there was: a quarter for each clock is always there.
        share = None if seconds is None or left is None else max(left / 2, seconds / 4)
        if self._device.type == "cuda":
            self._device_times(result, case, {s.name: s for s in subjects}, inputs, calls, share)
        self._eager_times(result, calls, share)
        self._mark("")
        if self._device.type == "cuda":
            # What graphs have held is theirs for ever otherwise.
            torch.cuda.empty_cache()
        return result

    def _try(
        self, subject: Subject, case: Case, inputs: Sequence[InputSet], calls: dict[str, list[LaunchCall]]
    ) -> Measured:
        """Load a subject, judge its result on the first set of inputs, and add its calls to `calls`."""
        reason = why_outside(case, subject.domain)
        if reason is not None:
            return Measured(OUTSIDE, reason)
        call = self._load(subject)
        if isinstance(call, str):
            return Measured(UNAVAILABLE, call[:MAX_DETAIL])
        specs = output_specs(case, subject)
        try:
            carved = carve(specs, self._device, POISONS[0])
            made = call(inputs[0].args, carved.outputs)
            verdict = self._verdict(subject, case, inputs[0], carved.outputs if made is None else made)
            calls[subject.name] = [partial(call, s.args, make_outputs(specs, self._device)) for s in inputs]
        except Exception as error:  # whatever a subject raises is a result
            return Measured(FAILED, self._failure(subject.name, error))
        return Measured(WRONG, verdict) if verdict else Measured(RIGHT)

    def _load(self, subject: Subject) -> Call | str:
        if subject.name not in self._loaded:
            try:
                self._loaded[subject.name] = subject.load()
            except Unavailable as error:
                self._loaded[subject.name] = str(error)
            except Exception as error:  # a library may fail to load in any way
                self._loaded[subject.name] = f"can't be loaded: {type(error).__name__}: {error}"
        return self._loaded[subject.name]

    def _verdict(self, subject: Subject, case: Case, inputs: InputSet, outputs: Mapping[str, torch.Tensor]) -> str:
        """Return what the oracle has against a result, or an empty text."""
        found = judge(case, subject, inputs.args, outputs)
        return f"{found[0].check}: {found[0].message}"[:MAX_DETAIL] if found else ""

    def _failure(self, name: str, error: Exception) -> str:
        """Return an error's text, or give the process up."""
        text = describe_error(error)[:MAX_DETAIL]
        if is_cuda_failure(error, self._device):
            raise LostError(name, text) from error
        return text

    def _device_times(
        self,
        result: ShapeResult,
        case: Case,
        by_name: Mapping[str, Subject],
        inputs: Sequence[InputSet],
        calls: Mapping[str, Sequence[LaunchCall]],
        seconds: float | None,
    ) -> None:
        from .floor import empty_timer, floor_timer
        from .graph import CaptureError, GraphTimer

        timers: dict[str, Any] = {
            FLOOR: floor_timer([s.storage for s in inputs], result.bytes_written),
            EMPTY: empty_timer(),
        }
        for name, one_a_set in calls.items():
            self._mark(name)
            try:
                if name in self.settings.uncaptured:
                    timers[name] = EventTimer(one_a_set)
                    note = "not captured in a graph: timed eagerly, between events"
                    result.subjects[name].detail = "; ".join(filter(None, (result.subjects[name].detail, note)))
                else:
                    timers[name] = timer = GraphTimer(one_a_set)
                    self._judge_replay(result.subjects[name], by_name[name], case, inputs[0], timer)
            except CaptureError as error:
                raise LostError(name, str(error)[:MAX_DETAIL], capture=True) from error
            except Exception as error:
                result.subjects[name] = Measured(FAILED, self._failure(name, error))
        samples = self._interleave(result, timers, seconds)
        for name, taken in samples.items():
            timer = timers[name]
            timing = Timing(tuple(taken), timer.number, "graph" if isinstance(timer, GraphTimer) else "events")
            if name == FLOOR:
                result.floor = timing
            elif name == EMPTY:
                result.empty = timing
            else:
                result.subjects[name].device = timing

    def _judge_replay(self, measured: Measured, subject: Subject, case: Case, inputs: InputSet, timer: Any) -> None:
        """Judge what the graph writes for the first set of inputs: it is the graph that is timed."""
        outputs, made = timer.calls[0].args[1], timer.results[0]
        for value in outputs.values():
            value.view(torch.uint8).fill_(POISONS[1])
        timer.replay()
        verdict = self._verdict(subject, case, inputs, outputs if made is None else made)
        if verdict and measured.status == RIGHT:
            measured.status, measured.detail = WRONG, f"replayed from a graph: {verdict}"

    def _eager_times(
        self, result: ShapeResult, calls: Mapping[str, Sequence[LaunchCall]], seconds: float | None
    ) -> None:
        one = torch.zeros(1, device=self._device)
        timers = {DISPATCH: EagerTimer([partial(one.add_, 1)], self._device)}
        for name, one_a_set in calls.items():
            if result.subjects[name].status == FAILED:
                continue
            self._mark(name)
            try:
                timers[name] = EagerTimer(one_a_set, self._device)
            except Exception as error:
                result.subjects[name] = Measured(FAILED, self._failure(name, error))
        for name, taken in self._interleave(result, timers, seconds).items():
            timing = Timing(tuple(taken), timers[name].number, "host")
            if name == DISPATCH:
                result.dispatch = timing
            else:
                result.subjects[name].eager = timing

    def _interleave(
        self, result: ShapeResult, timers: Mapping[str, Any], seconds: float | None
    ) -> dict[str, list[float]]:
        """Take samples; a subject that raises is left out, and the rest begin anew."""
        while timers:
            try:
                return interleave(
                    {name: timer.sample for name, timer in timers.items()},
                    rounds=max(self.settings.rounds, MIN_ROUNDS),
                    seed=self.settings.seed,
                    seconds=seconds,
                    before=self._mark,
                )
            except Exception as error:
                if self._at not in result.subjects:
                    raise
                result.subjects[self._at] = Measured(FAILED, self._failure(self._at, error))
                timers = {name: timer for name, timer in timers.items() if name != self._at}
        return {}

    def _mark(self, name: str) -> None:
        """Note, here and for whoever watches, whose code runs from now on."""
        self._at = name
        self._announce(name)


def _cache_bytes(device: torch.device) -> int:
    """Return the size of the device's last-level cache, 0 for a CPU."""
    return int(torch.cuda.get_device_properties(device).L2_cache_size) if device.type == "cuda" else 0
