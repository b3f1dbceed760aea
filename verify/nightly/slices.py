"""Runs one slice of work in a worker process: a campaign on one subject, for a while."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hypothesis.database import ExampleDatabase

from moeproof.strategies.case import Case
from moeproof.verify.campaign import CHUNK, Campaign, State, fits
from moeproof.verify.child import Child, Executor, Isolated
from moeproof.verify.config import Config
from moeproof.verify.corpus import read_case
from moeproof.verify.coverage import Coverage
from moeproof.verify.events import Event, Sink
from moeproof.verify.explore import derived
from moeproof.verify.extras import EXTRAS, complete
from moeproof.verify.finding import Finding, identity, make_finding
from moeproof.verify.reduce.engine import Reduced
from moeproof.verify.subject import Subject
from moeproof.verify.violation import Violation

from .examples import save_case, stored_cases
from .store import Slice, Store

FAMILIES = 6
"""Child processes that a worker keeps: each holds a CUDA context, half a gigabyte of its GPU's memory."""
EXAMPLES_SHARE = 0.5
"""Part of a slice's length that cases may take which other workers and machines have stored."""
GRACE = 30.0
"""Seconds that reductions may take when the run's time is up."""


PROGRESS_SECONDS = 20.0
"""Between two reports of a slice's progress; what it came to is reported at its end in any case."""


class Children:
    """The child processes of a worker, kept from one slice to the next; the one used longest ago makes room.

    Parameters
    ----------
    out : Path
        Folder of the run.
    worker : int
        Number of the worker: names its cases in flight.
    """

    def __init__(self, out: Path, worker: int) -> None:
        self._out = out
        self._worker = worker
        self._children: dict[str, Child] = {}

    @property
    def families(self) -> tuple[str, ...]:
        """The families that have a child."""
        return tuple(self._children)

    def of(self, subject: Subject, seconds: float) -> Child:
        """Return the child for a subject's family, with a watchdog limit for each case."""
        family = subject.name.partition(":")[0]
        child = self._children.pop(family, None)
        if child is None:
            while len(self._children) >= FAMILIES:
                self.drop(self.families[0])
            child = Child(inflight=self._out / "inflight" / f"{self._worker}-{family}.json")
        child.seconds = seconds
        self._children[family] = child
        return child

    def drop(self, family: str) -> None:
        """End the child of a family."""
        child = self._children.pop(family, None)
        if child is not None:
            child.close()

    def close(self) -> None:
        """End all children."""
        for family in self.families:
            self.drop(family)


@dataclass
class Memory:
    """What a worker remembers from one slice to the next, by subject.

    Attributes
    ----------
    failures : dict of str to Counter
        Failed checks, so that a class of failure is reduced at counts 1, 2, 4, ... of the whole night.
    tried : dict of str to set
        Stored cases that have run.
    """

    failures: dict[str, Counter[str]] = field(default_factory=dict)
    tried: dict[str, set[str]] = field(default_factory=dict)


