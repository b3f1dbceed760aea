"""The findings of some runs, each once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moeproof.verify.history.record import RunRecord

from .words import severity_order


@dataclass
class Defect:
    """A finding over several runs.

    Attributes
    ----------
    about : dict
        The finding as the latest run tells it.
    script : str
        The script that shows it, empty where no run gave one.
    first, last : float
        When it was first and last seen.
    runs : int
        In how many runs of the report it was seen.
    state : str
        ``"open"``: seen in the latest run that had its subject; ``"listed"``: seen there, and listed in a ledger of
        known findings; ``"gone"``: not seen there.
    new : bool
        It was seen in that run for the first time, and there are runs before it.
    """

    about: dict[str, Any]
    script: str
    first: float
    last: float
    runs: int
    state: str
    new: bool


def defects(runs: Sequence[RunRecord]) -> list[Defect]:
    """Return the findings of some runs in the order of time: open ones first, then listed ones, the worst first."""
    latest = {s.name: run.id for run in runs for s in run.subjects.values() if s.cases}
    states = ("open", "listed", "gone")
    found: dict[str, list[tuple[RunRecord, dict[str, Any]]]] = {}
    for run in runs:
        for identity, finding in run.findings.items():
            found.setdefault(identity, []).append((run, finding))
    result = []
    for seen in found.values():
        run, about = seen[-1]
        is_open = latest.get(about["subject"], run.id) == run.id
        state = "gone" if not is_open else "listed" if about.get("listed") else "open"
        before = any(r.started < run.started and about["subject"] in r.subjects for r in runs)
        scripts = [finding["script"] for _, finding in seen if finding.get("script")]
        script = scripts[-1] if scripts else ""
        times = [finding["time"] for _, finding in seen]
        new = is_open and before and len(seen) == 1 and not about["known"]
        result.append(Defect(about, script, min(times), max(times), len(seen), state, new))
    return sorted(result, key=lambda d: (states.index(d.state), severity_order(d.about["severity"]), d.about["title"]))
