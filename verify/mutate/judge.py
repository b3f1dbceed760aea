"""What judges a mutant, and what it says: a small interface, so that executor, GPU and tests share the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from moeproof.strategies.case import Case

KILLED = "killed"
TIMED_OUT = "timed_out"
SURVIVED = "survived"
DOES_NOT_COMPILE = "does_not_compile"
EQUIVALENT = "equivalent"
STATUSES = (KILLED, TIMED_OUT, SURVIVED, EQUIVALENT, DOES_NOT_COMPILE)


class JudgeError(RuntimeError):
    """A judge that can't work here, or sources that fail without any mutation; says why."""


@dataclass(frozen=True)
class Attempt:
    """One case that mutants of an op are tried with.

    Attributes
    ----------
    op : str
        The op.
    case : Case
        The case.
    extras : tuple of str
        Further checks to run, from `metamorphic.EXTRAS`.
    build : str
        What has to be compiled for it; cases of one build share that cost.
    """

    op: str
    case: Case
    extras: tuple[str, ...] = ()
    build: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the attempt as JSON data."""
        return {"op": self.op, "case": self.case.to_json(), "extras": list(self.extras), "build": self.build}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Attempt:
        """Read a attempt from JSON data."""
        return cls(data["op"], Case.from_json(data["case"]), tuple(data["extras"]), data["build"])


@dataclass(frozen=True)
class Failure:
    """A failed check: what killed a mutant."""

    check: str
    message: str


class Session(Protocol):
    """Sources loaded in this process."""

    def prepare(self, attempt: Attempt) -> None:
        """Compile what a case needs.

        Raises
        ------
        NotCompiled
            If the compiler refuses the sources.
        """

    def run(self, attempt: Attempt) -> Failure | None:
        """Run one case; return the first check that fails."""


class NotCompiled(RuntimeError):
    """Sources that the compiler refuses."""


class Judge(Protocol):
    """Runs cases on kernels built from a folder of sources."""

    @property
    def name(self) -> str:
        """What it is called."""

    def missing(self) -> str | None:
        """Return why it can't work on this machine, or None."""

    def ops(self, file: str) -> tuple[str, ...]:
        """Return the ops whose kernels a .cu file holds."""

    def attempts(self, op: str, count: int, seed: int) -> Sequence[Attempt]:
        """Return the cases that mutants of an op are tried with: kept ones first, then `count` generated ones."""

    def load(self, sources: Path, cache: Path | None) -> Session:
        """Return a session of kernels of a folder; called in a process of its own.

        Parameters
        ----------
        sources : Path
            The folder.
        cache : Path, optional
            Where to keep what is built; default: where builds of unmutated kernels are kept.
        """

    def machine_code(self, sources: Path, builds: Sequence[str], cache: Path | None) -> Iterator[bytes | None] | None:
        """Yield the machine code of some builds, part by part, None for what is refused; None where no compiler is."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    Attributes
    ----------
    status : str
        One of `STATUSES`.
    check : str
        The failed check of a killed mutant.
    message : str
        What failed, what the compiler said, or why it is equivalent.
    cases : int
        Cases run, the fatal one included.
    seconds : float
        Time until then, compiling included.
    reaching : int
        Cases that could have been run: those of the budget that reach the mutated code.
    """

    status: str
    check: str = ""
    message: str = ""
    cases: int = 0
    seconds: float = 0.0
    reaching: int = 0

    @property
    def dead(self) -> bool:
        """Whether it counts as killed."""
        return self.status in (KILLED, TIMED_OUT)

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON data."""
        return asdict(self)


BUILD_SECONDS = 90.0
"""Longest time to compile what a case needs."""
Report = Callable[[int, float], None]
"""Told the number of each step before it, and how many seconds it may take."""


def try_attempts(
    judge: Judge, sources: Path, cache: Path, attempts: Iterable[tuple[Attempt, float]], report: Report
) -> tuple[str, Failure | None, int]:
    """Run cases on sources until one fails.

    Parameters
    ----------
    judge : Judge
        Who judges.
    sources : Path
        Folder of the sources.
    cache : Path
        Where to keep what is built.
    attempts : iterable of (Attempt, float)
        Cases, and how long each may take.
    report : callable
        Told of each step.

    Returns
    -------
    status : str
        `KILLED`, `SURVIVED` or `DOES_NOT_COMPILE`.
    failure : Failure or None
        What failed.
    cases : int
        How many were run.
    """
    count = 0
    try:
        session = judge.load(sources, cache)
        for attempt, seconds in attempts:
            report(count, BUILD_SECONDS)
            session.prepare(attempt)
            count += 1
            report(count, seconds)
            failure = session.run(attempt)
            if failure is not None:
                return KILLED, failure, count
    except NotCompiled as error:
        return DOES_NOT_COMPILE, Failure("", str(error)), 0
    return SURVIVED, None, count