class SliceCampaign(Campaign):
    """A campaign on one subject that ends on time by the clock, reductions included.

    Parameters
    ----------
    config : Config
        What to do.
    sink : callable
        Takes events.
    work : Slice
        The slice.
    children : Children
        The worker's child processes.
    memory : Memory
        The worker's memory.
    examples : ExampleDatabase
        Where failing cases are shared.
    store : Store
        Remembers which kept cases were replayed when.
    """

    def __init__(
        self,
        config: Config,
        sink: Sink,
        work: Slice,
        children: Children,
        memory: Memory,
        examples: ExampleDatabase,
        store: Store,
    ) -> None:
        super().__init__(config, sink)
        self._work = work
        self._pool = children
        self._memory = memory
        self._examples = examples
        self._store = store

    def _executor(self, subject: Subject) -> Executor:
        child = self._pool.of(subject, self.config.case_seconds)
        child.on_build = self.note_build
        return Isolated(subject, child)

    def _prepare(self) -> None:
        super()._prepare()
        for state in self.states:
            state.failures = self._memory.failures.setdefault(state.subject.name, Counter())

    def _replay(self) -> None:
        for state in self.states:
            if self._work.kind == "corpus":
                self._replay_kept(state, time.monotonic() + self._work.seconds)
            # What is not tried now is in the next slice.
            end = time.monotonic() + EXAMPLES_SHARE * self._work.seconds
            tried = self._memory.tried.setdefault(state.subject.name, set())
            for case in stored_cases(self._examples, state.subject.op):
                if case.dumps() not in tried and not self._late() and time.monotonic() < end:
                    tried.add(case.dumps())
                    self._case(state, case, extras=tuple(EXTRAS))

    def _replay_kept(self, state: State, end: float) -> None:
        """Replay kept cases until a time, those first whose last replay is longest ago; note what was done."""
        last = self._store.replayed(state.subject.name)
        left = [(digest(e.case), e.case) for e in self._kept_cases() if fits(e, state)]
        left.sort(key=lambda kept: last.get(kept[0], 0.0))
        done = []
        try:
            while left and not state.out and not self._late() and time.monotonic() < end:
                name, case = left.pop(0)
                self._case(state, case, extras=complete(perturb=self.config.perturb))
                done.append(name)
        finally:
            self._store.note_replays(self._work.unit, done, len(left))

    def _case(self, state: State, case: Case, *, extras: tuple[str, ...], refusal: bool = False) -> None:
        if not self._late():
            super()._case(state, case, extras=extras, refusal=refusal)

    def _fuzz(self) -> None:
        if self._work.kind == "fuzz":
            super()._fuzz()

    def _by_time(self, seconds: float) -> None:
        # By the clock: in a plain campaign reductions come on top, and a night has to end.
        (state,) = self.states or (None,)
        limit = self.config.cases
        while state is not None and not state.out and (limit is None or state.cases < limit):
            left = seconds - (time.monotonic() - self._begin)
            if left <= 0 or self._late():
                return
            count = CHUNK if limit is None else min(CHUNK, limit - state.cases)
            self._chunk(state, count, until=self._fuzzing() + left)

    def _late(self) -> bool:
        return time.time() > self._work.deadline

    def _failed(self, state: State, case: Case, violation: Violation, refusal: bool) -> None:
        limit = min(self.config.reduce_seconds, self._work.deadline + GRACE - time.time())
        given, self.config = self.config, replace(self.config, reduce_seconds=max(0.1, limit))
        try:
            if not (self._replaying and self._known(state, case, violation, refusal)):
                super()._failed(state, case, violation, refusal)
        finally:
            self.config = given

    def _keep(self, finding: Finding) -> None:
        first = finding.identity not in self.findings
        super()._keep(finding)
        path = self.config.out / "findings" / finding.identity / "case.json"
        if first and not finding.refusal and path.exists():
            save_case(self._examples, Case.loads(path.read_text(encoding="utf-8")))

    def _known(self, state: State, case: Case, violation: Violation, refusal: bool) -> bool:
        """Recognise a kept case that fails as it did when it was reduced, and spend no time on it again."""
        name = identity(state.subject, case, violation, refusal=refusal)
        if self._has(name):
            self._say_known(self.config.out / "findings" / name)
        elif not self._was_cut_short(state, case, violation):
            return False
        state.failures[violation.check] += 1
        return True

    def _was_cut_short(self, state: State, case: Case, violation: Violation) -> bool:
        """Recognise a kept case whose reduction was cut short, by what it holds: its traits tell nothing."""
        seen = Reduced(case, violation, failed=1, runs=1, tries=0, seconds=0.0, complete=False)
        finding = make_finding(state.subject, seen, refusal=False, device=state.executor.device, actual={})
        kept = self.config.out / "findings" / finding.identity
        if not self._has(finding.identity) or digest(read_case(kept / "case.json")) != digest(case):
            return False
        if not self._is_known(state, finding):  # another night may have reduced one of its kind to the end
            self._say_known(kept)
        return True

    def _has(self, name: str) -> bool:
        """Say whether a finding is kept."""
        return (self.config.out / "findings" / name / "finding.json").exists()


def digest(case: Case) -> str:
    """Return a name for a case by what it holds."""
    return hashlib.sha256(case.dumps().encode()).hexdigest()[:16]


