"""A mutation run: mutants are made, tried side by side, and sorted into killed, survived and equivalent."""

from __future__ import annotations

import itertools
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from . import baseline as baselines
from . import equivalent
from .baseline import ALONE_TURN, TURN, Baseline
from .flags import Flags
from .instrument import Instrumented, innermost, instrument
from .judge import (
    BUILD_SECONDS,
    DOES_NOT_COMPILE,
    EQUIVALENT,
    KILLED,
    SURVIVED,
    TIMED_OUT,
    Attempt,
    Judge,
    JudgeError,
    NotCompiled,
    Report,
    Verdict,
    try_attempts,
)
from .mutant import Mutant, mutants_of, sample, write_variant
from .pool import Done, Job, run_jobs
from .results import Store, budget_of, keys
from .source import Source, SourceError, read, users_of

MARKED = "instrumented"
BUILDS = "builds"
"""Folder below the run's own for what is built of mutants."""
LINE = re.compile(r"([\w.-]+\.cuh?):(\d+):\d+: (?:fatal )?error")
ROUNDS = 20
"""How often mutants that a compiler blames are taken out, until all are."""
MESSAGE = 400
"""Longest message that a verdict keeps."""
ALIVE = "-alive"
"""Ends the key of what is known of a mutant that its first cases have not killed."""
FIRST_CASES = 100
"""Cases before a mutant's machine code is compared with that of the unmutated kernels: most die sooner."""
LISTED_SHARE = 10
"""Mutants that are listed as equivalent get one case in so many: enough to refute a wrong entry, mostly."""
SAME_CODE = "the compiler makes the same machine code of it in every instantiation that cases run"
REFUSED = "the compiler of the device refuses it"
UNREACHED = "no case of the budget reaches this code"


@dataclass(frozen=True)
class Plan:
    """What a run is asked to do.

    Attributes
    ----------
    files : tuple of Path
        Sources to mutate, all of one folder.
    operators : tuple of str
        Operators to apply; empty for all.
    ids : tuple of str
        Mutants to try, by id; empty for all.
    sample : int, optional
        How many mutants to try; default: all.
    seed : int
        Seed of the cases and of the sample.
    cases : int
        Generated cases for each op, and most cases a mutant.
    seconds : float
        Longest time for one mutant.
    jobs : int
        Processes side by side.
    out : Path
        Folder of results and reports.
    equivalents : Path
        The list of equivalent mutants.
    """

    files: tuple[Path, ...]
    operators: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    sample: int | None = None
    seed: int = 0
    cases: int = 300
    seconds: float = 600.0
    jobs: int = 2
    out: Path = Path(".moeproof/mutation")
    equivalents: Path = Path(equivalent.FILE)

    @property
    def folder(self) -> Path:
        """Where the sources are."""
        return self.files[0].parent


@dataclass
class Outcome:
    """What a run came to.

    Attributes
    ----------
    plan : Plan
        What was asked.
    sources : dict of str to Source
        The sources by file name.
    verdicts : list of (Mutant, Verdict)
        All mutants tried so far, in the order of the sources.
    untried : int
        Mutants that an interruption left.
    stale, refuted : list of str
        Entries of the list that name no mutant, or one that was killed.
    seconds : float
        Time taken.
    """

    plan: Plan
    sources: dict[str, Source]
    verdicts: list[tuple[Mutant, Verdict]] = field(default_factory=list)
    untried: int = 0
    stale: list[str] = field(default_factory=list)
    refuted: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Watcher:
    """Told of a run's progress; this one says nothing."""

    def note(self, text: str) -> None:
        """Take a line for people."""

    def start(self, total: int, known: int) -> None:
        """Take the number of mutants, and how many of them an earlier run has judged."""

    def judged(self, mutant: Mutant, verdict: Verdict) -> None:
        """Take a verdict."""


def select(plan: Plan) -> tuple[dict[str, Source], list[Mutant], list[Mutant]]:
    """Return the sources of the folder, all their mutants, and those that the plan asks for."""
    # What no .cu file contains runs nowhere.
    sources = {name: read(plan.folder / name) for name, users in users_of(plan.folder).items() if users}
    every = [m for name in sorted(sources) for m in mutants_of(sources[name])]
    names, operators = {p.name for p in plan.files}, set(plan.operators)
    chosen = [m for m in every if m.file in names and (not operators or m.operator in operators)]
    if unknown := set(plan.ids) - {m.id for m in chosen}:
        raise SourceError(f"id is {', '.join(sorted(unknown))}; allowed: those that --list shows")
    chosen = [m for m in chosen if not plan.ids or m.id in plan.ids]
    return sources, every, chosen if plan.sample is None else sample(chosen, plan.sample, plan.seed)


