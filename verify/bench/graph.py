"""The device's time of a call, from replays of a CUDA graph. The one module of the benchmark that captures."""

from __future__ import annotations

import gc
import math
from collections.abc import Sequence

import torch

from .timers import LaunchCall

REPLAY_US = 250.0
"""A graph holds so many calls that a replay lasts about this long: long enough to hide that a graph is started."""
MAX_CALLS = 512
REPLAYS = 2
"""Replays in a sample."""
LONG_US = 2000.0
"""A replay that lasts this long is timed alone: what the host's delay adds is lost in it."""


class CaptureError(RuntimeError):
    """A call can't be captured in a graph; the process should be given up, as torch's allocator may be upset."""


class GraphTimer:
    """Times calls by replaying a graph that holds a row of them, on one set of inputs after the other.

    A sample is one replay that isn't timed, which keeps the device busy while the host queues the rest and brings
    the subject's code into the caches, then `REPLAYS` replays between two events. What a sample gives is the
    distance between one call's start and the next one's, launch included; nothing is subtracted.

    Parameters
    ----------
    calls : sequence of callable
        One for each set of inputs. They run on the current stream, as any kernel that can be captured does.

    Attributes
    ----------
    calls : list of callable
        As given.
    number : int
        Calls in the graph.
    results : list
        What the captured calls returned, in order: a replay writes there.

    Raises
    ------
    CaptureError
        If the calls can't be captured.
    """

    def __init__(self, calls: Sequence[LaunchCall]) -> None:
        self.calls = list(calls)
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        self._warm_up()
        self.number = len(self.calls)
        self._graph, self.results = self._capture(1)
        self._replays = REPLAYS
        self.sample()
        once = self.sample() * self.number
        if once > LONG_US:
            self._replays = 1
        passes = max(1, min(math.ceil(REPLAY_US / max(once, 1e-3)), MAX_CALLS // self.number))
        if passes > 1:
            self._graph.reset()
            self._graph, self.results = self._capture(passes)
            self.number *= passes

    def replay(self) -> None:
        """Replay the graph once and wait for it."""
        self._graph.replay()
        torch.cuda.synchronize()

    def sample(self) -> float:
        """Return microseconds a call."""
        begin, end = self._events
        if self._replays > 1:
            self._graph.replay()
        begin.record()
        for _ in range(self._replays):
            self._graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / (self._replays * self.number)

    def _warm_up(self) -> None:
        """Run every call on a side stream, as capture will: just-in-time compilation can't happen inside it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in self.calls:
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()

    def _capture(self, passes: int) -> tuple[torch.cuda.CUDAGraph, list[object]]:
        # Not `torch.cuda.graph`, which empties the allocator's cache each time: that costs more than the capture.
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        results: list[object] = []
        torch.cuda.synchronize()
        collecting = gc.isenabled()
        # Nothing that dies by chance may free device memory now.
        gc.disable()
        with torch.cuda.stream(stream):
            # Other threads of a library may do what a capture forbids.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                # Results of a pass are kept until its end: their memory must not be shared within a pass.
                for _ in range(passes):
                    results = [call() for call in self.calls]
            except Exception as error:
                raise CaptureError(f"{type(error).__name__}: {error}") from error
            finally:
                failed = _end_capture(graph)
                if collecting:
                    gc.enable()
        if failed is not None:
            raise CaptureError(failed)
        torch.cuda.synchronize()
        return graph, results


def _end_capture(graph: torch.cuda.CUDAGraph) -> str | None:
    """End a capture; return what went wrong, which must not hide an error of the captured call."""
    try:
        graph.capture_end()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
