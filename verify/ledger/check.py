"""Runs a ledger's cases again and says which entries are still true."""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

from moeproof.strategies.case import Case
from moeproof.verify import corpus
from moeproof.verify.child import Child, HarnessError, Isolated
from moeproof.verify.extras import of_check
from moeproof.verify.finding import identity, version_of
from moeproof.verify.sanitize import tools
from moeproof.verify.sanitize.executor import SanitizedChild
from moeproof.verify.sanitize.lane import identity as sanitizer_identity
from moeproof.verify.subject import Subject, SubjectError, Unavailable, find
from moeproof.verify.violation import SANITIZERS, Violation

from .entries import Entry, Ledger

SURE = 0.999
"""How likely a defect that shows at its recorded rate must show in the runs spent on its entry."""
MOST_RUNS = 200


class Status(enum.Enum):
    """What became of an entry."""

    THERE = "there"
    GONE = "GONE"
    UNCHECKED = "not checked"
    PROBLEM = "PROBLEM"


@dataclass(frozen=True)
class Checked:
    """One entry and what became of it, with the reason in words."""

    entry: Entry
    status: Status
    detail: str


class Checker:
    """Runs the cases of a ledger's entries.

    Parameters
    ----------
    seconds : float
        Watchdog limit of one case.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._children: dict[str, Child] = {}
        self._sanitized: dict[tuple[str, str], SanitizedChild] = {}

    def check(self, ledger: Ledger) -> Iterator[Checked]:
        """Run each entry's case on its subject."""
        try:
            for entry in ledger.entries.values():
                status, detail = self._check(entry)
                yield Checked(entry, status, detail)
        finally:
            for child in self._children.values():
                child.close()
            for sanitized in self._sanitized.values():
                sanitized.kill()

    def _check(self, entry: Entry) -> tuple[Status, str]:
        try:
            case = corpus.read_case(entry.folder / "case.json")
            summary = json.loads((entry.folder / "finding.json").read_text(encoding="utf-8"))
            refusal, runs = bool(summary["outside_domain"]), _runs(int(summary["failed"]), int(summary["runs"]))
            (subject,) = find([str(summary["source"] or summary["subject"])])
        except SubjectError as error:
            return Status.UNCHECKED, str(error)
        except (OSError, ValueError, KeyError, TypeError) as error:
            return Status.PROBLEM, f"{entry.folder} can't be read: {error}"
        if subject.name.partition(":")[0] != entry.library:
            return Status.PROBLEM, f"library is {entry.library!r}, but the finding's subject is {subject.name}"
        version = version_of(subject)
        try:
            if entry.check in SANITIZERS:
                there, instead = self._sanitize(entry, subject, case, runs)
            else:
                complete = bool(summary.get("complete", True))
                now = identity(subject, case, Violation(entry.check, ""), refusal=refusal, complete=complete)
                if now != entry.identity:
                    return Status.PROBLEM, f"a run would report it as {now}: list that identity"
                there, instead = self._run(entry, subject, case, runs, refusal=refusal)
        except Unavailable as error:
            return Status.UNCHECKED, str(error)
        except HarnessError as error:
            return Status.PROBLEM, f"the harness failed: {error}"
        if not entry.covers_version(version):
            found = "still has it" if there else "no longer has it"
            return Status.UNCHECKED, f"{version or 'unknown version'}, which {found}, is not {entry.version}"
        if there:
            return Status.THERE, ""
        others = f"; {', '.join(sorted(instead))} instead" if instead else ""
        return Status.GONE, f"{subject.name} passes {entry.check} in {runs} runs{others}: remove the entry"

    def _run(
        self, entry: Entry, subject: Subject, case: Case, runs: int, *, refusal: bool
    ) -> tuple[bool, frozenset[str]]:
        """Say whether a case still fails the entry's check, and which others it failed."""
        executor = Isolated(subject, self._children.setdefault(entry.library, Child(seconds=self.seconds)))
        others: set[str] = set()
        for _ in range(runs):
            others |= set(executor.run(case, of_check(entry.check), refusal=refusal).checks)
            if entry.check in others:
                return True, frozenset()
        return False, frozenset(others)

    def _sanitize(self, entry: Entry, subject: Subject, case: Case, runs: int) -> tuple[bool, frozenset[str]]:
        """Say whether a tool still reports the entry's defect, and what else it reports."""
        tool = tools.TOOLS[entry.check]
        place = (entry.library, entry.check)
        if place not in self._sanitized:
            self._sanitized[place] = SanitizedChild(tools.locate(), tool, self.seconds)
        others: set[str] = set()
        for _ in range(runs):
            for key in self._sanitized[place].observe(subject, case).reports:
                if sanitizer_identity(subject, entry.check, key) == entry.identity:
                    return True, frozenset()
                others.add(" in ".join(key))
        return False, frozenset(others)


def _runs(failed: int, runs: int) -> int:
    """Return how many runs show a defect that fails at a rate."""
    if failed >= runs:
        return 1
    rate = max(failed, 0.5) / runs
    return min(MOST_RUNS, math.ceil(math.log(1 - SURE) / math.log(1 - rate)))
