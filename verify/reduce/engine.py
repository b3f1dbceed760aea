"""The greedy loop: take the first smaller candidate that still fails, until none does or time is up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from moeproof.strategies.case import Case
from moeproof.verify.child import CaseRunner
from moeproof.verify.subject import Unavailable
from moeproof.verify.violation import Violation

from . import align, append, gate
from .cost import cost
from .probe import OutOfTime, Probe, wrong_argument

CONFIRM = 10
"""Runs that measure a failure rate."""

Candidates = Callable[[Case, Violation, Probe], Iterator[Case]]
_PASSES: dict[str, Candidates] = {
    "fused_gate": gate.candidates,
    "moe_align_block_size": align.candidates,
    "append_shared_experts": append.candidates,
}


@dataclass(frozen=True)
class Reduced:
    """A reduced failing case.

    Attributes
    ----------
    case : Case
        The smallest case found.
    violation : Violation
        How it fails.
    failed, runs : int
        In how many of how many confirming runs it failed.
    tries : int
        Runs spent.
    seconds : float
        Time spent.
    complete : bool
        Nothing smaller was found; False if time ran out.
    """

    case: Case
    violation: Violation
    failed: int
    runs: int
    tries: int
    seconds: float
    complete: bool


def reduce_case(
    executor: CaseRunner, case: Case, violation: Violation, *, seconds: float = 20.0, refusal: bool = False
) -> Reduced:
    """Reduce a failing case.

    Parameters
    ----------
    executor : CaseRunner
        Runs the subject that failed.
    case : Case
        The failing case.
    violation : Violation
        How it failed; its class is kept.
    seconds : float
        Time limit.
    refusal : bool
        The case is outside the subject's domain and was accepted.

    Returns
    -------
    Reduced
        At worst the case as given.
    """
    begin = time.monotonic()
    wrong = wrong_argument(case, executor.subject.domain) if refusal else ""
    probe = Probe(executor, violation.check, begin + seconds, wrong, violation.extras)
    costly = violation.check in ("hang", "cuda_error")
    confirm = 2 if costly else CONFIRM
    best = _Best(case, violation)
    complete = False
    # The child may die beyond repair while a crash is reduced: what was reached so far still counts.
    with contextlib.suppress(OutOfTime, Unavailable):
        case = best.case = probe.plain(case)
        failed, last = probe.rate(case, confirm)
        probe.set_rate(failed, confirm)
        best.violation = last or violation
        # A pass may be unable to read a case that breaks the op's own contract, as one that must be refused does.
        unreadable = (LookupError, ArithmeticError, ValueError) if refusal else ()
        with contextlib.suppress(*unreadable):
            while True:
                while _improve(best, probe, _PASSES[case.op]):
                    pass
                # Its variants may have been too large to be tried by themselves before.
                case = probe.plain(best.case)
                if case is best.case:
                    break
                best.case = case
        complete = True
    probe.deadline = time.monotonic() + max(5.0, 0.5 * seconds)
    # A rare failure needs as many runs to be measured as it took to be seen.
    confirm = max(confirm, probe.attempts)
    failed, runs = 0, 0
    with contextlib.suppress(OutOfTime, Unavailable):
        while runs < confirm:
            found = probe.once(best.case)
            runs += 1
            if found is not None:
                failed += 1
                best.violation = found
    if not runs:  # the run that led here counts
        failed = runs = 1
    return Reduced(best.case, best.violation, failed, runs, probe.runs, time.monotonic() - begin, complete)


@dataclass
class _Best:
    case: Case
    violation: Violation


def _improve(best: _Best, probe: Probe, passes: Candidates) -> bool:
    """Take the first candidate that fails and is cheaper; say whether there was one."""
    price = cost(best.case)
    for candidate in passes(best.case, best.violation, probe):
        if cost(candidate) >= price:
            continue
        found = probe.fails(candidate)
        if found is not None:
            best.case, best.violation = candidate, found
            return True
    return False
