"""Writes a run into the history while it lasts, beside the run: a slow or lost database never holds it up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from moeproof.verify.events import Event, to_json
from moeproof.verify.files import write_text

from .errors import HistoryError
from .record import RunRecord
from .store import History

BATCH = 2.0
"""Seconds between two writes while nothing special happens."""
HEARTBEAT = 20.0
"""Seconds without an event after which a run still says that it is alive."""
RETRY = 15.0
"""Seconds between two tries to reach a database that was lost."""
PATIENCE = 45.0
"""How long the end of a run waits for its last write."""
_URGENT = ("start", "finding", "known", "end")
_DROPPED = ("failure", "building", "reducing")
"""Events of which ``progress`` holds the counts, or that say only what goes on."""


class HistorySink:
    """Reader of the event stream that saves the run in batches, in a thread of its own.

    If the database is lost, the events go to a file that `moeproof history import` takes, until it is back.

    Parameters
    ----------
    where : str
        URL or path of the history; made or brought up to date at once.
    spool : Path
        Folder of that file.
    tell : callable
        Takes what a person should know, when it happens.

    Raises
    ------
    HistoryError
        The history can't be opened: better to know before a night of fuzzing than after it.
    """

    def __init__(self, where: str, spool: Path, tell: Callable[[str], None]) -> None:
        self._history = History(where, create=True)
        self._folder = spool
        self._tell = tell
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._latest: dict[Any, Event] = {}
        self._changed = self._closing = False
        self._wake = threading.Event()
        self._spooled: Path | None = None
        self._thread = threading.Thread(target=self._work, name="moeproof-history", daemon=True)
        self._thread.start()

    def __call__(self, event: Event) -> None:
        """Take in an event; returns at once."""
        if event.kind in _DROPPED:
            return
        with self._lock:
            if event.kind == "progress":
                self._latest[event.data.get("worker")] = event
            else:
                self._events.append(event)
            self._changed = True
        if event.kind in _URGENT:
            self._wake.set()

    def close(self) -> None:
        """Write what is left, or spool it; returns within `PATIENCE`."""
        self._closing = True
        self._wake.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._spool(f"no answer within {PATIENCE:.0f} s")
        if self._spooled is not None:
            self._tell(f"history: this run is in {self._spooled}; add it with: moeproof history import {self._spooled}")
        self._history.close()

    # -- in the thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        again = 0.0
        alive = time.monotonic()
        while True:
            self._wake.wait(BATCH)
            self._wake.clear()
            last = self._closing
            with self._lock:
                due, self._changed = self._changed, False
            now = time.monotonic()
            if due or self._spooled is not None or now - alive > HEARTBEAT:
                alive = now
                if now < again and not last:
                    if due:
                        self._spool("")
                elif not self._save():
                    again = time.monotonic() + RETRY
            if last:
                return

    def _save(self) -> bool:
        """Write the run to the database, or to the spool; say whether the database has it."""
        run = self._record()
        if run is None:
            return True
        try:
            self._history.save(run)
        except HistoryError as error:
            self._spool(str(error))
            return False
        except Exception as error:  # the history must never end a run
            self._spool(f"history {self._history} can't be written: {type(error).__name__}: {error}")
            return False
        if self._spooled is not None:
            self._spooled.unlink(missing_ok=True)
            self._spooled = None
            self._tell("history: reachable again, nothing is lost")
        return True

    def _record(self) -> RunRecord | None:
        events = self._snapshot()
        if not events:
            return None
        run = RunRecord(events[0].run)
        for event in events:
            run(event)
        if run.ended is None:
            run.seen = time.time()
        return run.settle()

    def _snapshot(self) -> list[Event]:
        """Return the run's events so far; of each worker's ``progress``, which holds totals, the last."""
        with self._lock:
            return sorted([*self._events, *self._latest.values()], key=lambda event: event.time)

    def _spool(self, reason: str) -> None:
        events = self._snapshot()
        if not events:
            return
        path = self._folder / f"history-{events[0].run}.jsonl"
        try:
            write_text(path, "".join(json.dumps(to_json(event)) + "\n" for event in events))
        except OSError as error:
            self._tell(f"history: {reason}; {path} can't be written either: {error}")
            return
        if self._spooled is None:
            self._spooled = path
            self._tell(f"{reason}; this run's events go to {path} until it is back")
