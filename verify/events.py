"""One stream of events; console, JSON lines and the summary are readers of it and none knows the others."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = (
    "start",
    "subject",
    "unavailable",
    "progress",
    "failure",
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
    """

    kind: str
    data: dict[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}")


Sink = Callable[[Event], None]


class JsonLines:
    """Appends events to a file, one JSON object a line, flushed at once."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def __call__(self, event: Event) -> None:
        """Write one event."""
        self._file.write(json.dumps({"kind": event.kind, "time": event.time, **event.data}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
