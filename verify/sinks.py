"""The readers of a run's events that a command line asks for: history, JUnit file, Markdown summary."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from . import junit as junit_xml
from .config import ConfigError
from .events import Event, Sink
from .files import write_text
from .history.errors import libraries_needed
from .history.record import RunRecord
from .report.markdown import summarise

NO_HISTORY = "none"
"""What switches the history off."""
_MILESTONES = ("start", "finding", "known", "end")


@contextlib.contextmanager
def sinks(
    *, history: str, spool: Path, junit: Path | None, summary: Path | None, tell: Callable[[str], None]
) -> Iterator[list[Sink]]:
    """Give the sinks that were asked for, and close them.

    Parameters
    ----------
    history : str
        URL or path of the history, or `NO_HISTORY`.
    spool : Path
        Folder for a run's events if the history is lost.
    junit, summary : Path, optional
        Files for JUnit XML, and for a summary in Markdown.
    tell : callable
        Takes what a person should know.

    Raises
    ------
    HistoryError
        The history can't be opened, or a library that it needs is not installed.
    ConfigError
        A file can't be written.
    """
    for name, path in (("junit", junit), ("summary", summary)):
        if path is not None:
            try_file(name, path)
    with contextlib.ExitStack() as stack:
        found: list[Sink] = []
        if junit is not None:
            found.append(RunFile(junit, junit_xml.render))
        if summary is not None:
            found.append(RunFile(summary, lambda run: summarise([run])))
        if history != NO_HISTORY:
            with libraries_needed(history):
                from .history.sink import HistorySink

                database = HistorySink(history, spool, tell)
            stack.callback(database.close)
            found.append(database)
        yield found


def try_file(name: str, path: Path) -> None:
    """Find out before the run whether a file can be written.

    Raises
    ------
    ConfigError
        It can't; says which argument named it.
    """
    try:
        write_text(path, "")
    except OSError as error:
        text = f"{name} is {str(path)!r}, which can't be written: {error}; allowed: a file in a writable folder"
        raise ConfigError(text) from error


class RunFile:
    """Reader of the event stream that writes a file anew at each finding: a killed run leaves what it knew.

    Parameters
    ----------
    path : Path
        The file.
    render : callable
        Makes its text of the run so far.
    """

    def __init__(self, path: Path, render: Callable[[RunRecord], str]) -> None:
        self._path = path
        self._render = render
        self._run: RunRecord | None = None

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        if self._run is None:
            self._run = RunRecord(event.run)
        self._run(event)
        if event.kind in _MILESTONES:
            write_text(self._path, self._render(self._run.settle()))
