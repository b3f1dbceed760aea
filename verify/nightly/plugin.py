"""The pytest plugin that makes xdist's workers work through a nightly run.

Each item of the session runs one slice from the state file. A worker that is lost fails one item; its slice is put
back before xdist starts a new worker, which takes over its GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moeproof.verify.events import Event, JsonLines

from .layout import ITEMS_VARIABLE, OUT_VARIABLE, SUFFIX, set_aside, state_file, worker_events
from .store import Store

_WORK = pytest.StashKey[Any]()


def pytest_configure(config: pytest.Config) -> None:
    """Pin a worker to its GPU, before anything in it can start CUDA."""
    name = os.environ.get("PYTEST_XDIST_WORKER")
    if name is None:
        return
    out = Path(os.environ[OUT_VARIABLE])
    store = Store(state_file(out))
    worker = store.join(name, os.getpid(), store.plan()["devices"])
    store.close()
    if worker.device:
        os.environ["CUDA_VISIBLE_DEVICES"] = worker.device
    from moeproof.verify.worker import die_with_parent

    from .worker import Work

    die_with_parent()

    config.stash[_WORK] = Work(out, worker)


def pytest_unconfigure(config: pytest.Config) -> None:
    """End a worker's child processes."""
    work = config.stash.get(_WORK, None)
    if work is not None:
        work.close()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Put back what a lost worker had; xdist calls this before it starts another in its place."""
    out = Path(os.environ[OUT_VARIABLE])
    store = Store(state_file(out))
    try:
        worker = store.left(node.gateway.id)
        if worker is not None and error:
            set_aside(out, worker.id)
            text = f"worker {worker.id} (process {worker.pid}) was lost; its work is taken up by another"
            log = JsonLines(worker_events(out, store.plan()["run"]) / "lost.jsonl")
            log(Event("note", {"text": text}))
            log.close()
    finally:
        store.close()


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect as many items as slices may be needed."""
    return Slices.from_parent(parent, path=file_path) if file_path.suffix == SUFFIX else None


class Slices(pytest.File):
    """The file that stands for a run's slices."""

    def collect(self) -> Iterator[pytest.Item]:
        """Yield the items; every worker must yield the same."""
        for number in range(int(os.environ[ITEMS_VARIABLE])):
            yield SliceItem.from_parent(self, name=f"slice-{number}")


class SliceItem(pytest.Item):
    """Runs whichever slice comes next."""

    def runtest(self) -> None:
        """Take a slice and run it; where none is left, the rest of the items pass at once."""
        self.config.stash[_WORK].next()

    def reportinfo(self) -> tuple[Path, int, str]:
        """Return where pytest says that this is."""
        return self.path, 0, self.name
