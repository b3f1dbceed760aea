"""Runs from files: logs of events, spools of a lost history, and results of `moeproof bench`."""

from __future__ import annotations

from pathlib import Path

from .record import RunRecord, from_events, read_events
from .timings import from_bench

ALLOWED = "an events.jsonl, a spool of a lost history, or a bench.json"


class RunFileError(ValueError):
    """A file from which no runs can be read; says which and why."""


def read_runs(path: Path) -> list[RunRecord]:
    """Return the runs of a file, by their starts.

    Raises
    ------
    RunFileError
        It can't be read, or holds none.
    """
    try:
        with path.open("rb") as file:
            head = file.read(200)
        if b'"moeproof_bench"' in head:
            return [from_bench(path.read_text(encoding="utf-8"))]
        runs = from_events(read_events(path))
    except OSError as error:
        raise RunFileError(
            f"file is {str(path)!r}, which can't be read: {error.strerror}; allowed: {ALLOWED}"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise RunFileError(f"file is {str(path)!r}: {reason}; allowed: {ALLOWED}") from error
    if not runs:
        raise RunFileError(f"file is {str(path)!r}, which tells of no run; allowed: {ALLOWED}")
    return runs
