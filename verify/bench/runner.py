"""Runs the benchmark: one process measures everything; when a subject ends it, another goes on without that one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

from moeproof.verify.channel import describe_exit
from moeproof.verify.interrupt import listen, unreachable
from moeproof.verify.subject import Subject, find

from .results import EXCLUDED, FAILED, Measured, Results, ShapeResult
from .session import LostError, Session, Settings
from .shapes import NAMES, Shape

SILENCE_SECONDS = 600.0
"""A process that doesn't get from one subject to the next for this long hangs: compiling a library takes minutes."""
MAX_STARTS = 24
"""Processes that may be started in a run."""
NAME_BYTES = 1024
NOT_RELEASED = (
    "sglang-kernel:moe_align_block_size@exact",
    "own:fused_gate@delays",
    "own:moe_align_block_size@delays",
)
"""Variants that nobody ships: built with delays, or called as no caller calls it."""
FAMILIES = ("own", "library")
"""Tags that make a subject's family; one of neither is a reference, or a user's."""


class BenchError(RuntimeError):
    """The benchmark can't go on."""


def default_subjects(device: str) -> list[Subject]:
    """Return own kernels, the PyTorch reference and released libraries; on a CPU the references that run there."""
    if device == "cpu":
        return find(["torch", "numpy"])
    released = [s for s in find(["*"]) if family(s) in FAMILIES and s.name not in NOT_RELEASED]
    return [s for s in (*released, *find(["torch"])) if runs_on(s, device)]


def runs_on(subject: Subject, device: str) -> bool:
    """Say whether a subject runs on tensors of a device."""
    return subject.device in (device, "any")


def family(subject: Subject) -> str:
    """Return ``own``, ``library``, ``reference`` or, for a user's subject, an empty text."""
    return next((tag for tag in (*FAMILIES, "reference") if tag in subject.tags), "")


