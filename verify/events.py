"""One stream of events; console, JSON lines and the summary are readers of it and none knows the others."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeproof import __version__

KINDS = (
    "start",
    "subject",
    "unavailable",
    "progress",
    "failure",
    "building",
    "reducing",
    "finding",
    "known",
    "note",
    "end",
)


@dataclass(frozen=True)
class Event:
    """Something that happened in a run.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    data : dict
        JSON data.
    time : float
        Seconds since the epoch.
    run : str
        The run that it belongs to; `coordinator.run` fills it in.
    """

    kind: str
    data: dict[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)
    run: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}")


Sink = Callable[[Event], None]


def environment() -> dict[str, str]:
    """Return where a run takes place, for its ``start`` event; the revision is what GitHub or GitLab names."""
    return {
        "moeproof": __version__,
        "host": platform.node(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "revision": os.environ.get("GITHUB_SHA") or os.environ.get("CI_COMMIT_SHA", ""),
    }


class JsonLines:
    """Appends events to a file, one JSON object a line, flushed at once.

    Of each worker's ``progress``, which holds totals, only some are written: the first, then one as often as 1% more
    time has passed, and the last before the end. A night's log stays small, and a killed run loses 1% of its counts.
    """

    LEAST, MOST = 1.0, 60.0
    """Bounds of the seconds between two ``progress`` events of a worker."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")
        self._begin = time.monotonic()
        self._written: dict[Any, float] = {}
        self._latest: dict[Any, Event] = {}

    def __call__(self, event: Event) -> None:
        """Write one event."""
        if event.kind == "progress":
            worker, now = event.data.get("worker"), time.monotonic()
            every = min(self.MOST, max(self.LEAST, (now - self._begin) / 100))
            if now - self._written.get(worker, -every) < every:
                self._latest[worker] = event
                return
            self._written[worker] = now
            self._latest.pop(worker, None)
        elif event.kind == "end":
            self._catch_up()
        self._write(event)

    def close(self) -> None:
        """Close the file."""
        self._catch_up()
        self._file.close()

    def _catch_up(self) -> None:
        for event in self._latest.values():
            self._write(event)
        self._latest.clear()

    def _write(self, event: Event) -> None:
        self._file.write(json.dumps(to_json(event)) + "\n")
        self._file.flush()


def to_json(event: Event) -> dict[str, Any]:
    """Return an event as JSON data."""
    return {"kind": event.kind, "time": event.time, "run": event.run, **event.data}


def from_json(data: dict[str, Any]) -> Event:
    """Read an event from JSON data.

    Raises
    ------
    ValueError
        The data is no event of a known kind.
    """
    if not isinstance(data, dict) or not isinstance(data.get("time"), int | float):
        raise ValueError(f"event is {str(data)[:60]!r}; allowed: a JSON object with kind and time")
    rest = {name: value for name, value in data.items() if name not in ("kind", "time", "run")}
    return Event(str(data.get("kind")), rest, float(data["time"]), str(data.get("run", "")))
