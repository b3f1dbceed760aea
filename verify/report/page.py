"""One HTML page of some runs: everything is in it, nothing is loaded."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from moeproof import __version__
from moeproof.verify.coverage import EXPERTS
from moeproof.verify.history.record import RunRecord

from . import words
from .chart import Axis, Chart, Point, Series, chart
from .covered import DIMENSIONS, OpCoverage, covered
from .defects import Defect, defects
from .matrix import STATUSES, OpMatrix, matrices
from .speed import not_compared, speed_charts
from .trends import kernel_trends, trends

HEAT = 5
"""Shades of a coverage table."""


@dataclass
class Verdict:
    """How things stand, in a line.

    Attributes
    ----------
    tone : str
        ``"ok"``, ``"bad"`` or ``"warn"``.
    text : str
        For a person.
    """

    tone: str
    text: str


def render(runs: Sequence[RunRecord], *, title: str = "moeproof report", now: float | None = None) -> str:
    """Return the page.

    Parameters
    ----------
    runs : sequence of RunRecord
        In the order of time.
    title : str
        Heading.
    now : float, optional
        Time at which it is made, in seconds since the epoch; the present one if not given.
    """
    now = time.time() if now is None else now
    found = defects(runs)
    style, script = _source("style.css.j2"), _source("script.js.j2")
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            title=title,
            now=now,
            version=__version__,
            runs=list(reversed(runs)),
            verdict=verdict(runs, found, now),
            tiles=_tiles(runs, found),
            defects=found,
            matrices=_with_cases(matrices(runs)),
            buckets=list(EXPERTS),
            statuses=STATUSES,
            coverage=[(op, size_charts(op)) for op in covered(runs)],
            trends=trends(runs) + kernel_trends(runs),
            benches=_benches(runs),
            style=Markup(style),
            script=Markup(script),
            policy=_policy(style, script),
        )
    )


def verdict(runs: Sequence[RunRecord], found: Sequence[Defect], now: float) -> Verdict:
    """Return how the latest run ended, and what is open."""
    latest = next((run for run in reversed(runs) if run.job != "bench"), None)
    if latest is None:
        return Verdict("ok", "Benchmark results only: nothing was fuzzed.")
    status = latest.status(now)
    worst = [d for d in found if d.state == "open"]
    if worst:
        severities = [d.about["severity"] for d in worst]
        parts = [f"{severities.count(s)} {s}" for s in words.SEVERITIES if s in severities]
        return Verdict("bad", f"{_count(len(worst), 'open finding')}: {', '.join(parts)}.")
    if status == "unfinished":
        return Verdict("warn", "The latest run has no end: it was killed, or its machine was lost.")
    if latest.exit not in (0, 1, None) or any(note["error"] for note in latest.notes):
        return Verdict("warn", "The latest run failed: nothing could run, or the harness had a fault.")
    if status == "running":
        return Verdict("ok", "The latest run is still going on. No open findings.")
    return Verdict("ok", "No open findings.")


def size_charts(op: OpCoverage) -> list[Chart]:
    """Return a bar chart of cases by size class for each dimension of an op."""
    charts = []
    for name, counts in op.sizes.items():
        points = tuple(Point(i, count) for i, count in enumerate(counts.values()))
        sizes = tuple(words.pretty_size(label) for label in counts)
        about = f"Cases of {op.op} by {DIMENSIONS[name]}: {len(counts)} classes of sizes."
        x = Axis(f"{name} ({DIMENSIONS[name]})", names=sizes)
        charts.append(chart(f"{op.op}: {DIMENSIONS[name]}", about, x, Axis("cases"), [Series("cases", points)], "bars"))
    return [c for c in charts if c is not None]


def _tiles(runs: Sequence[RunRecord], found: Sequence[Defect]) -> list[tuple[str, str]]:
    subjects = {s.name for run in runs for s in run.subjects.values() if s.cases}
    return [
        ("open findings", str(sum(d.state == "open" for d in found))),
        ("listed as known", str(sum(d.state == "listed" for d in found))),
        ("new in the latest run", str(sum(d.new for d in found))),
        ("rows judged", words.short(sum(run.rows for run in runs))),
        ("cases", words.short(sum(run.cases for run in runs))),
        ("subjects", str(len(subjects))),
        ("runs", str(len(runs))),
    ]


def _benches(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """Return the latest benchmark of each device."""
    latest = {run.details.get("device"): run for run in runs if run.timings}
    return [{"run": run, "charts": speed_charts(run), "left_out": not_compared(run)} for run in latest.values()]


def _with_cases(found: list[OpMatrix]) -> list[OpMatrix]:
    """Leave out ops of which no subject could run, unless nothing at all could."""
    kept = [matrix for matrix in found if any(line.cases for line in matrix.lines)]
    return kept or found


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("moeproof.verify.report"),
        autoescape=True,  # names, messages and scripts are a stranger's input
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (words.short, words.duration, words.moment, words.machine_moment, _heat, _count, _breakable):
        environment.filters[function.__name__.lstrip("_")] = function
    return environment


def _heat(count: int, most: int) -> int:
    """Return a count's shade, 0 to `HEAT`: one less for each factor of three below the most."""
    return max(1, HEAT - int(math.log(max(most, count) / count, 3))) if count else 0


def _breakable(name: str) -> Markup:
    """Return a subject's name with places at which a line may break."""
    return Markup("<wbr>").join(re.findall(r"[^:@/]*[:@/]?", name)[:-1])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _source(name: str) -> str:
    source, _, _ = PackageLoader("moeproof.verify.report").get_source(Environment(autoescape=True), name)
    return source


def _policy(style: str, script: str) -> str:
    """Return a content security policy under which nothing but the page's own style and script has an effect."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
