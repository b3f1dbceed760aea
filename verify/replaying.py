"""Runs kept cases again."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moeproof.strategies.case import CaseError
from moeproof.strategies.domain_check import why_outside

from . import corpus
from .child import Child, HarnessError, Isolated
from .extras import EXTRAS
from .subject import Subject, SubjectError, Unavailable, all_subjects, find
from .violation import SANITIZERS


class Replay(enum.Enum):
    """How a replay ended."""

    PASSED = "passed"
    FAILED = "FAILED"
    SKIPPED = "skipped"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Result:
    """The outcome of one case on one subject."""

    path: Path
    subject: str
    status: Replay
    lines: tuple[str, ...] = ()


def replay_paths(files: list[Path], chosen: list[Subject] | None, seconds: float) -> Iterator[Result]:
    """Run each case with every check.

    Parameters
    ----------
    files : list of Path
        Case files. One beside a ``finding.json`` runs on the subject named there.
    chosen : list of Subject, optional
        Run on these instead; default: the finding's own subject, else every one of the op.
    seconds : float
        Watchdog limit of one case.
    """
    children: dict[str, Child] = {}
    missing: set[str] = set()
    try:
        for path in files:
            try:
                case = corpus.read_case(path)
                subjects, refusal = _subjects(path, chosen)
            except (CaseError, SubjectError, OSError, ValueError, KeyError, TypeError) as error:
                yield Result(path, "-", Replay.PROBLEM, (str(error),))
                continue
            if chosen is None and (tool := _tool(path)) is not None:
                text = f"{tool} found it: `moeproof sanitize {path.parent}` runs it again"
                yield Result(path, subjects[0].name, Replay.SKIPPED, (text,))
                continue
            for subject in subjects:
                if subject.op != case.op or subject.name in missing:
                    continue
                reason = why_outside(case, subject.domain)
                if reason is not None and not refusal:
                    yield Result(path, subject.name, Replay.SKIPPED, (f"outside its domain: {reason}",))
                    continue
                child = children.setdefault(subject.name.partition(":")[0], Child(seconds=seconds))
                try:
                    outcome = Isolated(subject, child).run(case, () if refusal else tuple(EXTRAS), refusal=refusal)
                except (Unavailable, HarnessError) as error:
                    # Of all subjects of an op, some can't run on any one machine.
                    asked = chosen is not None or _finding(path) is not None or isinstance(error, HarnessError)
                    status = Replay.PROBLEM if asked else Replay.SKIPPED
                    missing.add(subject.name)
                    yield Result(path, subject.name, status, (str(error),))
                    continue
                status = Replay.FAILED if outcome.violations else Replay.PASSED
                yield Result(path, subject.name, status, tuple(f"{v.check}: {v.message}" for v in outcome.violations))
    finally:
        for child in children.values():
            child.close()


def _subjects(path: Path, chosen: list[Subject] | None) -> tuple[list[Subject], bool]:
    """Return the subjects to run a case on, and whether it is outside their domain on purpose."""
    beside = _finding(path)
    if beside is None:
        return (all_subjects() if chosen is None else chosen), False
    data = json.loads(beside.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or not {"outside_domain", "subject"} <= data.keys():
        raise ValueError(f"{beside} is not the summary of a finding")
    own = find([str(data.get("source") or data["subject"])]) if chosen is None else chosen
    return own, bool(data["outside_domain"])


def _tool(path: Path) -> str | None:
    """Return the tool of compute-sanitizer that made the finding that a case belongs to, if one did."""
    beside = _finding(path)
    check = json.loads(beside.read_text(encoding="utf-8")).get("check") if beside is not None else None
    return check if check in SANITIZERS else None


def _finding(path: Path) -> Path | None:
    """Return the ``finding.json`` that a case belongs to, if any."""
    beside = path.with_name("finding.json")
    return beside if path.name == "case.json" and beside.is_file() else None
