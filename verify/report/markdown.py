"""A summary in Markdown: for the page of a CI job, or a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from moeproof.verify.history.record import RunRecord

from . import words
from .defects import Defect, defects
from .matrix import matrices

MOST = 20
LONGEST = 30_000
"""Findings that are shown in full, and bytes of a script that is shown: a job's page holds a megabyte."""
_COLUMNS = ("subject", "version", "device", "cases", "rows", "open findings")
_SPECIAL = re.compile(r"([\\`*_\[\]|~#])")


def summarise(runs: Sequence[RunRecord]) -> str:
    """Return what some runs came to; runs are in the order of time."""
    found = defects(runs)
    still = [d for d in found if d.state != "gone"]
    run = runs[-1]
    out = [f"## moeproof: {_heading(run, still)}", "", _about(runs), ""]
    for matrix in matrices(runs):
        out += [f"### {code(matrix.op)}", ""]
        out += [_row(_COLUMNS), "|" + " --- |" * len(_COLUMNS)]
        for line in matrix.lines:
            mine = [d.about["check"] for d in still if d.about["subject"] == line.subject]
            result = ", ".join(sorted(set(mine))) or "–"
            if line.unavailable:
                result = f"left out: {line.unavailable}"
            counts = (words.short(line.cases), words.short(line.rows))
            out.append(_row((code(line.subject), plain(line.version), plain(line.device), *counts, plain(result))))
        out.append("")
    for number, defect in enumerate(still):
        out += _defect(defect, full=number < MOST)
    notes = [note for r in runs for note in r.notes]
    out += [f"- {'**error** ' if note['error'] else ''}{plain(note['text'])}" for note in notes[-MOST:]]
    return "\n".join(out).rstrip() + "\n"


def plain(text: str) -> str:
    """Return text of one line that Markdown shows as it is: no markup, and nobody is mentioned."""
    flat = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    # A zero-width space keeps a mention from being one; in a subject's name an @ follows a letter and is none.
    return re.sub(r"(?<!\w)@", "@\u200b", _SPECIAL.sub(r"\\\1", flat))


def code(text: str) -> str:
    """Return text of one line as a code span, which a table may hold."""
    flat = " ".join(str(text).split()).replace("|", "\\|")
    ticks = "`" * (_longest_ticks(flat) + 1)
    return f"{ticks} {flat} {ticks}" if "`" in flat else f"`{flat}`" if flat else ""


def _heading(run: RunRecord, still: Sequence[Defect]) -> str:
    if still:
        count = sum(d.state == "open" for d in still)
        listed = f", {len(still) - count} more listed as known" if len(still) > count else ""
        return f"{count or 'no'} finding{'' if count == 1 else 's'}{listed}"
    if run.ended is None:
        return "the run has not ended"
    return "no findings" if run.exit in (0, 1) else "the run failed"


def _about(runs: Sequence[RunRecord]) -> str:
    rows, cases = sum(r.rows for r in runs), sum(r.cases for r in runs)
    run = runs[-1]
    parts = [
        f"{rows:,} rows judged in {cases:,} cases",
        f"{words.duration(sum(r.seconds for r in runs))} of fuzzing",
        f"{len(runs)} run{'s' if len(runs) > 1 else ''}",
        f"moeproof {plain(run.details.get('moeproof', '?'))}",
    ]
    if run.details.get("seed") is not None:
        parts.append(f"seed {plain(run.details['seed'])}")
    return ", ".join(parts) + "."


def _defect(defect: Defect, *, full: bool) -> list[str]:
    about = defect.about
    known = " (listed)" if defect.state == "listed" else " (known)" if about["known"] else ""
    head = f"{plain(about['severity'])} {code(about['check'])}{known}: {plain(about['title'])}"
    if not full:
        return [f"- {head}", ""]
    out = [f"#### {head}", "", _fenced(about["message"], "text"), ""]
    size = len(defect.script.encode())
    if size > LONGEST:
        where = code(f"findings/{about['identity']}/repro.py")
        out += [f"The script that shows it, {where}, has {size:,} bytes; up to {LONGEST:,} are shown here.", ""]
    elif size:
        script = ["<details><summary>Script that shows it</summary>", "", _fenced(defect.script, "python"), ""]
        out += [*script, "</details>", ""]
    return out


def _fenced(text: str, language: str) -> str:
    """Return a code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, _longest_ticks(text) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _longest_ticks(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