class Reporter:
    """Turns the events of a worker's slices into one stream that looks like one long campaign's.

    Parameters
    ----------
    worker : int
        The worker's number.
    write : callable
        Takes the stream.
    """

    def __init__(self, worker: int, write: Sink) -> None:
        self.worker = worker
        self._write = write
        self._covered: dict[str, Coverage] = {}
        self._failures: dict[str, dict[str, int]] = {}
        self._spent: Counter[str] = Counter()
        self._seconds = self._reducing = 0.0
        self._current: dict[str, Any] = {}
        self._said: set[tuple[str, ...]] = set()
        self._shown = -PROGRESS_SECONDS

    @property
    def cases(self) -> int:
        """Cases of the slice under way."""
        return sum(counts["cases"] for counts in self._current.get("subjects", {}).values())

    def __call__(self, event: Event) -> None:
        """Take in an event of the slice under way."""
        data = event.data
        if event.kind == "progress":
            self._current = data
            # A subject's failures are counted on from slice to slice (`Memory`): the latest hold all.
            self._failures |= {name: counts["failures"] for name, counts in data["subjects"].items()}
            if time.monotonic() - self._shown >= PROGRESS_SECONDS:
                self._show()
            return
        if event.kind in ("subject", "unavailable", "failure"):
            # A broken kernel fails a hundred times a second; the counts are in the progress.
            mark = (event.kind, str(data.get("subject")), str(data.get("check")))
            if mark in self._said:
                return
            self._said.add(mark)
        self._write(replace(event, data={**data, "worker": self.worker}))

    def end_slice(self) -> None:
        """Add what the slice has covered to what earlier ones have, and report it: a later kill loses none of it."""
        if not self._current:
            return
        self._show()
        for name, counts in self._current.get("subjects", {}).items():
            self._covered.setdefault(name, Coverage()).merge(counts)
        self._spent.update(self._current.get("spent", {}))
        self._seconds += self._current_seconds()
        self._reducing += self._current.get("reducing", 0.0)
        self._current = {}

    def _show(self) -> None:
        self._shown = time.monotonic()
        self._write(Event("progress", {**self._total(), "worker": self.worker}))

    def _current_seconds(self) -> float:
        # A campaign's clock starts when it has replayed what is kept; a corpus slice does nothing else.
        return max(float(self._current["seconds"]), float(sum(self._current["spent"].values())))

    def _total(self) -> dict[str, Any]:
        """Return what all slices of this worker have covered so far, in the form of a ``progress`` event."""
        subjects: dict[str, Any] = {}
        for name in {**self._covered, **self._current["subjects"]}:
            total = Coverage()
            if name in self._covered:
                total.merge(self._covered[name].to_json())
            if name in self._current["subjects"]:
                total.merge(self._current["subjects"][name])
            subjects[name] = {**total.to_json(), "failures": self._failures.get(name, {})}
        return {
            "subjects": subjects,
            "spent": dict(self._spent + Counter(self._current["spent"])),
            "seconds": self._seconds + self._current_seconds(),
            "reducing": self._reducing + self._current["reducing"],
        }


def run_slice(
    work: Slice,
    sink: Sink,
    *,
    out: Path,
    corpus: tuple[Path, ...],
    known: tuple[Path, ...] = (),
    seed: int,
    children: Children,
    memory: Memory,
    examples: ExampleDatabase,
    store: Store,
) -> None:
    """Run a slice; its events go to `sink`."""
    unit = work.unit
    config = Config(
        subjects=(unit.target,),
        seconds=max(0.1, work.seconds),
        cases=work.cases,
        seed=derived(seed, work.id),
        out=out,
        corpus=corpus,
        known=known,
        preset=unit.preset or None,
        max_elements=unit.max_elements,
        case_seconds=unit.case_seconds,
        reduce_seconds=unit.reduce_seconds,
    )
    campaign = SliceCampaign(config, sink, work, children, memory, examples, store)
    try:
        campaign.run()
    finally:
        if any(state.pending for state in campaign.states):
            # Its answer would be taken for that of the next slice's first case.
            children.drop(unit.family)
