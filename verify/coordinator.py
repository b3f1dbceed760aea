"""Runs a campaign in this process, or several side by side, and merges what they report."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
import uuid
from collections import Counter
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from . import corpus
from .campaign import Campaign
from .config import Config
from .coverage import Coverage
from .events import Event, Sink, environment
from .interrupt import held, listen, unreachable
from .ledger import Ledger
from .subject import SubjectError
from .worker import die_with_parent

LAST_WORDS = 30.0
"""How long workers may take to end after Ctrl-C."""


@dataclass
class Summary:
    """What a run came to.

    Attributes
    ----------
    subjects : dict of str to Coverage
        What was covered, by subject.
    failures : dict of str to Counter
        Failed checks by class, by subject; every instance, not only the reduced ones.
    findings : dict of str to dict
        Findings by identity, as `Finding.summary` gives them, with ``folder``, ``known`` and, where there is a
        ledger, ``listed``.
    unavailable : dict of str to str
        Subjects that could not run, and why.
    notes : list of str
        What else a person should know.
    seconds, reducing, building : float
        Time spent, and that spent on reduction and on compiling what subjects run, which is not part of it.
    replaying : bool
        Kept cases are being replayed; the time to fuzz has not begun.
    interrupted : bool
        Ctrl-C ended the run.
    errors : list of str
        Faults of the harness itself.
    """

    subjects: dict[str, Coverage] = field(default_factory=dict)
    failures: dict[str, Counter[str]] = field(default_factory=dict)
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    reducing: float = 0.0
    building: float = 0.0
    replaying: bool = False
    interrupted: bool = False
    errors: list[str] = field(default_factory=list)
    _latest: dict[int, dict[str, Any]] = field(default_factory=dict, repr=False)

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        data = event.data
        if event.kind in ("finding", "known"):
            self.findings.setdefault(data["identity"], {**data, "known": event.kind == "known"})
        elif event.kind == "unavailable":
            self.unavailable[data["subject"]] = data["reason"]
        elif event.kind == "note" and data.get("error"):
            self.errors.append(data["text"])
        elif event.kind == "note":
            self.notes.append(data["text"])
        elif event.kind == "progress":
            self._latest[data["worker"]] = data
            self._merge()

    def _merge(self) -> None:
        self.subjects, self.failures = {}, {}
        for data in self._latest.values():
            for name, counts in data["subjects"].items():
                self.subjects.setdefault(name, Coverage()).merge(counts)
                self.failures.setdefault(name, Counter()).update(counts["failures"])
        self.seconds = max(d["seconds"] for d in self._latest.values())
        self.reducing = sum(d["reducing"] for d in self._latest.values())
        self.building = sum(d.get("building", 0.0) for d in self._latest.values())
        self.replaying = any(d.get("replaying", False) for d in self._latest.values())

    @property
    def cases(self) -> int:
        """Cases run."""
        return sum(c.cases for c in self.subjects.values())

    @property
    def rows(self) -> int:
        """Rows judged."""
        return sum(c.rows for c in self.subjects.values())

    def exit_code(self) -> int:
        """Return 1 for findings that no ledger lists, 2 if nothing could run or the harness failed, else 0."""
        if self.errors or not self.subjects:
            return 2
        return 1 if any(not finding.get("listed") for finding in self.findings.values()) else 0


def tee(summary: Summary, sinks: list[Sink], ledger: Ledger | None = None) -> Sink:
    """Return a sink that passes events of one run on to its summary and to others.

    Each event gets the run's id, and a finding that the ledger lists gets ``listed``, the reason why it is known.
    """
    name = uuid.uuid4().hex

    def sink(event: Event) -> None:
        event = replace(event, run=name)
        if ledger is not None and event.kind in ("finding", "known"):
            event = replace(event, data={**event.data, "listed": ledger.known(event.data)})
        summary(event)
        for each in sinks:
            each(event)

    return sink


def run(config: Config, sinks: list[Sink], ledger: Ledger | None = None) -> Summary:
    """Run a campaign with as many workers as the settings say.

    Parameters
    ----------
    config : Config
        What to do.
    sinks : list of callable
        Each gets every event.
    ledger : Ledger, optional
        Known findings, which do not fail the run.

    Returns
    -------
    Summary
        Also after Ctrl-C.
    """
    summary = Summary()
    sink = tee(summary, sinks, ledger)
    asked = {
        name: getattr(config, name) for name in ("seconds", "cases", "seed", "workers", "subjects", "ops", "preset")
    }
    sink(Event("start", {"job": "fuzz", **environment(), **asked}))
    try:
        corpus.recover(config.out)
        if config.workers == 1:
            Campaign(config, sink).run()
        else:
            _run_many(config, sink, summary)
    except KeyboardInterrupt:
        summary.interrupted = True
    outcome = {"exit": summary.exit_code(), "interrupted": summary.interrupted, "errors": summary.errors}
    sink(Event("end", outcome))
    return summary


def _work(config: Config, index: int, pipe: Connection) -> None:
    """Run one worker's campaign in a process of its own."""
    die_with_parent()
    signal.signal(signal.SIGINT, _interrupt_once)

    def send(event: Event) -> None:
        with held():  # a message cut short would garble the ones after it
            pipe.send(event)

    try:
        listen()
        Campaign(config, send, index).run()
    except KeyboardInterrupt:
        pass
    except SubjectError as error:
        send(Event("note", {"worker": index, "text": str(error), "error": True}))
    except Exception:
        send(Event("note", {"worker": index, "text": traceback.format_exc(), "error": True}))


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """Raise on the first Ctrl-C only: a terminal and the coordinator may both send one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run_many(config: Config, sink: Sink, summary: Summary) -> None:
    context = multiprocessing.get_context("spawn")
    # A pipe for each: a worker that is killed while it writes takes no lock along that the others need.
    pipes: list[Connection] = []
    workers = []
    try:
        for index in range(config.workers):
            with held(), unreachable():
                ours, theirs = context.Pipe(duplex=False)
                workers.append(context.Process(target=_work, args=(config, index, theirs)))
                workers[-1].start()
                theirs.close()
                pipes.append(ours)
        _drain(pipes, sink)
    except KeyboardInterrupt:
        summary.interrupted = True
        # A terminal's Ctrl-C reached the workers too; one sent to this process alone did not.
        for worker in workers:
            if worker.is_alive() and worker.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGINT)
        _drain(pipes, sink, seconds=LAST_WORDS)
    finally:
        for worker in workers:
            worker.join(LAST_WORDS)
            if worker.is_alive():
                worker.kill()
            worker.join()
    for index, worker in enumerate(workers):
        if worker.exitcode != 0 and not summary.interrupted:
            summary.errors.append(
                f"worker {index} ended with {worker.exitcode}; its cases in flight run first next time"
            )


def _drain(pipes: list[Connection], sink: Sink, *, seconds: float | None = None) -> None:
    """Pass on what workers send until all have hung up, or time is up; pipes that are done are removed."""
    end = None if seconds is None else time.monotonic() + seconds
    while pipes and (end is None or time.monotonic() < end):
        for pipe in connection.wait(pipes, timeout=0.5):
            assert isinstance(pipe, Connection)
            with held():  # a message read in part would be lost, with those after it
                try:
                    event = pipe.recv()
                except (EOFError, OSError):
                    pipes.remove(pipe)
                    continue
                sink(event)