class Runner:
    """Measures shapes in a process of its own, and starts another when that is lost.

    Parameters
    ----------
    subjects : sequence of Subject
        Subjects of any op.
    settings : Settings
        How to measure.
    """

    def __init__(self, subjects: Sequence[Subject], settings: Settings) -> None:
        self._subjects = list(subjects)
        self._settings = settings
        self._excluded: dict[str, str] = {}
        self._context = multiprocessing.get_context("spawn")
        self._at: Any = self._context.RawArray("c", NAME_BYTES)
        self._process: Any = None
        self._channel: Connection | None = None
        self._starts = 0
        self.environment: dict[str, Any] = {}

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop()

    def run(
        self,
        shapes: Sequence[Shape],
        *,
        seconds: float | None = None,
        each: Callable[[Results, ShapeResult], None] = lambda results, result: None,
    ) -> Results:
        """Measure shapes.

        Parameters
        ----------
        shapes : sequence of Shape
            In this order.
        seconds : float, optional
            Time to aim at; what is left is shared among the shapes that are left.
        each : callable, optional
            Called with what there is so far and each new result.

        Raises
        ------
        BenchError
            If processes end again and again, or one ends with no subject running.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        results = Results(self.environment, {s.name: family(s) for s in self._subjects})
        for number, shape in enumerate(shapes):
            left = None if deadline is None else max(0.0, deadline - time.monotonic()) / (len(shapes) - number)
            result = self.measure(shape, left)
            results.shapes.append(result)
            each(results, result)
        return results

    def measure(self, shape: Shape, seconds: float | None = None) -> ShapeResult:
        """Measure one shape, without the subjects that ended a process."""
        lost: dict[str, Measured] = {}
        while True:
            ours = [s for s in self._subjects if s.op == NAMES[shape.op]]
            names = [s.source or s.name for s in ours if s.name not in self._excluded]
            if not names:
                raise BenchError(f"no subject is left for {shape.label}: {'; '.join(self._excluded.values())}")
            answer = self._ask(shape, names, seconds)
            if isinstance(answer, ShapeResult):
                for subject in ours:
                    if subject.name in lost:
                        answer.subjects[subject.name] = lost[subject.name]
                    elif subject.name in self._excluded:
                        answer.subjects[subject.name] = Measured(EXCLUDED, self._excluded[subject.name])
                return answer
            if answer.capture:
                self._settings = replace(self._settings, uncaptured=self._settings.uncaptured | {answer.subject})
            else:
                self._excluded[answer.subject] = f"ended the process at {shape.label}: {answer}"
                lost[answer.subject] = Measured(FAILED, f"ended the process: {answer}")

    def _ask(self, shape: Shape, names: list[str], seconds: float | None) -> ShapeResult | LostError:
        """Have the process measure a shape; return the result, or who was running when it was lost."""
        channel = self._started()
        with contextlib.suppress(BrokenPipeError):
            channel.send((shape, names, seconds))
        try:
            answer = self._receive(channel)
        except (EOFError, ConnectionResetError):
            self._process.join(5)
            return self._lost(describe_exit(self._process.exitcode or 0))
        except TimeoutError:
            return self._lost(f"no sign of life for {SILENCE_SECONDS:.0f} s")
        if isinstance(answer, tuple):
            kind, *about = answer
            self._stop()
            if kind == "lost":
                subject, text, capture = about
                return LostError(subject, text, capture=capture)
            raise BenchError(about[0])
        return answer

    def _receive(self, channel: Connection) -> Any:
        at, since = self._at.value, time.monotonic()
        while not channel.poll(1.0):
            if self._at.value != at:
                at, since = self._at.value, time.monotonic()
            elif time.monotonic() - since > SILENCE_SECONDS:
                raise TimeoutError
        return channel.recv()

    def _lost(self, how: str) -> LostError:
        name = self._at.value.decode()
        self._stop()
        if name not in {s.name for s in self._subjects}:
            raise BenchError(f"the measuring process was lost ({how}) while no subject was running")
        return LostError(name, how)

    def _started(self) -> Connection:
        if self._channel is None:
            if self._starts == MAX_STARTS:
                raise BenchError(f"{MAX_STARTS} processes have ended: {'; '.join(self._excluded.values())}")
            self._starts += 1
            self._at.value = b""
            self._channel, theirs = self._context.Pipe()
            self._process = self._context.Process(target=serve, args=(theirs, self._at, self._settings), daemon=True)
            with unreachable():
                self._process.start()
            theirs.close()
            try:
                self.environment.update(self._receive(self._channel))
            except (EOFError, TimeoutError) as error:
                self._stop()
                raise BenchError(f"the measuring process can't start: {describe_error(error)}") from error
        return self._channel

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join(10)
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def describe_error(error: BaseException) -> str:
    """Return an error's type, and its text if it has any."""
    return f"{type(error).__name__}: {error}".rstrip(": ")


def serve(channel: Connection, at: Any, settings: Settings) -> None:
    """Measure shapes on request until the parent hangs up; the body of the child process."""
    from moeproof.verify.worker import die_with_parent

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    listen()
    die_with_parent()

    def announce(name: str) -> None:
        at.value = name.encode()[: NAME_BYTES - 1]

    channel.send(environment(settings))
    session = Session(settings, announce)
    while True:
        try:
            shape, names, seconds = channel.recv()
        except EOFError:
            return
        try:
            channel.send(session.measure(shape, find(names), seconds))
        except LostError as error:
            channel.send(("lost", error.subject, str(error), error.capture))
            os._exit(3)
        except Exception as error:  # the benchmark's own: the parent says so and ends
            channel.send(("broken", f"{shape.label}: {describe_error(error)}"))
            raise


def environment(settings: Settings) -> dict[str, Any]:
    """Return what a reader of the results wants to know of the machine and the run."""
    import platform

    import torch

    from moeproof import __version__
    from moeproof.verify.libraries.locate import report

    found: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "moeproof": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "libraries": {r.name: r.version for r in report() if r.version},
        "seed": settings.seed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    if settings.device == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= {
            "device": about.name,
            "capability": f"{about.major}.{about.minor}",
            "multiprocessors": about.multi_processor_count,
            "cache_bytes": about.L2_cache_size,
            "cuda": torch.version.cuda,
        }
    return found
