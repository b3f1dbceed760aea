"""Parity tests in a user's own repository: declare a kernel as a subject, get a parametrised pytest test."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, given, note, settings, target

from moeproof.strategies.case import Case
from moeproof.strategies.domain import AlignDomain, AppendDomain, Domain, GateDomain
from moeproof.strategies.domain_check import why_outside
from moeproof.strategies.labels import labels

from . import corpus
from .campaign import ELEMENTS
from .child import Child, Executor, Isolated
from .execute import pick_device
from .explore import beyond, inside
from .extras import EXTRAS, sampled
from .finding import Finding, reduce_to_finding
from .subject import OUTPUTS, Subject, SubjectError, Unavailable, from_function, register
from .targets import targets
from .violation import CHECKS, Violation

EXAMPLES = {"dev": 100, "ci": 400, "nightly": 20_000}
"""Generated cases of one parity test, by the name of the Hypothesis profile; others take the profile's own number."""
PARTS = ("corpus", "generated", "outside")
OUT = Path(".moeproof")


class ParityError(AssertionError):
    """A kernel broke its contract. Each check has a subclass, so that failures are told apart by type.

    Attributes
    ----------
    finding : Finding
        The reduced failure.
    folder : Path
        Its folder.
    """

    def __init__(self, finding: Finding, folder: Path) -> None:
        self.finding = finding
        self.folder = folder
        super().__init__(f"{finding.title}\n{finding.violation.message}\nrun it alone: python {folder / 'repro.py'}")


FAILURES: dict[str, type[ParityError]] = {
    check: type(f"{check.title().replace('_', '')}Error", (ParityError,), {"__doc__": f"{meaning.capitalize()}."})
    for check, meaning in CHECKS.items()
}
_DEFAULTS: dict[str, Domain] = {
    "fused_gate": GateDomain(),
    "moe_align_block_size": AlignDomain(),
    "append_shared_experts": AppendDomain(),
}
_children: dict[str, Child] = {}


def subject(
    function: Callable[..., Any], op: str, *, domain: Domain | None = None, out: bool = False, **promises: Any
) -> Subject:
    """Declare a function as a subject.

    Parameters
    ----------
    function : callable
        Takes the arguments of docs/contracts.md by name, and returns the outputs in the contract's order. With
        ``out=True`` it also takes ``out=``, a tuple of outputs to fill, and is checked for stray writes.
    op : str
        ``fused_gate``, ``moe_align_block_size`` or ``append_shared_experts``.
    domain : Domain, optional
        The cases it claims to support; default: all of the contract.
    out : bool
        See `function`.
    **promises
        Further fields of `Subject`: ``device``, ``order``, ``bitwise``, ``capturable``, ``refuses`` and so on.

    Returns
    -------
    Subject
        Assign it to a name at the top level of the module: a child process imports it from there.
    """
    if op not in OUTPUTS:
        raise SubjectError(f"op is {op!r}; allowed: {', '.join(OUTPUTS)}")
    # The module that declares the subject, not the one that defines the function.
    frame = inspect.stack()[1]
    name = promises.pop("name", f"{Path(frame.filename).stem}:{getattr(function, '__name__', op)}")
    loader = from_function(function, op, out=out)
    source = f"{Path(frame.filename).resolve()}:{name}"
    return register(Subject(name, op, loader, domain or _DEFAULTS[op], source=source, **promises))


def parity(
    subject: Subject,
    *,
    preset: str | None = None,
    max_elements: int | None = None,
    examples: int | None = None,
    case_seconds: float = 60.0,
) -> Callable[..., None]:
    """Return a pytest test of a subject against its contract.

    Parameters
    ----------
    subject : Subject
        The kernel.
    preset : str, optional
        Only shapes of one model preset.
    max_elements : int, optional
        Largest number of elements in a generated tensor.
    examples : int, optional
        Generated cases; default: by the Hypothesis profile, see `EXAMPLES`.
    case_seconds : float
        Watchdog limit of one case.

    Returns
    -------
    callable
        A test with the parts ``corpus`` (kept cases), ``generated`` and, if the subject promises to refuse bad
        input, ``outside`` (its domain).
    """
    parts = PARTS if subject.refuses else PARTS[:2]

    @pytest.mark.parametrize("part", parts)
    def test(part: str) -> None:
        try:
            executor = _executor(subject, case_seconds)
            if part == "corpus":
                _corpus(executor)
            else:
                _generated(executor, part, preset, max_elements, examples)
        except Unavailable as error:
            pytest.skip(f"{subject.name}: {error}")

    test.__doc__ = f"{subject.name} keeps the contract of {subject.op}."
    return test


def close_children() -> None:
    """End all child processes."""
    while _children:
        _children.popitem()[1].close()


def _executor(subject: Subject, seconds: float) -> Executor:
    family = subject.name.partition(":")[0]
    child = _children.setdefault(family, Child(seconds=seconds))
    return Isolated(subject, child)


def _corpus(executor: Executor) -> None:
    entries, problems = corpus.load([corpus.SHIPPED, OUT / "corpus"])
    if problems:
        raise ValueError("; ".join(problems))
    for entry in entries:
        if entry.case.op == executor.subject.op and why_outside(entry.case, executor.subject.domain) is None:
            _check(executor, entry.case, tuple(EXTRAS), refusal=False)


def _generated(
    executor: Executor, part: str, preset: str | None, max_elements: int | None, examples: int | None
) -> None:
    tested = executor.subject
    limit = max_elements or ELEMENTS[pick_device(tested).type]
    refusal = part == "outside"
    strategy = beyond(tested.domain) if refusal else inside(tested.op, tested.domain, max_elements=limit, preset=preset)
    count = examples or EXAMPLES.get(settings.get_current_profile_name(), settings().max_examples)
    failures: dict[str, ParityError] = {}
    ran = 0

    # Reduction is our own: it works on cases and keeps what it finds.
    @settings(
        max_examples=max(1, count // 4) if refusal else count,
        deadline=None,
        phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.target),
        suppress_health_check=(HealthCheck.too_slow,),
        # One failure is reduced and reported; several would come as a group without a finding.
        report_multiple_bugs=False,
    )
    @given(strategy)
    def run(case: Case) -> None:
        nonlocal ran
        key = case.dumps()
        if key in failures:
            raise failures[key]
        for kind, value in labels(case).items():
            event(f"{kind}: {value}")
        for name, number in ({} if refusal else targets(case)).items():
            target(number, label=name)
        extras = () if refusal else sampled(ran, tested.op)
        ran += 1
        try:
            _check(executor, case, extras, refusal=refusal)
        except ParityError as error:
            note(f"finding: {error.folder}")
            failures[key] = error
            raise

    run()


def _check(executor: Executor, case: Case, extras: tuple[str, ...], *, refusal: bool) -> None:
    outcome = executor.run(case, extras, refusal=refusal)
    if outcome.violations:
        raise _failure(executor, case, outcome.violations[0], refusal=refusal)


def _failure(executor: Executor, case: Case, violation: Violation, *, refusal: bool) -> ParityError:
    finding = reduce_to_finding(executor, case, violation, refusal=refusal)
    folder = finding.write(OUT / "findings")
    if not refusal:
        corpus.keep(OUT / "corpus", finding.identity, finding.case)
    return FAILURES[violation.check](finding, folder)
