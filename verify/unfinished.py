"""Which known finding a case belongs to whose reduction was cut short.

A case that could not be reduced to the end bears traits that have nothing to do with its defect, and two such cases of
one defect bear different ones: they say nothing about which defect it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from moeproof.strategies.case import Case

from . import corpus
from .child import CaseRunner
from .finding import SIZES, Finding, features, identity
from .reduce.probe import OutOfTime, Probe
from .subject import Unavailable


def attributed(finding: Finding, folders: Iterable[Path], executor: CaseRunner, seconds: float) -> Path | None:
    """Return the folder of the known finding that reducing a case to the end would have led to.

    That is one of the same subject and check that was reduced to the end, has no trait that the case lacks, and
    happens still.

    Parameters
    ----------
    finding : Finding
        What was cut short.
    folders : iterable of Path
        Known findings' folders.
    executor : CaseRunner
        Runs the known cases again.
    seconds : float
        Time limit of that. A known case that there is no time for counts as one that still fails.

    Returns
    -------
    Path, optional
        None if no known finding is the same.
    """
    probe = Probe(executor, finding.violation.check, time.monotonic() + seconds, extras=finding.violation.extras)
    for place, summary, case in _alike(finding, folders):
        if not leads_to(finding.case, case):
            continue
        probe.set_rate(int(summary["failed"]), max(1, int(summary["runs"])))
        try:
            if probe.fails(case) is None:
                continue
        except (OutOfTime, Unavailable):
            pass
        return place
    return None


def _alike(finding: Finding, folders: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any], Case]]:
    """Yield the known findings of a finding's subject and check that were reduced to the end."""
    same = {
        "subject": finding.subject.name,
        "check": finding.violation.check,
        "outside_domain": finding.refusal,
        "complete": True,
    }
    for place in folders:
        try:
            summary = json.loads((place / "finding.json").read_text(encoding="utf-8"))
            if {name: summary.get(name) for name in same} == same:
                yield place, summary, corpus.read_case(place / "case.json")
        except (OSError, ValueError):  # another process may be writing it, or have removed it
            continue


def instead_of(finding: Finding, folder: Path) -> dict[str, str]:
    """Return, as ``instead_of``, the identity of the finding that was kept cut short and is this one; else nothing.

    Parameters
    ----------
    finding : Finding
        A new finding.
    folder : Path
        Folder of kept findings.
    """
    if finding.refusal or not finding.complete:
        return {}
    name = identity(finding.subject, finding.case, finding.violation, refusal=False, complete=False)
    try:
        before = corpus.read_case(folder / name / "case.json")
    except (OSError, ValueError):
        return {}
    return {"instead_of": name} if leads_to(before, finding.case) else {}


def leads_to(case: Case, least: Case) -> bool:
    """Say whether reduction, which only takes traits away, could lead from a case to another.

    Parameters
    ----------
    case : Case
        Where it was cut short.
    least : Case
        The other one.
    """
    have = {_without_number(trait) for trait in features(case)}
    sizes = {name: size for name, _, size in (t.partition("~") for t in have) if size}
    # What a recipe holds shows only once it is spelled out.
    unspelled = {name for name, spec in case.tensors.items() if spec.rows is None}
    for trait in map(_without_number, features(least)):
        name, is_size, size = trait.partition("~")
        if is_size:
            if name not in sizes or SIZES[size] > SIZES[sizes[name]]:
                return False
            if size == "no" != sizes[name]:  # an empty batch fails for another reason
                return False
        elif trait not in have and trait.partition(":")[0] not in unspelled:
            return False
    return True


def _without_number(trait: str) -> str:
    """Return a trait without its value if that is a number: reduction makes it smaller."""
    name, _, value = trait.partition("=")
    return name if value.isdecimal() else trait
