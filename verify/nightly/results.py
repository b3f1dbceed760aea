"""What a nightly run leaves for people and programs: its verdict, its findings as corpus files, its results as JSON."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeproof.verify.coordinator import Summary
from moeproof.verify.files import write_text
from moeproof.verify.history.errors import HistoryError
from moeproof.verify.history.record import from_events, read_events
from moeproof.verify.report.page import render
from moeproof.verify.sinks import NO_HISTORY

from .schedule import Unit

PAGE_RUNS = 60
"""Runs on the report page, the latest."""


@dataclass(frozen=True)
class Verdict:
    """What a run came to.

    Attributes
    ----------
    new, known, listed : list of dict
        Findings that no earlier run has reported, those that one has, and those that the ledger lists.
    failing : list of str
        The lanes' own test files that failed without a finding.
    errors : list of str
        Faults of the harness.
    nothing : bool
        No subject could run.
    """

    new: list[dict[str, Any]]
    known: list[dict[str, Any]]
    listed: list[dict[str, Any]]
    failing: list[str]
    errors: list[str]
    nothing: bool

    @property
    def exit_code(self) -> int:
        """1 for new findings and failing tests, 2 if nothing could run or the harness failed, else 0."""
        if self.errors or self.nothing:
            return 2
        return 1 if self.new or self.failing else 0


def judge(summary: Summary, failing: Collection[str]) -> Verdict:
    """Return the verdict on a run."""
    findings = sorted(summary.findings.values(), key=lambda f: f["identity"])
    listed = [f for f in findings if f.get("listed")]
    rest = [f for f in findings if not f.get("listed")]
    return Verdict(
        new=[f for f in rest if not f["known"]],
        known=[f for f in rest if f["known"]],
        listed=listed,
        failing=sorted(failing),
        errors=list(summary.errors),
        nothing=not summary.cases and not failing,
    )


def to_json(
    verdict: Verdict, summary: Summary, slices: Iterable[Mapping[str, Any]], units: Iterable[Unit]
) -> dict[str, Any]:
    """Return a run's results as JSON data."""
    lanes: dict[str, dict[str, float]] = {
        u.lane: {"weight": u.weight, "seconds": 0.0, "cases": 0, "slices": 0, "lost": 0} for u in units
    }
    for row in slices:
        lane = lanes.setdefault(row["unit"].partition("|")[0], {"seconds": 0.0, "cases": 0, "slices": 0, "lost": 0})
        lane["seconds"] = round(lane["seconds"] + row["used"], 3)
        lane["cases"] += row["cases"]
        lane["slices"] += row["state"] == "done"
        lane["lost"] += row["state"] == "lost"
    names = {kind: [_short(f) for f in getattr(verdict, kind)] for kind in ("new", "known", "listed")}
    return {
        "exit": verdict.exit_code,
        "interrupted": summary.interrupted,
        "cases": summary.cases,
        "rows": summary.rows,
        **names,
        "failing_tests": verdict.failing,
        "unavailable": dict(sorted(summary.unavailable.items())),
        "errors": verdict.errors,
        "notes": list(summary.notes),
        "lanes": lanes,
    }


def _short(finding: Mapping[str, Any]) -> dict[str, Any]:
    return {name: finding[name] for name in ("identity", "subject", "check", "severity", "title", "folder")}


def promote(out: Path, verdict: Verdict, corpus: Collection[Path]) -> list[Path]:
    """Copy the cases of this run's findings to ``OUT/promote/corpus``, ready to be committed, with a text beside them.

    Parameters
    ----------
    out : Path
        Folder of the run; ``OUT/corpus`` has had the cases since they were found.
    verdict : Verdict
        The run's.
    corpus : collection of Path
        The lanes' corpus folders: what is in them already needs no promotion.

    Returns
    -------
    list of Path
        The copies.
    """
    findings = {finding["identity"]: finding for finding in (*verdict.new, *verdict.known, *verdict.listed)}
    kept = {path.name for folder in corpus for path in folder.rglob("*.json")}
    place = out / "promote"
    shutil.rmtree(place, ignore_errors=True)
    copies, rows = [], []
    for path in sorted((out / "corpus").rglob("*.json")):
        if path.stem not in findings or path.name in kept:
            continue
        copy = place / "corpus" / path.relative_to(out / "corpus")
        write_text(copy, path.read_text(encoding="utf-8"))
        finding = findings[path.stem]
        title = " ".join(finding["title"].partition(": ")[2].split()).replace("|", "\\|")
        rows.append(f"| `{copy.relative_to(place)}` | `{finding['subject']}` | {title} |")
        copies.append(copy)
    if copies:
        write_text(place / "README.md", "\n".join([*_PROMOTED, *rows]) + "\n")
    return copies


_PROMOTED = (
    "# Cases to keep",
    "",
    "Each file is a reduced case that a kernel got wrong: plain data, no code. Copied into a corpus folder that the",
    "lanes file names (`corpus = [...]`) and committed there, it runs first in every run, on every subject whose",
    "domain it is in:",
    "",
    "```",
    "cp -r corpus/. YOUR_CORPUS/ && git add YOUR_CORPUS",
    "```",
    "",
    "| file | found in | what it shows |",
    "|---|---|---|",
)


def write_page(path: Path, history: str, events: Path) -> None:
    """Write the report page: of the history's runs if it can be read and has this one, else of this run."""
    own = from_events(read_events(events))
    runs = own
    if history != NO_HISTORY:
        with contextlib.suppress(HistoryError):
            from moeproof.verify.history.store import History

            database = History(history)
            try:
                stored = database.runs(last=PAGE_RUNS)
            finally:
                database.close()
            if {run.id for run in own} <= {run.id for run in stored}:
                runs = stored
    write_text(path, render(runs, title="moeproof nightly"))


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write a run's results."""
    write_text(path, json.dumps(results, indent=2) + "\n")
