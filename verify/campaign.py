"""The main job: replay the corpus, generate, judge, reduce, keep, until time is up."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moeproof.strategies.case import Case
from moeproof.strategies.domain_check import why_outside
from moeproof.strategies.draws import NoChoicesLeftError

from . import corpus
from .child import Child, Executor, HarnessError, Inline, Isolated, NoMemoryError
from .config import Config
from .coverage import Coverage, expert_buckets
from .events import Event, Sink
from .execute import pick_device
from .explore import beyond, derived, explore, inside
from .extras import complete, sampled
from .finding import Finding, artefacts, reduce_to_finding, version_of
from .interrupt import held
from .perturb import missing
from .reduce.cost import cost
from .subject import Subject, Unavailable, find
from .unfinished import attributed, instead_of
from .violation import Violation

CHUNK = 60
"""Cases drawn in one run of the engine."""
ROUNDS = 4
"""How often each subject gets its turn within the time."""
OUTSIDE_EVERY = 8
"""One chunk in so many probes the edge of the domain, of subjects that promise to refuse."""
ELEMENTS = {"cpu": 1 << 15, "cuda": 1 << 21}
"""Default of the largest number of elements in a generated tensor; a GPU's goes past every threshold of own plans."""
MAX_REDUCTIONS = 8
"""Reductions of one class of failure of one subject, in one run: at failures 1, 2, 4, 8, ..."""
MAX_CUT_SHORT = 3
"""Those of them that end with their time: where each try costs a process, so will the others."""
PROGRESS_SECONDS = 0.5
MAX_SHORTAGES = 20
"""Cases in a row that memory does not suffice for, after which a subject is left out."""


@dataclass
class State:
    """What a run knows of one subject."""

    subject: Subject
    executor: Executor
    coverage: Coverage = field(default_factory=Coverage)
    chunks: int = 0
    cases: int = 0
    spent: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    reductions: Counter[str] = field(default_factory=Counter)
    cut_short: Counter[str] = field(default_factory=Counter)
    out: str = ""
    held: dict[str, tuple[Finding, Path]] = field(default_factory=dict)
    """By class of failure, what was cut short and has no name yet, and its case's file."""
    pending: tuple[Case, bool] | None = None
    shortages: int = 0
    shortages_in_a_row: int = 0


def fits(entry: corpus.Entry, state: State) -> bool:
    """Say whether a kept case is one for a subject."""
    return entry.case.op == state.subject.op and why_outside(entry.case, state.subject.domain) is None


