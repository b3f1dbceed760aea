"""Runs a campaign in this process, or several side by side, and merges what they report."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .campaign import Campaign
from .config import Config
from .coverage import Coverage
from .events import Event, Sink
from .subject import SubjectError


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
        Findings by identity, as `Finding.summary` gives them, with ``folder`` and ``known``.
    unavailable : dict of str to str
        Subjects that could not run, and why.
    notes : list of str
        What else a person should know.
    seconds, reducing : float
        Time spent, and the part of it spent on reduction.
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

    @property
    def cases(self) -> int:
        """Cases run."""
        return sum(c.cases for c in self.subjects.values())

    @property
    def rows(self) -> int:
        """Rows judged."""
        return sum(c.rows for c in self.subjects.values())

    def exit_code(self) -> int:
        """Return 1 for findings, 2 if nothing could run or the harness failed, else 0."""
        if self.errors or not self.subjects:
            return 2
        return 1 if self.findings else 0


def run(config: Config, sinks: list[Sink]) -> Summary:
    """Run a campaign with as many workers as the settings say.

    Parameters
    ----------
    config : Config
        What to do.
    sinks : list of callable
        Each gets every event.

    Returns
    -------
    Summary
        Also after Ctrl-C.
    """
    summary = Summary()

    def sink(event: Event) -> None:
        for each in (summary, *sinks):
            each(event)

    sink(Event("start", {"seconds": config.seconds, "cases": config.cases, "seed": config.seed, "workers": config.workers}))
    try:
        if config.workers == 1:
            Campaign(config, sink).run()
        else:
            _run_many(config, sink, summary)
    except KeyboardInterrupt:
        summary.interrupted = True
    sink(Event("end", {"exit": summary.exit_code(), "interrupted": summary.interrupted}))
    return summary


def _work(config: Config, index: int, events: Any) -> None:
    """Run one worker's campaign in a process of its own."""
    try:
        Campaign(config, events.put, index).run()
    except KeyboardInterrupt:
        pass
    except SubjectError as error:
        events.put(Event("note", {"text": str(error), "error": True}))
    except Exception:
        events.put(Event("note", {"text": traceback.format_exc(), "error": True}))


def _run_many(config: Config, sink: Sink, summary: Summary) -> None:
    context = multiprocessing.get_context("spawn")
    events: Any = context.Queue()
    workers = [context.Process(target=_work, args=(config, i, events)) for i in range(config.workers)]
    for worker in workers:
        worker.start()
    try:
        while any(w.is_alive() for w in workers) or not events.empty():
            _drain(events, sink, summary)
    except KeyboardInterrupt:
        summary.interrupted = True
        # A terminal's Ctrl-C reached the workers too; one sent to this process alone did not.
        for worker in workers:
            if worker.is_alive() and worker.pid is not None:
                worker.terminate() if worker.pid is None else _interrupt(worker.pid)
        end = time.monotonic() + 10
        while any(w.is_alive() for w in workers) and time.monotonic() < end:
            _drain(events, sink, summary)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.kill()
            worker.join()
    for index, worker in enumerate(workers):
        if worker.exitcode not in (0, None) and not summary.interrupted:
            summary.errors.append(f"worker {index} ended with {worker.exitcode}; its cases in flight run first next time")


def _interrupt(pid: int) -> None:
    import os

    try:
        os.kill(pid, signal.SIGINT)
    except ProcessLookupError:
        pass


def _drain(events: Any, sink: Sink, summary: Summary) -> None:
    try:
        event = events.get(timeout=0.2)
    except queue.Empty:
        return
    if event.kind == "note" and event.data.get("error"):
        summary.errors.append(event.data["text"])
    else:
        sink(event)
