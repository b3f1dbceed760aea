"""One stream of events out of all workers' files; what each finding is to this run, new or known, is settled here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from moeproof.verify.events import Event, JsonLines, Sink, from_json
from moeproof.verify.ledger import Ledger

OWN = "run.jsonl"
"""The file of events that no worker writes."""


class Stream:
    """Reads what workers write, and passes it on once.

    The workers' files are the truth. A run that goes on after a reboot reads them from their beginning, so its readers
    see the whole run.

    Parameters
    ----------
    folder : Path
        Folder of the workers' files.
    run : str
        The run's name; goes into each event.
    reported : set of str
        Defects that earlier runs have reported.
    ledger : Ledger, optional
        Known findings.
    """

    def __init__(self, folder: Path, run: str, reported: set[str], ledger: Ledger | None) -> None:
        self.folder = folder
        self._run = run
        self._reported = reported
        self._ledger = ledger
        self._read: dict[Path, int] = {}
        self._passed: set[tuple[str, str]] = set()
        self._own = JsonLines(folder / OWN)

    @property
    def begun(self) -> bool:
        """Whether the run has said its ``start`` already, before a reboot."""
        return (self.folder / OWN).stat().st_size > 0

    def say(self, event: Event) -> None:
        """Add an event of the run itself."""
        self._own(event)

    def pump(self, sinks: Sequence[Sink]) -> None:
        """Pass on what has been written since the last time, in the order of time."""
        for event in sorted(self._fresh(), key=lambda e: e.time):
            settled = self._settle(event)
            if settled is not None:
                for sink in sinks:
                    sink(settled)

    def close(self) -> None:
        """Close the file of own events."""
        self._own.close()

    def _fresh(self) -> Iterator[Event]:
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                data = file.read()
            whole = data.rfind(b"\n") + 1  # a line that is being written, or was when its writer was killed
            self._read[path] = self._read.get(path, 0) + whole
            for line in data[:whole].splitlines():
                yield from_json(json.loads(line))

    def _settle(self, event: Event) -> Event | None:
        """Return the event as readers get it, or None if they have it already."""
        data, kind = event.data, event.kind
        if kind in ("finding", "known"):
            mark = ("finding", data["identity"])
            # A defect has another name while reductions of it are cut short.
            before = {data["identity"], data.get("instead_of")} & self._reported
            kind = "known" if before else "finding"
            if self._ledger is not None:
                data = {**data, "listed": self._ledger.known(data)}
        elif kind in ("subject", "unavailable"):
            mark = (kind, data["subject"])
        else:
            return replace(event, run=self._run)
        if mark in self._passed:
            return None
        self._passed.add(mark)
        return replace(event, kind=kind, data=data, run=self._run)