class Campaign:
    """One run of fuzzing in one process.

    Parameters
    ----------
    config : Config
        What to do.
    sink : callable
        Takes the run's events.
    index : int
        Number of this process among the workers; part of the seed.
    """

    def __init__(self, config: Config, sink: Sink, index: int = 0) -> None:
        self.config = config
        self.sink = sink
        self.index = index
        self.findings: set[str] = set()
        self.states: list[State] = []
        self.reducing = self.building = 0.0
        self._children: dict[str, Child] = {}
        self._begin = time.monotonic()
        self._reduced_before = self._built_before = 0.0
        self._replaying = False
        self._shown = 0.0

    def run(self) -> None:
        """Run until time or cases are used up; Ctrl-C ends it with everything kept."""
        try:
            try:
                self._prepare()
                self._recover()
                self._replaying = True
                self._replay()
                self._replaying = False
                self._begin, self._reduced_before = time.monotonic(), self.reducing
                self._built_before = self.building
                self._fuzz()
                for state in self.states:  # another worker may have kept the same by now
                    self._compare_held(state)
            finally:
                self._name_held()
        finally:
            self._progress(force=True)
            for state in self.states:
                if state.shortages:
                    text = f"{state.shortages} cases of {state.subject.name} were passed over for want of memory"
                    self._emit("note", text=text)
            for child in self._children.values():
                child.close()

    # -- start ---------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        for subject in find(self.config.subjects):
            if self.config.ops and subject.op not in self.config.ops:
                continue
            try:
                executor = self._executor(subject)
            except Unavailable as error:
                self._emit("unavailable", subject=subject.name, op=subject.op, reason=str(error))
                continue
            self.states.append(State(subject, executor))
            self._emit(
                "subject",
                subject=subject.name,
                op=subject.op,
                device=executor.device,
                version=version_of(subject),
                experts=expert_buckets(subject.domain),
            )
        on_gpu = any(s.executor.device.startswith("cuda") for s in self.states)
        if self.config.perturb and on_gpu and (reason := missing()):
            self._emit("note", text=f"no case runs under perturbation: {reason}")

    def _executor(self, subject: Subject) -> Executor:
        if not self.config.isolate:
            return Inline(subject)
        family = subject.name.partition(":")[0]
        if family not in self._children:
            inflight = self.config.out / "inflight" / f"{self.index}-{family}.json"
            self._children[family] = Child(seconds=self.config.case_seconds, inflight=inflight)
        child = self._children[family]
        child.on_build = self.note_build
        child.load(subject)
        return Isolated(subject, child)

    def _recover(self) -> None:
        """Run cases first that an earlier run had in flight at its end; each is kept until it has run."""
        for path in corpus.interrupted(self.config.out):
            if not self._mine(path):
                continue
            try:
                data = json.loads(path.read_text(encoding="utf-8"))
                case, name = Case.from_json(data["case"]), str(data["subject"])
                extras, refusal = tuple(data.get("extras", ())), bool(data.get("refusal"))
            except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
                self._emit("note", text=f"{path} can't be read: {error}")
                continue
            state = next((s for s in self.states if name in (s.subject.source, s.subject.name)), None)
            if state is not None:
                self._emit("note", text=f"a case of {name} was in flight when an earlier run ended; it runs first")
                self._case(state, case, extras=extras, refusal=refusal)
                path.unlink(missing_ok=True)

    def _mine(self, path: Path) -> bool:
        """Say whether a file is this worker's share; by name, as files come and go while others look."""
        return derived(path.name) % self.config.workers == self.index

    def _replay(self) -> None:
        # A subject that compiles what it runs, such as one on the executor, keeps none of those before it waiting.
        for state, entry in itertools.product(self.states, self._kept_cases()):
            if fits(entry, state):
                self._case(state, entry.case, extras=complete(perturb=self.config.perturb))

    def _kept_cases(self) -> list[corpus.Entry]:
        """Return this worker's share of the corpus."""
        folders = [corpus.SHIPPED, self.config.out / "corpus", *self.config.corpus]
        entries, problems = corpus.load(folders)
        for problem in problems:
            self._emit("note", text=f"corpus: {problem}")
        return [entry for entry in entries if self._mine(entry.path)]

    # -- fuzzing -------------------------------------------------------------------------------------------------

    def _fuzz(self) -> None:
        if self.config.cases is not None and self.config.seconds is None:
            self._by_cases(self.config.cases)
        elif self.config.seconds is not None:
            self._by_time(self.config.seconds)

    def _by_cases(self, cases: int) -> None:
        for state in self.states:
            target = state.cases + cases
            while state.cases < target and not state.out:
                self._chunk(state, min(CHUNK, target - state.cases), until=None)

    def _by_time(self, seconds: float) -> None:
        """Give each subject its share of the time, in turns; reduction and compilation are not counted."""
        for turn in range(ROUNDS):
            for position, state in enumerate(self.states):
                left = (ROUNDS - turn) * len(self.states) - position
                share = max(0.0, seconds - self._fuzzing()) / left
                until = self._fuzzing() + share
                while self._fuzzing() < until and not state.out:
                    if self.config.cases is not None and state.cases >= self.config.cases:
                        break
                    self._chunk(state, CHUNK, until=until)

    def _fuzzing(self) -> float:
        """Return the seconds spent so far, without reduction, and without compilation up to the time to fuzz."""
        built = self.building - self._built_before
        if self.config.seconds is not None:
            built = min(built, self.config.seconds)
        return time.monotonic() - self._begin - (self.reducing - self._reduced_before) - built

    def _chunk(self, state: State, count: int, until: float | None) -> None:
        state.chunks += 1
        subject = state.subject
        start = derived(self.config.seed, self.index, subject.name, state.chunks)
        refusal = subject.refuses and state.chunks % OUTSIDE_EVERY == 0
        limit = self.config.max_elements or ELEMENTS[pick_device(subject).type]
        try:
            if refusal:
                strategy = beyond(subject.domain)
            else:
                strategy = inside(subject.op, subject.domain, max_elements=limit, preset=self.config.preset)
        except ValueError as error:
            self._lost(state, str(error))
            return

        def body(case: Case) -> None:
            self._end_case(state)
            if state.out or (until is not None and self._fuzzing() > until):
                return
            extras = () if refusal else sampled(state.cases, subject.op, perturb=self.config.perturb)
            if refusal or why_outside(case, subject.domain) is None:
                self._begin_case(state, case, extras, refusal)

        try:
            with self._timed(state):
                explore(strategy, body, start=start, count=max(2, count))
                self._end_case(state)
        except NoChoicesLeftError as error:
            self._lost(state, f"no case of its domain can be drawn: {error}")

    def _case(self, state: State, case: Case, *, extras: tuple[str, ...], refusal: bool = False) -> None:
        if state.out or (not refusal and why_outside(case, state.subject.domain) is not None):
            return
        with self._timed(state):
            self._begin_case(state, case, extras, refusal)
            self._end_case(state)

    @contextlib.contextmanager
    def _timed(self, state: State) -> Iterator[None]:
        """Add the time spent inside, as `_fuzzing` counts it, to a subject's."""
        begin = self._fuzzing()
        try:
            yield
        finally:
            state.spent += self._fuzzing() - begin

    def _begin_case(self, state: State, case: Case, extras: tuple[str, ...], refusal: bool) -> None:
        """Hand a case to the executor; the child works on it while the next one is drawn."""
        try:
            state.executor.begin(case, extras, refusal=refusal)
        except Unavailable as error:
            self._lost(state, str(error))
            return
        state.pending = (case, refusal)

    def _end_case(self, state: State) -> None:
        """Take in the outcome of the case begun last, if there is one."""
        if state.pending is None:
            return
        (case, refusal), state.pending = state.pending, None
        try:
            outcome = state.executor.end()
        except Unavailable as error:
            self._lost(state, str(error))
            return
        except NoMemoryError as error:
            self._short(state, str(error))
            return
        except HarnessError as error:
            self._fault(state, case, str(error))
            return
        state.shortages_in_a_row = 0
        state.cases += 1
        failed = bool(outcome.violations)
        state.coverage.add(case, outcome.rows, outcome.path, failed=failed, refusal=refusal)
        for violation in outcome.violations:
            try:
                self._failed(state, case, violation, refusal)
            except OSError:  # the disk, not this subject
                raise
            except Exception:  # one subject's odd failure must not end the others' run
                self._fault(state, case, traceback.format_exc())
        self._progress()

    def _lost(self, state: State, reason: str) -> None:
        """Leave a subject out for the rest of the run."""
        state.out = reason
        self._emit("unavailable", subject=state.subject.name, op=state.subject.op, reason=reason)

    def _short(self, state: State, text: str) -> None:
        """Pass over a case that memory does not suffice for."""
        state.shortages += 1
        state.shortages_in_a_row += 1
        if state.shortages_in_a_row >= MAX_SHORTAGES:
            self._lost(state, f"memory does not suffice for {MAX_SHORTAGES} cases in a row: {text}")

    def _fault(self, state: State, case: Case, text: str) -> None:
        """Report a fault of the harness, keep its case, and leave the subject out."""
        path = corpus.keep(self.config.out / "corpus", f"fault-{derived(case.dumps()):x}", case)
        self._emit("note", error=True, text=f"the harness failed on {state.subject.name} with {path}: {text}")
        self._lost(state, "the harness failed on one of its cases")

    # -- findings ------------------------------------------------------------------------------------------------

    def _failed(self, state: State, case: Case, violation: Violation, refusal: bool) -> None:
        state.failures[violation.check] += 1
        count = state.failures[violation.check]
        self._emit("failure", subject=state.subject.name, check=violation.check, message=violation.message)
        key = f"{violation.check}{'-outside' if refusal else ''}"
        power_of_two = count & (count - 1) == 0
        spent = state.reductions[key] >= MAX_REDUCTIONS or state.cut_short[key] >= MAX_CUT_SHORT
        if spent or not power_of_two:
            return
        state.reductions[key] += 1
        self._emit("reducing", subject=state.subject.name, check=violation.check)
        # Until the finding is written, the case as found is what survives Ctrl-C or a kill.
        raw = corpus.keep(self.config.out / "corpus", f"raw-{derived(case.dumps()):x}", case)
        limit = self.config.reduce_seconds
        with self._timed_reduction():
            finding = reduce_to_finding(state.executor, case, violation, refusal=refusal, seconds=limit)
        state.cut_short[key] += not finding.complete
        if not finding.failed and violation.check in ("cuda_error", "hang"):
            text = f"{state.subject.name}: {violation.check} seen once, not again in {finding.runs} runs: {raw}"
            self._emit("note", text=text)
            return
        if finding.complete or refusal:
            self._keep(finding)
            self._compare_held(state)
        else:
            self._cut_short(state, key, finding)
        if all(raw != kept for _, kept in state.held.values()):
            raw.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _timed_reduction(self) -> Iterator[None]:
        """Add the time spent inside, without compilation, to that of reductions."""
        begin = time.monotonic() - self.building
        yield
        self.reducing += time.monotonic() - self.building - begin

    def _cut_short(self, state: State, key: str, finding: Finding) -> None:
        """Find out which known one it is; hold it back once if it is none, since the next may be reduced further."""
        if self._is_known(state, finding):
            return
        if key in state.held:
            self._keep(min(finding, state.held[key][0], key=lambda f: cost(f.case)))
            self._release(state, key)
        elif (self.config.out / "findings" / finding.identity).exists():
            self._keep(finding)
        else:
            # Until it has a name, this is what survives a kill.
            name = f"raw-{derived(finding.case.dumps()):x}"
            state.held[key] = (finding, corpus.keep(self.config.out / "corpus", name, finding.case))

    def _compare_held(self, state: State) -> None:
        """Report what is held back as the known finding that it turns out to be."""
        for key, (finding, _) in list(state.held.items()):
            if self._is_known(state, finding):
                self._release(state, key)

    def _is_known(self, state: State, finding: Finding) -> bool:
        """Say whether a finding that was cut short is one that is known, and report that one then."""
        kept = sorted((self.config.out / "findings").glob("*"))
        with self._timed_reduction():
            known = attributed(finding, [*kept, *self.config.known], state.executor, self.config.reduce_seconds)
        if known is not None:
            self._say_known(known)
        return known is not None

    def _name_held(self) -> None:
        """Report what is held back, under a name of its own."""
        for state in self.states:
            for key, (finding, _) in list(state.held.items()):
                self._keep(finding)
                self._release(state, key)

    def _release(self, state: State, key: str) -> None:
        _, raw = state.held.pop(key)
        raw.unlink(missing_ok=True)

    @held()
    def _keep(self, finding: Finding) -> None:
        """Write a finding, unless it is kept already, and report it."""
        place = self.config.out / "findings" / finding.identity
        if (place / "finding.json").exists():
            if finding.identity not in self.findings:
                self.findings.add(finding.identity)
                self._emit("known", **finding.summary(), **artefacts(place), folder=str(place))
            return
        finding.write(place.parent)
        if not finding.refusal:
            corpus.keep(self.config.out / "corpus", finding.identity, finding.case)
        self.findings.add(finding.identity)
        about = finding.summary() | artefacts(place) | instead_of(finding, place.parent)
        self._emit("finding", **about, folder=str(place))

    @held()
    def _say_known(self, place: Path) -> None:
        """Report the finding of a folder as seen, with what is kept of it."""
        summary = json.loads((place / "finding.json").read_text(encoding="utf-8"))
        if summary["identity"] not in self.findings:
            self.findings.add(summary["identity"])
            self._emit("known", **summary, **artefacts(place), folder=str(place))

    # -- events --------------------------------------------------------------------------------------------------

    @held()
    def _emit(self, kind: str, **data: Any) -> None:
        self.sink(Event(kind, {"worker": self.index, **data}))

    def note_build(self, what: str, seconds: float | None) -> None:
        """Report that a subject begins to compile something, or count how long it took."""
        if seconds is None:
            self._emit("building", what=what)
        else:
            self.building += seconds

    def _progress(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._shown < PROGRESS_SECONDS:
            return
        self._shown = now
        subjects = {
            s.subject.name: {
                **s.coverage.to_json(),
                "failures": dict(s.failures),
            }
            for s in self.states
        }
        spent = {s.subject.name: s.spent for s in self.states}
        times = {"seconds": self._fuzzing(), "reducing": self.reducing, "building": self.building}
        self._emit("progress", subjects=subjects, spent=spent, replaying=self._replaying, **times)
