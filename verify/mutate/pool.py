"""Runs jobs in processes of their own, some at a time, and ends those that hang.

Processes are forked from a server that has torch loaded: a start costs milliseconds, a mutant that corrupts memory or
never returns takes only its own process with it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from moeproof.verify.worker import die_with_parent

T = TypeVar("T")
Work = Callable[[Any, Callable[[int, float], None]], Any]
"""Takes a job's payload and a function to report each step with, and its longest processor time; returns the result."""
POLL = 0.2
PATIENCE = 10.0
"""A step may take so many times its processor time by the clock: machines are shared."""
START_SECONDS = 60.0
"""Longest time to the first step, by the clock."""
PRELOAD = ("torch", "torch._dynamo", "moeproof.verify.execute", "moeproof.verify.mutate.simt_judge")


@dataclass(frozen=True)
class Job(Generic[T]):
    """Something to do.

    Attributes
    ----------
    tag : object
        What the caller knows it by.
    payload : object
        What `Work` takes.
    seconds : float
        Longest time for all of it, by the clock.
    """

    tag: T
    payload: Any
    seconds: float = 600.0


@dataclass(frozen=True)
class Done(Generic[T]):
    """What a job came to.

    Attributes
    ----------
    tag : object
        The job's.
    result : object
        What the work returned; None if it didn't.
    error : str
        A traceback, ``"died: …"``, ``"stuck"`` (no step within its time) or ``"out of time"`` (all of it too long).
    step : int
        Number of the step begun last.
    seconds : float
        How long it took.
    """

    tag: T
    result: Any
    error: str
    step: int
    seconds: float


@dataclass
class _Running(Generic[T]):
    job: Job[T]
    process: BaseProcess
    pipe: Connection
    begin: float = field(default_factory=time.monotonic)
    until: float = 0.0
    step: int = 0


def _child(pipe: Connection, work: Work, payload: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    os.setsid()  # so that compilers it starts end with it

    def report(step: int, seconds: float) -> None:
        pipe.send(("step", (step, seconds)))
        # Of this process's processor time; when it is used up, the process dies of it.
        signal.setitimer(signal.ITIMER_PROF, seconds)

    try:
        pipe.send(("result", work(payload, report)))
    except BaseException:  # whatever a mutant does to its process is a result
        pipe.send(("error", traceback.format_exc()))
    # Without the interpreter's clean-up, which a broken kernel may have made impossible.
    os._exit(0)


def run_jobs(jobs: Iterable[Job[T]], work: Work, width: int) -> Iterator[Done[T]]:
    """Run jobs, `width` at a time; yield each as it ends.

    Parameters
    ----------
    jobs : iterable of Job
        What to do; taken as places become free.
    work : callable
        A function at the top level of a module.
    width : int
        Processes side by side.
    """
    context = multiprocessing.get_context("forkserver")
    # A child imports the main module again: what that imports is to be there already, but not that module itself.
    main = getattr(sys.modules["__main__"], "__spec__", None)
    ours = [n for n in sys.modules if n.startswith("moeproof.") and (main is None or n != main.name)]
    context.set_forkserver_preload([*PRELOAD, *ours])
    queue = iter(jobs)
    running: list[_Running[T]] = []
    try:
        more = True
        while more or running:
            while more and len(running) < width:
                job = next(queue, None)
                more = job is not None
                if job is not None:
                    running.append(_start(context, job, work))
            wait([r.pipe for r in running], POLL)
            for entry in list(running):
                done = _look(entry)
                if done is not None:
                    running.remove(entry)
                    yield done
    finally:
        for entry in running:
            _end(entry)


def _start(context: Any, job: Job[T], work: Work) -> _Running[T]:
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(there, work, job.payload), daemon=True)
    process.start()
    there.close()
    return _Running(job, process, here, until=time.monotonic() + START_SECONDS)


def _look(entry: _Running[T]) -> Done[T] | None:
    """Read what a process has said; return what it came to, if it has come to an end."""
    job, now = entry.job, time.monotonic()

    def done(result: Any, error: str) -> Done[T]:
        _end(entry)
        return Done(job.tag, result, error, entry.step, now - entry.begin)

    try:
        while entry.pipe.poll():
            kind, value = entry.pipe.recv()
            if kind != "step":
                return done(value if kind == "result" else None, "" if kind == "result" else value)
            entry.step, seconds = value
            entry.until = now + START_SECONDS + PATIENCE * seconds
    except (EOFError, OSError):
        entry.process.join(5)
        if entry.process.exitcode == -signal.SIGPROF:
            return done(None, "stuck")
        return done(None, f"died: exit code {entry.process.exitcode}")
    if now > entry.until:
        return done(None, "stuck")
    return done(None, "out of time") if now - entry.begin > job.seconds else None


def _end(entry: _Running[Any]) -> None:
    """Kill a process and what it has started; wait for it."""
    pid = entry.process.pid
    if pid is not None and entry.process.is_alive():
        for kill in (os.killpg, os.kill):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)
    entry.process.join(10)
    entry.pipe.close()
