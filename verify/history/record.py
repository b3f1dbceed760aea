"""One run, as its events tell it: what the history stores and what reports are made of."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeproof.verify.events import Event, from_json

STALE = 120.0
"""Seconds without a sign of life after which a run without an end counts as unfinished, not as running."""
_NOT_DETAILS = ("job", "worker")


@dataclass
class SubjectRecord:
    """What a run did with one subject.

    Attributes
    ----------
    name, op, device, version : str
        What it is; empty where the run didn't get as far as to tell.
    domain : tuple of str
        Keys of `coverage.EXPERTS` in which it supports a number of experts.
    unavailable : str
        Why it could not run, or was left out; empty if it ran to the end.
    cases, rows : int
        What was judged.
    seconds : float
        Time spent on its cases, without reduction.
    failures : dict of str to int
        Failed checks by class, every instance.
    coverage : dict of str to dict
        By kind of label, how many cases had each value.
    experts : dict of str to dict
        By key of `coverage.EXPERTS`, ``cases``, ``rows`` and ``failed``.
    """

    name: str
    op: str = ""
    device: str = ""
    version: str = ""
    domain: tuple[str, ...] = ()
    unavailable: str = ""
    cases: int = 0
    rows: int = 0
    seconds: float = 0.0
    failures: dict[str, int] = field(default_factory=dict)
    coverage: dict[str, dict[str, int]] = field(default_factory=dict)
    experts: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass
class RunRecord:
    """One run.

    Attributes
    ----------
    id : str
        Its name, the same wherever the run is stored.
    job : str
        The command: ``"fuzz"``, ``"bench"``, ...
    started, seen : float
        Times of the first and the last event, in seconds since the epoch.
    ended : float, optional
        Time of its end; None if it never came.
    exit : int, optional
        Exit code.
    interrupted : bool
        Ended by Ctrl-C or SIGTERM.
    seconds, reducing : float
        Time spent fuzzing, and time spent on reduction by all workers.
    details : dict
        Where it ran and what was asked of it.
    subjects : dict of str to SubjectRecord
        By name.
    findings : dict of str to dict
        By identity, as `Finding.summary` gives them, with ``known``, ``time``, ``folder``, ``script`` and ``case``.
    notes : list of dict
        ``time``, ``text`` and ``error``.
    timings : list of dict
        Benchmark results: see `timings.TIMING`.
    """

    id: str
    job: str = "fuzz"
    started: float = 0.0
    seen: float = 0.0
    ended: float | None = None
    exit: int | None = None
    interrupted: bool = False
    seconds: float = 0.0
    reducing: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)
    subjects: dict[str, SubjectRecord] = field(default_factory=dict)
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)
    timings: list[dict[str, Any]] = field(default_factory=list)
    _latest: dict[Any, dict[str, Any]] = field(default_factory=dict, repr=False, compare=False)

    def __call__(self, event: Event) -> None:
        """Take in an event; `settle` adds up what workers count."""
        data = event.data
        self.started = self.started or event.time
        self.seen = max(self.seen, event.time)
        if self.ended is not None and event.time > self.ended:
            self.ended = None  # a run that goes on after an interruption
        if event.kind == "start":
            self.job = data.get("job", self.job)
            self.details = {name: value for name, value in data.items() if name not in _NOT_DETAILS}
        elif event.kind == "subject":
            subject = self._subject(data["subject"])
            subject.op, subject.device = data.get("op", ""), data.get("device", "")
            subject.version, subject.domain = data.get("version", ""), tuple(data.get("experts", ()))
        elif event.kind == "unavailable":
            subject = self._subject(data["subject"])
            subject.op, subject.unavailable = subject.op or data.get("op", ""), data["reason"]
        elif event.kind in ("finding", "known"):
            about = {name: value for name, value in data.items() if name != "worker"}
            subject = self._subject(data["subject"])
            subject.op = subject.op or data["op"]
            self.findings.setdefault(data["identity"], {**about, "known": event.kind == "known", "time": event.time})
        elif event.kind == "note":
            self._note(event.time, data["text"], error=bool(data.get("error")))
        elif event.kind == "progress":
            self._latest[data.get("worker")] = data
        elif event.kind == "end":
            self.ended, self.exit = event.time, data.get("exit")
            self.interrupted = bool(data.get("interrupted"))
            for text in data.get("errors", ()):
                if not any(note["text"] == text for note in self.notes):
                    self._note(event.time, text, error=True)

    def settle(self) -> RunRecord:
        """Add up the workers' counts, which each ``progress`` event gives as totals, and return the run."""
        if not self._latest:
            return self
        for subject in self.subjects.values():
            subject.cases = subject.rows = 0
            subject.seconds = 0.0
            subject.failures, subject.coverage, subject.experts = {}, {}, {}
        for data in self._latest.values():
            for name, counts in data["subjects"].items():
                subject = self._subject(name)
                subject.cases += counts["cases"]
                subject.rows += counts["rows"]
                subject.seconds += data.get("spent", {}).get(name, 0.0)
                _add(subject.failures, counts["failures"])
                for mine, kind in ((subject.coverage, "counts"), (subject.experts, "experts")):
                    for value, number in counts.get(kind, {}).items():
                        _add(mine.setdefault(value, {}), number)
        self.seconds = max(d["seconds"] for d in self._latest.values())
        self.reducing = sum(d["reducing"] for d in self._latest.values())
        return self

    @property
    def cases(self) -> int:
        """Cases run."""
        return sum(s.cases for s in self.subjects.values())

    @property
    def rows(self) -> int:
        """Rows judged."""
        return sum(s.rows for s in self.subjects.values())

    def status(self, now: float) -> str:
        """Return ``finished``, ``interrupted``, ``running`` or ``unfinished`` (killed, or lost) at a time."""
        if self.ended is not None:
            return "interrupted" if self.interrupted else "finished"
        return "running" if now - self.seen < STALE else "unfinished"

    def _subject(self, name: str) -> SubjectRecord:
        return self.subjects.setdefault(name, SubjectRecord(name))

    def _note(self, time: float, text: str, *, error: bool) -> None:
        self.notes.append({"time": time, "text": text, "error": error})


def from_events(events: Iterable[Event]) -> list[RunRecord]:
    """Return the runs that a stream of events tells of, in the order of their starts.

    Parameters
    ----------
    events : iterable of Event
        Events of several runs may alternate; one that names no run belongs to the start before it.
    """
    runs: dict[str, RunRecord] = {}
    unnamed = ""
    for event in events:
        if event.kind == "start" and not event.run:
            unnamed = f"unnamed-{event.time:.6f}"
        name = event.run or unnamed
        if name:
            runs.setdefault(name, RunRecord(name))(event)
    return sorted((run.settle() for run in runs.values()), key=lambda run: run.started)


def read_events(path: Path) -> Iterator[Event]:
    """Yield the events of a file of JSON lines; a last line that was cut short is left out.

    Raises
    ------
    ValueError
        A line is no event; names the file and the line.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                yield from_json(json.loads(line))
            except (ValueError, RecursionError) as error:
                if not line.endswith("\n"):  # a run that was killed while it wrote
                    return
                raise ValueError(f"{path}, line {number} is no event: {error}") from error


def _add(total: dict[str, int], counts: dict[str, int]) -> None:
    for name, count in counts.items():
        total[name] = total.get(name, 0) + count
