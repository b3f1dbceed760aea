"""Says whether a case still fails the check that is being reduced."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace

from moeproof.strategies.case import Case
from moeproof.strategies.domain import Domain
from moeproof.strategies.domain_check import why_outside
from moeproof.verify.child import CaseRunner, NoMemoryError
from moeproof.verify.execute import pick_device
from moeproof.verify.extras import of_check
from moeproof.verify.metamorphic.shown import variants
from moeproof.verify.violation import MAX_ROWS, Violation

from .literal import relaid

SURE = 0.99
"""How likely a flaky failure must show in the runs spent on one candidate."""
MAX_SPELLED = 1 << 15
"""Most elements of a case whose variants are spelled out."""
MAX_ATTEMPTS = 60
"""Most runs spent on one candidate; a rarer failure is reduced less surely."""


def wrong_argument(case: Case, domain: Domain) -> str:
    """Return the name of the argument that puts a case outside a domain; empty for a case inside."""
    return (why_outside(case, domain) or "").partition(" is ")[0]


class OutOfTime(Exception):
    """The time for reduction is up."""


@dataclass
class Probe:
    """Runs candidates and looks for one class of violation.

    Attributes
    ----------
    executor : CaseRunner
        Runs the subject.
    check : str
        The class of the violation.
    deadline : float
        `time.monotonic` value after which `OutOfTime` is raised.
    wrong : str
        The argument that is outside the domain, where what fails is that it is accepted; otherwise empty.
    extras : tuple of str
        Further checks under which it fails; if empty, those of the class.
    attempts : int
        Runs spent on one candidate.
    runs : int
        Runs spent so far.
    """

    executor: CaseRunner
    check: str
    deadline: float
    wrong: str = ""
    extras: tuple[str, ...] = ()
    attempts: int = 1
    runs: int = 0
    _seen: dict[str, Violation | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.extras = self.extras or of_check(self.check)

    def once(self, case: Case) -> Violation | None:
        """Run a case once."""
        if time.monotonic() > self.deadline:
            raise OutOfTime
        self.runs += 1
        try:
            outcome = self.executor.run(case, self.extras, refusal=bool(self.wrong))
        except NoMemoryError:
            return None
        return next((v for v in outcome.violations if v.check == self.check), None)

    def rate(self, case: Case, runs: int) -> tuple[int, Violation | None]:
        """Return in how many of `runs` runs a case fails, and the last violation."""
        found = [v for v in (self.once(case) for _ in range(runs)) if v is not None]
        return len(found), found[-1] if found else None

    def set_rate(self, failed: int, runs: int) -> None:
        """Choose how many runs a candidate gets, from a measured failure rate."""
        if failed < runs:
            rate = max(failed / runs, 0.5 / runs)
            self.attempts = min(MAX_ATTEMPTS, math.ceil(math.log(1 - SURE) / math.log(1 - rate)))

    def fails(self, case: Case) -> Violation | None:
        """Return the violation if the case is inside the domain (or meant not to be) and fails; remembers answers."""
        key = case.dumps()
        if key not in self._seen:
            self._seen[key] = self._try(case)
        return self._seen[key]

    def _try(self, case: Case) -> Violation | None:
        if wrong_argument(case, self.executor.subject.domain) != self.wrong:
            return None
        for _ in range(self.attempts):
            violation = self.once(case)
            if violation is not None:
                return self.leave_extras(case) or violation
        return None

    def plain(self, case: Case) -> Case:
        """Return the case, or of a death under further checks the variant of it that dies by itself, if there is one.

        From then on no further checks are run.
        """
        if self.extras and not of_check(self.check) and self.leave_extras(case) is None:
            subject, device = self.executor.subject, pick_device(self.executor.subject).type
            small = math.prod(case.main.shape) <= MAX_SPELLED
            tried = [v.case for name in self.extras for v in variants(name, case, subject, device)] if small else []
            for variant in tried:
                if self.leave_extras(variant) is not None:
                    return variant
        return case

    def leave_extras(self, case: Case) -> Violation | None:
        """Do without further checks from now on if the case fails without them, as after a death that had some."""
        if not self.extras or of_check(self.check):
            return None
        extras, self.extras = self.extras, ()
        violation = self.once(case)
        if violation is None:
            self.extras = extras
        else:  # what failed with them may pass without
            self._seen = {key: seen for key, seen in self._seen.items() if seen is None}
        return violation

    def failing_rows(self, case: Case, contents: list[tuple[float, ...]]) -> list[int]:
        """Run many contents of a one-row gate case in one launch and return the indices of those that fail."""
        logits = case.tensors["logits"]
        failing: list[int] = []
        for start in range(0, len(contents), MAX_ROWS):
            part = contents[start : start + MAX_ROWS]
            shape = (len(part), logits.shape[1])
            spec = replace(logits, shape=shape, rows=tuple(part), strides=relaid(logits, shape))
            violation = self.once(case.but(logits=spec))
            if violation is not None:
                failing += [start + row for row in violation.rows]
        return failing
