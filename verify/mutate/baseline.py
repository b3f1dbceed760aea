"""The unmutated kernels on all cases of the budget: they must pass, and it is seen how long each case takes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeproof.verify.files import write_text

from .flags import Flags
from .instrument import Region
from .judge import BUILD_SECONDS, Attempt, Judge, JudgeError, NotCompiled, Report
from .pool import Job, run_jobs

CASE_SECONDS = 60.0
"""Longest time of one case of the unmutated kernels."""
LIMIT_FACTOR, LEAST_LIMIT = 30.0, 2.0
"""A mutant has this many times as long as the unmutated kernel, and so many seconds at least."""
TURN = 4
ALONE_TURN = 24
"""Cases of each build in a row: few where all is built, many where a mutant is compiled on its own, build by build."""


@dataclass(frozen=True)
class Baseline:
    """What the unmutated kernels did.

    Attributes
    ----------
    regions : tuple of Region
        The branches of the sources.
    attempts : tuple of Attempt
        The cases of the budget, all ops'.
    seconds : tuple of float
        Processor time that each took.
    reached : tuple of frozenset of int
        Marks that each set.
    """

    regions: tuple[Region, ...]
    attempts: tuple[Attempt, ...]
    seconds: tuple[float, ...]
    reached: tuple[frozenset[int], ...]

    def limit(self, number: int) -> float:
        """Return how long a mutant may take over a case."""
        return max(LEAST_LIMIT, LIMIT_FACTOR * self.seconds[number])

    def order(self, ops: Iterable[str], mark: int | None, count: int, turn: int) -> list[int]:
        """Return the cases that reach a mark (None: any), in the order in which to try them, `count` at most.

        Cheap cases come first, and every build gets a turn, of `turn` cases, before any gets its second: most mutants
        die within milliseconds, one that shows in a single instantiation is found soon.
        """
        allowed = set(ops)
        builds: dict[str, list[int]] = {}
        for number, attempt in enumerate(self.attempts):
            if attempt.op in allowed and (mark is None or mark in self.reached[number]):
                builds.setdefault(attempt.build, []).append(number)
        for group in builds.values():
            # By powers of two: among cases that cost about the same, the order stays as drawn.
            group.sort(key=lambda n: math.frexp(self.seconds[n])[1])
        groups = sorted(builds.values(), key=lambda group: self.seconds[group[0]])
        chosen: list[int] = []
        for at in range(0, max(map(len, groups), default=0), turn):
            for group in groups:
                chosen += group[at : at + turn]
        return chosen[:count]


def measure(
    judge: Judge,
    places: tuple[tuple[Path, Path | None], tuple[Path, Path | None]],
    regions: Sequence[Region],
    attempts: Sequence[Attempt],
    width: int,
    tell: Callable[[str], None],
) -> Baseline:
    """Run all cases on the sources as they are, and on instrumented ones with no mutant switched on.

    Parameters
    ----------
    judge : Judge
        Who runs them.
    places : tuple
        Folder of the sources as they are, and of the instrumented ones; each with where to keep what is built.
    regions : sequence of Region
        The branches of the instrumented ones.
    attempts : sequence of Attempt
        The cases.
    width : int
        Processes side by side.
    tell : callable
        Takes a line on progress.

    Raises
    ------
    JudgeError
        If a case fails.
    """
    parts = _parts(attempts, width)
    seconds = [0.0] * len(attempts)
    reached: list[frozenset[int]] = [frozenset()] * len(attempts)
    # One place after the other: kernels that fail as they are shall not be said to fail instrumented.
    for marks, (sources, cache) in enumerate(places):
        name = "instrumented" if marks else "unmutated"
        jobs = [
            Job(part, (judge, sources, cache, [attempts[n].to_json() for n in part], marks), 3600.0) for part in parts
        ]
        for done in run_jobs(jobs, _run, width):
            part = done.tag
            if done.error:
                raise JudgeError(f"the {name} kernels can't be run: {done.error} at case {done.step} of {len(part)}")
            tell(f"{len(part)} cases on the {name} kernels: {done.seconds:.0f} s")
            for number, (spent, found, failure) in zip(part, done.result, strict=True):
                if failure:
                    case = attempts[number].case.dumps()
                    raise JudgeError(f"the {name} kernels fail, so nothing can be said of mutants: {failure}\n{case}")
                seconds[number] = max(seconds[number], spent)
                if marks:
                    reached[number] = frozenset(found)
    return Baseline(tuple(regions), tuple(attempts), tuple(seconds), tuple(reached))


def _parts(attempts: Sequence[Attempt], width: int) -> list[list[int]]:
    """Share out cases so that no two parts compile the same."""
    builds: dict[str, list[int]] = {}
    for number, attempt in enumerate(attempts):
        builds.setdefault(attempt.build, []).append(number)
    parts: list[list[int]] = [[] for _ in range(max(1, min(width, len(builds))))]
    for group in sorted(builds.values(), key=len, reverse=True):
        min(parts, key=len).extend(group)
    return parts


def _run(payload: Any, report: Report) -> list[tuple[float, list[int], str]]:
    judge, sources, cache, cases, wants_marks = payload
    flags = Flags() if wants_marks else None
    results = []
    try:
        session = judge.load(sources, cache)
        for number, data in enumerate(cases):
            attempt = Attempt.from_json(data)
            report(number, BUILD_SECONDS)
            session.prepare(attempt)
            report(number, CASE_SECONDS)
            begin = time.process_time()
            failure = session.run(attempt)
            spent = time.process_time() - begin
            text = f"{failure.check}: {failure.message}" if failure else ""
            results.append((spent, flags.take() if flags else [], text))
    except NotCompiled as error:
        return [(0.0, [], f"they can't be compiled: {error}")] * len(cases)
    return results


def save(path: Path, key: str, baseline: Baseline) -> None:
    """Keep a baseline for a later run with the same sources and budget."""
    data = {
        "key": key,
        "regions": [[r.file, r.start, r.end, r.mark] for r in baseline.regions],
        "attempts": [a.to_json() for a in baseline.attempts],
        "seconds": list(baseline.seconds),
        "reached": [sorted(r) for r in baseline.reached],
    }
    write_text(path, json.dumps(data))


def load(path: Path, key: str) -> Baseline | None:
    """Return a kept baseline, or None if there is none of this key."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["key"] != key:
            return None
        return Baseline(
            tuple(Region(*r) for r in data["regions"]),
            tuple(Attempt.from_json(a) for a in data["attempts"]),
            tuple(data["seconds"]),
            tuple(frozenset(r) for r in data["reached"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
