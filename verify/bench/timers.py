"""Timers without a graph: what calls cost on the host's clock, and on the device's when they are not captured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch

LaunchCall = Callable[[], object]
"""Runs a subject once on one set of inputs; keeps whatever the call needs alive."""

EAGER_US = 2000.0
EAGER_CALLS = 200
"""A sample of eager calls lasts about this long, or has this many calls if that is less."""


class EagerTimer:
    """Times a row of calls on the host's clock, Python included, and waits for the device at its end.

    Parameters
    ----------
    calls : sequence of callable
        One for each set of inputs; they are called in turn.
    device : torch.device
        Waited for where it is a CUDA device.

    Attributes
    ----------
    number : int
        Calls in a sample.
    """

    def __init__(self, calls: Sequence[LaunchCall], device: torch.device) -> None:
        self._calls = list(calls)
        self._cuda = device.type == "cuda"
        self._plan = self._calls
        self.number = len(self._plan)
        self.sample()
        once = self.sample()
        wanted = min(EAGER_CALLS, math.ceil(EAGER_US / max(once, 1e-3)))
        self._plan = (self._calls * math.ceil(wanted / len(self._calls)))[: max(wanted, 1)]
        self.number = len(self._plan)

    def sample(self) -> float:
        """Return microseconds a call."""
        if self._cuda:
            torch.cuda.synchronize()
        begin = time.perf_counter_ns()
        for call in self._plan:
            call()
        if self._cuda:
            torch.cuda.synchronize()
        return (time.perf_counter_ns() - begin) / 1e3 / self.number


class EventTimer:
    """Times a row of eager calls between two events: the device's idle time between launches is included.

    For what can't be captured in a graph. Parameters and attributes as `EagerTimer`.
    """

    def __init__(self, calls: Sequence[LaunchCall]) -> None:
        self._calls = list(calls)
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self.number = len(self._calls)

    def sample(self) -> float:
        """Return microseconds a call."""
        begin, end = self._events
        begin.record()
        for call in self._calls:
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / self.number
