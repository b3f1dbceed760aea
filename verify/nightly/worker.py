"""A worker of a nightly run, inside an xdist worker process: takes slices until there is none left."""

from __future__ import annotations

import json
import signal
import time
import traceback
from pathlib import Path

from moeproof.verify.events import Event, to_json

from .examples import chain, load_profile, shared_of
from .layout import state_file, worker_events
from .slices import Children, Memory, Reporter, run_slice
from .store import Slice, Store, Worker
from .tests_slice import run_tests

BEAT_SECONDS = 2.0
"""Between two signs of life."""


class Work:
    """What a worker process keeps between slices.

    Parameters
    ----------
    out : Path
        Folder of the run.
    worker : Worker
        This worker.
    """

    def __init__(self, out: Path, worker: Worker) -> None:
        import torch

        torch.set_num_threads(1)
        self._out = out
        self._worker = worker
        self._store = Store(state_file(out))
        plan = self._store.plan()
        log = worker_events(out, plan["run"]) / f"{worker.id:05d}.jsonl"
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("a", encoding="utf-8")
        self._corpus = tuple(Path(folder) for folder in plan["corpus"])
        self._known = tuple(Path(folder) for folder in plan["known"])
        self._seed = int(plan["seed"])
        self._reporter = Reporter(worker.id, self._write)
        self._children = Children(out, worker.id)
        self._memory = Memory()
        self._examples = chain(out / "examples", shared_of(plan), self._note)
        self._beat = 0.0
        self._stopped = False
        load_profile(self._examples)

    def next(self) -> bool:
        """Run one slice; False if there is none, or this worker was told to stop."""
        if self._stopped:
            return False
        # execnet lets its processes ignore Ctrl-C; the run's own process sends it to end a slice cleanly.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            work = self._store.take(self._worker.id, self._children.families)
            if work is None:
                return False
            self._run(work)
        except KeyboardInterrupt:
            self._stopped = True
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return True

    def _run(self, work: Slice) -> None:
        begin = time.monotonic()
        try:
            if work.kind == "tests":
                run_tests(work, self._event, out=self._out)
            else:
                run_slice(
                    work,
                    self._event,
                    out=self._out,
                    corpus=self._corpus,
                    known=self._known,
                    seed=self._seed,
                    children=self._children,
                    memory=self._memory,
                    examples=self._examples,
                    store=self._store,
                )
        except OSError as error:  # the disk, most likely: no other slice would fare better
            self._fault(work, str(error))
            self._stopped = True
        except Exception:  # one subject's odd failure must not end the others' night
            self._fault(work, traceback.format_exc())
        finally:
            # Also after Ctrl-C: what was done is done. A kill comes past this, and the slice is put back.
            cases = self._reporter.cases
            self._reporter.end_slice()
            self._store.done(work.id, time.monotonic() - begin, cases)

    def _event(self, event: Event) -> None:
        if time.monotonic() - self._beat >= BEAT_SECONDS:
            self._beat = time.monotonic()
            self._store.seen(self._worker.id)
        if event.kind in ("finding", "known"):
            self._store.defect(event.data["identity"], event.data["subject"])
        elif event.kind == "unavailable":
            self._store.absent(event.data["subject"], event.data["reason"])
        self._reporter(event)

    def _fault(self, work: Slice, text: str) -> None:
        self._event(Event("note", {"text": f"the harness failed on {work.unit.name}: {text}", "error": True}))
        self._store.absent(work.unit.name, "the harness failed on it")

    def _write(self, event: Event) -> None:
        # Not `JsonLines`: that leaves progress out by its own clock, the last before a kill too.
        self._log.write(json.dumps(to_json(event)) + "\n")
        self._log.flush()

    def _note(self, text: str) -> None:
        self._reporter(Event("note", {"text": text}))

    def close(self) -> None:
        """End child processes and close files."""
        self._children.close()
        self._log.close()
        self._store.close()
