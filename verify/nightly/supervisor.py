"""Leads a nightly run: starts pytest sessions, watches over their workers, and brings the run to its end."""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moeproof.verify import corpus
from moeproof.verify.channel import python_path
from moeproof.verify.coordinator import Summary
from moeproof.verify.events import Event, JsonLines, Sink, environment
from moeproof.verify.lanes.reader import LanesError
from moeproof.verify.lanes.schema import Lane, Lanes
from moeproof.verify.ledger import Ledger, folders_of

from .layout import ITEMS_VARIABLE, OUT_VARIABLE, REDIS_VARIABLE, run_folder, state_file, worker_events
from .plan import make_units, replay_seconds
from .slices import GRACE
from .store import Run, Store
from .stream import Stream

POLL_SECONDS = 0.25
TICK_SECONDS = 2.0
"""A reboot costs a run so much of its clock."""
STALL_SECONDS = 660.0
"""A worker without a sign of life for so long is killed: a library may take 600 s to load, nothing takes longer."""
LAST_WORDS = 10.0
"""Seconds that workers get to end their slices after Ctrl-C."""
MIN_SESSION = 5.0
"""With less time left, no further session is started."""
FUTILE = 3
"""Sessions in a row in which no slice ended; then the run is given up."""
MAX_ITEMS = 20_000
EVENTS = "events.jsonl"
"""The run's stream of events, in its folder."""


class NightlyError(RuntimeError):
    """A run that can't be started; says why, and what is allowed."""


@dataclass(frozen=True)
class Request:
    """What is asked of a nightly run.

    Attributes
    ----------
    lanes : Lanes
        The lanes file.
    chosen : sequence of Lane
        The lanes that take part.
    seconds : float
        Time from start to end.
    out : Path
        Folder of the state, findings, corpus and results.
    workers : int
        xdist workers.
    devices : list of str
        GPUs that workers are pinned to, in turns; empty for none.
    seed : int
        Seed of a new run.
    fresh : bool
        Give up an unfinished run instead of going on with it.
    """

    lanes: Lanes
    chosen: Sequence[Lane]
    seconds: float
    out: Path
    workers: int
    devices: list[str]
    seed: int
    fresh: bool = False


