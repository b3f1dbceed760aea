"""Where a nightly run keeps its files, and what its processes tell each other through the environment.

Imported by processes that must start fast: nothing here needs torch.
"""

from __future__ import annotations

from pathlib import Path

OUT_VARIABLE = "MOEPROOF_NIGHTLY"
"""Names the run's folder to the processes that work on it."""
ITEMS_VARIABLE = "MOEPROOF_NIGHTLY_ITEMS"
"""Says how many items a pytest session has."""
REDIS_VARIABLE = "MOEPROOF_REDIS"
"""URL of the Redis that shares examples: it may hold a password, so it is in no file of the run."""
SUFFIX = ".slices"
"""Of the file that stands for a run's slices in pytest."""


def state_file(out: Path) -> Path:
    """Return the place of a folder's state."""
    return out / "state.sqlite"


def run_folder(out: Path, run: int) -> Path:
    """Return the folder of one run's events and logs."""
    return out / "runs" / f"{run:04d}"


def worker_events(out: Path, run: int) -> Path:
    """Return the folder in which each worker of a run writes its events."""
    return run_folder(out, run) / "workers"


def set_aside(out: Path, worker: int) -> None:
    """Keep the cases that a lost worker had in flight: the next slice of their subject runs them first."""
    for path in (out / "inflight").glob(f"{worker}-*.json"):
        aside = path.parent / "interrupted" / path.name
        aside.parent.mkdir(exist_ok=True)
        path.replace(aside)