class Engine:
    """One run.

    Parameters
    ----------
    plan : Plan
        What to do.
    judge : Judge
        Who judges mutants.
    watcher : Watcher, optional
        Who is told of progress.
    """

    def __init__(self, plan: Plan, judge: Judge, watcher: Watcher | None = None) -> None:
        self.plan = plan
        self.judge = judge
        self.watcher = watcher or Watcher()
        self.sources, self.every, self.chosen = select(plan)
        self.users = users_of(plan.folder)
        self.entries = equivalent.load(plan.equivalents)
        found = {m.id: equivalent.reason_for(m, self.entries) for m in self.chosen}
        self.listed = {i: reason for i, reason in found.items() if reason is not None}
        self.ops = {
            name: tuple(sorted({op for file in users for op in judge.ops(file)})) for name, users in self.users.items()
        }
        self.cache = (plan.out / BUILDS).resolve()
        self._baseline: Baseline | None = None
        self.made = Instrumented()

    def run(self) -> Outcome:
        """Judge all mutants; Ctrl-C ends it with everything kept.

        Raises
        ------
        JudgeError
            If the judge can't work here, or the unmutated kernels fail.
        """
        reason = self.judge.missing()
        if reason is not None:
            raise JudgeError(f"judge {self.judge.name} can't work here: {reason}")
        begin = time.monotonic()
        plan = self.plan
        budget = budget_of((self.judge.name, plan.seed, plan.cases, plan.seconds))
        self.keys = keys(plan.folder, budget)
        store = Store(plan.out / "results.jsonl")
        outcome = Outcome(plan, self.sources)
        try:
            # By id, that is in no order: an early look, and an interrupted run, show all files and operators.
            todo = sorted((m for m in self.chosen if store.get(m.id, self._key(m)) is None), key=lambda m: m.id)
            self.watcher.start(len(self.chosen), len(self.chosen) - len(todo))
            if todo:
                with tempfile.TemporaryDirectory(prefix="moeproof-mutate-") as scratch:
                    self._baseline = self._measure(Path(scratch), budget)
                    for mutant, verdict in self._judged(Path(scratch), todo, store):
                        store.add(mutant.id, self._key(mutant), verdict)
                        self.watcher.judged(mutant, verdict)
        except KeyboardInterrupt:
            self.watcher.note("interrupted; what is judged is kept")
        finally:
            store.close()
            # The verdicts are of use even where something failed half-way.
            self._collect(outcome, store)
        if not outcome.untried:
            # Until then, a run that is started again finds everything built.
            shutil.rmtree(self.cache, ignore_errors=True)
        outcome.seconds = time.monotonic() - begin
        return outcome

    def _key(self, mutant: Mutant) -> str:
        return self.keys[mutant.file] + ("-listed" if mutant.id in self.listed else "")

    def _collect(self, outcome: Outcome, store: Store) -> None:
        outcome.stale = [e.title for e in equivalent.stale(self.entries, self.every)]
        for mutant in self.chosen:
            verdict = store.get(mutant.id, self._key(mutant))
            if verdict is None:
                outcome.untried += 1
                continue
            reason = self.listed.get(mutant.id)
            if reason is not None and verdict.dead:
                outcome.refuted.append(f"{mutant.title}: {verdict.check}: {verdict.message}")
            elif reason is not None and verdict.status == SURVIVED:
                verdict = Verdict(EQUIVALENT, "", reason, verdict.cases, verdict.seconds, verdict.reaching)
            outcome.verdicts.append((mutant, verdict))

    # -- the unmutated kernels -------------------------------------------------------------------------------------

    def _measure(self, work: Path, budget: str) -> Baseline:
        plan, path = self.plan, self.plan.out / "baseline.json"
        ops = sorted({op for m in self.chosen for op in self.ops[m.file]})
        key = budget_of((*sorted(self.keys.items()), budget, *ops))
        marked = work / MARKED
        kept = baselines.load(path, key)
        if kept is not None:
            self.made = self._instrument(marked, kept.attempts)
            return kept
        attempts: list[Attempt] = []
        for op in ops:
            attempts += self.judge.attempts(op, plan.cases, plan.seed)
        self.watcher.note(f"the unmutated kernels run {len(attempts)} cases of {', '.join(ops)}")
        self.made = self._instrument(marked, attempts)
        regions = self.made.regions
        places = (plan.folder, None), (marked, self.cache)
        measured = baselines.measure(self.judge, places, regions, attempts, plan.jobs, self.watcher.note)
        baselines.save(path, key, measured)
        return measured

    def _instrument(self, marked: Path, attempts: Sequence[Attempt]) -> Instrumented:
        """Put as many mutants behind switches as the compiler takes; the others are compiled one by one."""
        builds = list({a.build: a for a in attempts}.values())
        # One build of each file finds most of what a compiler refuses, and costs a fraction of all.
        probes = list({a.build.partition(":")[0]: a for a in attempts}.values())
        switched = list(self.chosen)
        for _ in range(ROUNDS):
            made = instrument(self.plan.folder, marked, switched)
            said = self._compiled(marked, probes) or self._compiled(marked, builds)
            if not said:
                return made
            places = {(file, int(line)) for file, line in LINE.findall(said)}
            blamed = {i for place in places for i in made.lines.get(place, ())}
            if not blamed:  # what fails stands elsewhere than the mutant that makes it fail
                blamed = {m.id for m in switched if m.file in {file for file, _ in places}}
            if not blamed:
                break
            self.watcher.note(f"{len(blamed)} mutants can't be switched at run time")
            switched = [m for m in switched if m.id not in blamed]
        self.watcher.note(f"no mutant can be switched at run time: {said[:MESSAGE]}")
        return instrument(self.plan.folder, marked)

    def _compiled(self, sources: Path, attempts: Sequence[Attempt]) -> str:
        """Compile what cases need; return what the compiler has to say against it."""
        jobs = [Job(a.build, (self.judge, sources, self.cache, a.to_json()), 3600.0) for a in attempts]
        said = []
        for done in run_jobs(jobs, _compile, self.plan.jobs):
            if done.error:
                raise JudgeError(f"the instrumented kernels can't be compiled: {done.error}")
            said.append(done.result)
        return "".join(said)

    # -- mutants ---------------------------------------------------------------------------------------------------

    def _judged(self, work: Path, todo: list[Mutant], store: Store) -> Iterator[tuple[Mutant, Verdict]]:
        """Yield verdicts: first cases, comparison of machine code, the other cases, mutant by mutant."""
        orders = {mutant.id: self._order(mutant) for mutant in todo}
        alive = [(m, Verdict(SURVIVED, "", UNREACHED)) for m in todo if not orders[m.id]]
        first = []
        for mutant in todo:
            seen = None if mutant.id in self.listed else store.get(mutant.id, self._key(mutant) + ALIVE)
            if seen is not None:
                alive.append((mutant, seen))
            elif orders[mutant.id]:
                first.append(mutant)
        # What is compiled on its own takes a hundred times as long as what is switched on.
        first.sort(key=lambda m: m.id not in self.made.numbers)
        # One that is listed needs no second reason to be equivalent: all its few cases go in one.
        now = {i: o if i in self.listed else o[:FIRST_CASES] for i, o in orders.items()}
        for mutant, verdict in self._try(work, first, now, orders):
            if verdict.status == SURVIVED and mutant.id not in self.listed:
                alive.append((mutant, verdict))
                store.add(mutant.id, self._key(mutant) + ALIVE, verdict)
            else:
                yield mutant, verdict
        rest: dict[str, tuple[Mutant, Verdict]] = {}
        unreached = [(m, v) for m, v in alive if m.id in self.listed]
        others = [(m, v) for m, v in alive if m.id not in self.listed]
        for mutant, verdict in itertools.chain(unreached, self._compare(work, others, orders)):
            if verdict.status == SURVIVED and len(orders[mutant.id]) > FIRST_CASES:
                rest[mutant.id] = mutant, verdict
            else:
                yield mutant, verdict
        later = {i: o[FIRST_CASES:] for i, o in orders.items()}
        for mutant, verdict in self._try(work, [m for m, _ in rest.values()], later, orders):
            before = rest[mutant.id][1]
            spent, cases = before.seconds + verdict.seconds, before.cases + verdict.cases
            yield mutant, Verdict(verdict.status, verdict.check, verdict.message, cases, spent, verdict.reaching)

    def _order(self, mutant: Mutant) -> list[int]:
        assert self._baseline is not None
        mark = innermost(list(self._baseline.regions), mutant.file, mutant.start, mutant.end)
        count = max(1, self.plan.cases // (LISTED_SHARE if mutant.id in self.listed else 1))
        turn = TURN if mutant.id in self.made.numbers else ALONE_TURN
        return self._baseline.order(self.ops[mutant.file], mark, count, turn)

    def _try(
        self, work: Path, mutants: list[Mutant], orders: dict[str, list[int]], full: dict[str, list[int]]
    ) -> Iterator[tuple[Mutant, Verdict]]:
        assert self._baseline is not None
        base = self._baseline
        cases = [(a.to_json(), base.limit(n)) for n, a in enumerate(base.attempts)]

        def jobs() -> Iterator[Job[Mutant]]:
            for mutant in mutants:
                switch = self.made.numbers.get(mutant.id, 0)
                sources = work / (MARKED if switch else mutant.id)
                if not switch:
                    write_variant(self.plan.folder, sources, mutant)
                payload = (self.judge, sources, self.cache, switch, [cases[n] for n in orders[mutant.id]])
                yield Job(mutant, payload, self.plan.seconds)

        for done in run_jobs(jobs(), _try_mutant, self.plan.jobs):
            shutil.rmtree(work / done.tag.id, ignore_errors=True)
            yield done.tag, _verdict(done, len(full[done.tag.id]))

    def _compare(
        self, work: Path, alive: list[tuple[Mutant, Verdict]], orders: dict[str, list[int]]
    ) -> Iterator[tuple[Mutant, Verdict]]:
        """Find the mutants of which a compiler makes what it makes of the unmutated kernels, or nothing."""
        assert self._baseline is not None
        attempts = self._baseline.attempts
        verdicts = {m.id: v for m, v in alive}

        def jobs() -> Iterator[Job[Mutant]]:
            for mutant, _ in alive:
                sources = work / mutant.id
                write_variant(self.plan.folder, sources, mutant)
                # A difference most likely shows where cases reach the mutant: the others need no compiling then.
                reaching = [attempts[n].build for n in orders[mutant.id]]
                others = [a.build for a in attempts if a.op in self.ops[mutant.file]]
                builds = list(dict.fromkeys([*reaching, *others]))
                payload = (self.judge, self.plan.folder, sources, builds, self.cache)
                yield Job(mutant, payload, 600.0)

        for done in run_jobs(jobs(), _compare_code, self.plan.jobs):
            shutil.rmtree(work / done.tag.id, ignore_errors=True)
            verdict = verdicts[done.tag.id]
            if done.result:
                verdict = replace(
                    verdict, status=done.result, message=SAME_CODE if done.result == EQUIVALENT else REFUSED
                )
            yield done.tag, verdict


def _try_mutant(payload: Any, report: Report) -> tuple[str, str, str, int]:
    judge, sources, cache, switch, cases = payload
    if switch:
        Flags().choose(switch)
    attempts = ((Attempt.from_json(data), seconds) for data, seconds in cases)
    status, failure, count = try_attempts(judge, sources, cache, attempts, report)
    return status, failure.check if failure else "", failure.message if failure else "", count


def _compile(payload: Any, report: Report) -> str:
    """Compile what a case needs; return what the compiler has to say against it."""
    judge, sources, cache, data = payload
    report(0, BUILD_SECONDS)
    try:
        judge.load(sources, cache).prepare(Attempt.from_json(data))
    except NotCompiled as error:
        return str(error)
    return ""


def _compare_code(payload: Any, report: Report) -> str:
    """Return EQUIVALENT if a compiler makes the same of two folders' sources, DOES_NOT_COMPILE if it takes one only."""
    judge, one, two, builds, cache = payload
    codes = judge.machine_code(one, builds, cache), judge.machine_code(two, builds, cache)
    if None in codes:
        return ""
    report(0, BUILD_SECONDS)
    for number, (ours, theirs) in enumerate(zip(*codes, strict=True), 1):
        report(number, BUILD_SECONDS)
        if ours != theirs:
            return "" if theirs is not None else DOES_NOT_COMPILE
    return EQUIVALENT


def _verdict(done: Done[Mutant], reaching: int) -> Verdict:
    """Turn what a process came to into a verdict."""
    if done.result is not None:
        status, check, message, cases = done.result
        return Verdict(status, check, message[:MESSAGE], cases, done.seconds, reaching)
    if done.error == "out of time":
        message = f"only {done.step} of {reaching} cases fit into the time"
        return Verdict(SURVIVED, "", message, done.step, done.seconds, reaching)
    if done.error == "stuck":
        message = "a case, or compiling for it, takes many times as long as without the mutation"
        status = TIMED_OUT if done.step else DOES_NOT_COMPILE
        return Verdict(status, "hang" if done.step else "", message, done.step, done.seconds, reaching)
    if done.error.startswith("died"):
        return Verdict(KILLED, "cuda_error", f"the process {done.error}", done.step, done.seconds, reaching)
    raise JudgeError(f"the harness failed on {done.tag.title}: {done.error}")