class Night:
    """One call of `moeproof nightly`: a new run, or the rest of one that was cut short.

    Parameters
    ----------
    request : Request
        What to do.
    ledger : Ledger, optional
        Known findings.

    Raises
    ------
    NightlyError
        If the folder can't be used, or another run uses it.
    LanesError
        If a lane names what is not known.
    """

    def __init__(self, request: Request, ledger: Ledger | None) -> None:
        self.request = request
        self.units = make_units(request.lanes, request.chosen, request.seconds, request.workers)
        if not self.units:
            raise LanesError(f"{request.lanes.path}: no lane has a subject inside its presets; allowed: at least one")
        with contextlib.ExitStack() as stack:
            stack.enter_context(_locked(request.out))
            self.store = Store(state_file(request.out))
            stack.callback(self.store.close)
            found = None if request.fresh else self.store.unfinished()
            self.resumed = found is not None
            self.run = found or self.store.open_run(request.seconds, request.seed)
            self.folder = run_folder(request.out, self.run.id)
            self.stream = Stream(worker_events(request.out, self.run.id), self.run.name, self.store.reported(), ledger)
            stack.callback(self.stream.close)
            self._keep = stack.pop_all()
        self.summary = Summary()
        self.failing: set[str] = set()
        self._known = folders_of(ledger)
        self._sinks: list[Sink] = [self.summary, self._notice]
        self._ticked = time.monotonic()

    def close(self) -> None:
        """Close files and let go of the folder."""
        self._keep.close()

    def work(self, sinks: Sequence[Sink]) -> None:
        """Run sessions until time or work is used up; Ctrl-C ends them cleanly, and the run can be taken up again.

        Parameters
        ----------
        sinks : sequence of callable
            Each gets every event of the run, those from before a reboot included.
        """
        # Written anew from the workers' files, which may know more than it did when a run was cut short.
        (self.folder / EVENTS).unlink(missing_ok=True)
        log = JsonLines(self.folder / EVENTS)
        self._keep.callback(log.close)
        self._sinks += [log, *sinks]
        try:
            if not self.stream.begun:
                self.stream.say(Event("start", self._asked()))
            self._prepare()
            self._sessions()
        except KeyboardInterrupt:
            self.summary.interrupted = True
        finally:
            self._pump()

    def _asked(self) -> dict[str, object]:
        names = sorted({unit.name for unit in self.units})
        lanes = [lane.name for lane in self.request.chosen]
        asked = {"seconds": self.request.seconds, "seed": self.run.seed, "workers": self.request.workers}
        return {"job": "nightly", **environment(), **asked, "subjects": names, "lanes": lanes}

    def _prepare(self) -> None:
        request, shared = self.request, self.request.lanes.examples
        plan = {
            "devices": request.devices,
            "corpus": [str(folder.resolve()) for folder in request.lanes.corpus],
            "known": [str(folder.resolve()) for folder in self._known],
            "examples": {"github": shared.github, "artifact": shared.artifact},
        }
        replay = replay_seconds(self.units, request.seconds, request.workers)
        self.store.prepare(self.run.id, plan, self.units, request.seconds, replay_seconds=replay)

    def end(self, outcome: dict[str, object]) -> None:
        """Say what was left of the kept cases, and that the run is over, or interrupted for now."""
        if not self.summary.interrupted and (text := self._left_over()):
            self.stream.say(Event("note", {"text": text}))
        event = Event("end", {"interrupted": self.summary.interrupted, **outcome}, run=self.run.name)
        if self.summary.interrupted:  # not for the workers' files: the run is to go on
            for sink in self._sinks:
                sink(event)
        else:
            self.stream.say(event)
            self._pump()

    def finish(self) -> None:
        """Count the run's findings as reported, once they are; an interrupted run is still to go on."""
        if not self.summary.interrupted:
            self.store.finish(self.run.id)

    # -- sessions ------------------------------------------------------------------------------------------------

    def _sessions(self) -> None:
        futile = 0
        least = 0.0
        while (left := self._left()) > least and futile < FUTILE:
            least = MIN_SESSION
            # No worker is alive: what the last ones had in flight or had taken is put back.
            corpus.recover(self.request.out)
            self.store.restart(self.run.id)
            if self.store.idle():
                return
            before = self._done()
            self._session(left)
            futile = 0 if self._done() > before else futile + 1
        if futile >= FUTILE:
            tail = self._log_file().read_text(encoding="utf-8", errors="replace")[-1500:]
            text = f"{FUTILE} pytest sessions in a row got nothing done; the last said:\n{tail}"
            self.stream.say(Event("note", {"text": text, "error": True}))

    def _session(self, left: float) -> None:
        out = self.request.out.resolve()
        shortest = min(unit.slice_seconds for unit in self.units)
        items = math.ceil(left / shortest) * self.request.workers + 2 * len(self.units) + 8 * self.request.workers
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment |= {
            OUT_VARIABLE: str(out),
            ITEMS_VARIABLE: str(min(MAX_ITEMS, items)),
            REDIS_VARIABLE: self.request.lanes.examples.redis,
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": python_path(),
        }
        command = [sys.executable, "-m", "moeproof.verify.nightly.session", str(self.folder.resolve())]
        with self._log_file().open("ab") as log:
            session = subprocess.Popen(
                [*command, str(self.request.workers)],
                stdin=subprocess.PIPE,  # never written to: its end tells the session that this process is gone
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        try:
            self._watch(session)
        finally:
            self._stop(session)

    def _watch(self, session: subprocess.Popen[bytes]) -> None:
        """Follow a session to its end; workers that hang are killed, and the session when time is well up."""
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                session.wait(POLL_SECONDS)
                return
            left = self._left()
            self._pump()
            now = time.time()
            for worker in self.store.workers(self.run.id):
                if now - worker.seen > STALL_SECONDS:
                    text = (
                        f"worker {worker.id} (process {worker.pid}) gave no sign of life for {now - worker.seen:.0f} s"
                    )
                    self.stream.say(Event("note", {"text": f"{text}; it was killed and replaced"}))
                    _signal(worker.pid, signal.SIGKILL)
                    self.store.seen(worker.id)
            if left < -GRACE:
                return

    def _stop(self, session: subprocess.Popen[bytes]) -> None:
        """End a session that is still there: its workers first, as after Ctrl-C, then all of its processes."""
        if session.poll() is None:
            self.store.stop(self.run.id)
            for worker in self.store.workers(self.run.id):
                _signal(worker.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                session.wait(LAST_WORDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(session.pid, signal.SIGKILL)
        session.wait()
        if session.stdin is not None:
            session.stdin.close()
        self._left(tick=0.0)

    def _left(self, *, tick: float = TICK_SECONDS) -> float:
        """Return what is left of the run's time, below zero in its grace time; written down as often as `tick` says."""
        now = time.monotonic()
        if now - self._ticked >= tick:
            self.run = self.store.tick(self.run.id, now - self._ticked)
            self._ticked = now
        return self.request.seconds - self.run.spent - (now - self._ticked)

    def _left_over(self) -> str:
        """Return what there was no time to replay, in words; empty if nothing."""
        left, names = self.store.unreplayed(self.run.id), {unit.key: unit.name for unit in self.units}
        some = [f"{count or 'all'} on {names[key]}" for key, count in left.items() if key in names]
        if not some:
            return ""
        return f"kept cases that there was no time to replay, which come first in the next run: {', '.join(some)}"

    def _done(self) -> int:
        return sum(row["state"] == "done" for row in self.store.slices(self.run.id))

    def _notice(self, event: Event) -> None:
        if event.kind == "note" and "tests" in event.data:
            self.failing.add(event.data["tests"])

    def _pump(self) -> None:
        self.stream.pump(self._sinks)

    def _log_file(self) -> Path:
        return self.folder / "pytest.log"


def unfinished(out: Path) -> Run | None:
    """Return the run in a folder that was cut short, if there is one."""
    if not state_file(out).exists():
        return None
    store = Store(state_file(out))
    try:
        return store.unfinished()
    finally:
        store.close()


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold a folder, so that two runs never share one."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = (out / "nightly.lock").open("a")
    except OSError as error:
        raise NightlyError(f"out is {str(out)!r}: {error.strerror}; allowed: a writable folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise NightlyError(
                f"out is {str(out)!r}, which another nightly run uses; allowed: one at a time"
            ) from error
        yield


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
