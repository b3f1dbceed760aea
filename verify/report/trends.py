"""What changes from run to run: rows judged, findings, speed of fuzzing and of kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from moeproof.verify.history.record import RunRecord

from .chart import Axis, Chart, Point, Series, chart
from .words import OPS, brief_moment, moment, op_order

MOST_LINES = 8
"""Shapes in one chart of kernel times."""


def trends(runs: Sequence[RunRecord]) -> list[Chart]:
    """Return charts over runs that have judged cases, in the order of time; none with fewer than two."""
    runs = [run for run in runs if run.cases]
    if len(runs) < 2:
        return []
    x = _axis(runs)
    rows = Series("rows judged", tuple(Point(i, run.rows) for i, run in enumerate(runs)))
    found = Series("findings", tuple(Point(i, len(run.findings)) for i, run in enumerate(runs)))
    fresh = [sum(not f["known"] for f in run.findings.values()) for run in runs]
    new = Series("of them new", tuple(Point(i, count) for i, count in enumerate(fresh)))
    speeds = []
    for op in sorted({s.op for run in runs for s in run.subjects.values()}, key=op_order):
        points = []
        for i, run in enumerate(runs):
            mine = [s for s in run.subjects.values() if s.op == op and s.seconds > 0]
            if mine:
                points.append(Point(i, sum(s.cases for s in mine) / sum(s.seconds for s in mine)))
        speeds.append(Series(op, tuple(points)))
    charts = [
        chart("Rows judged", "Rows judged in each run, all subjects together.", x, Axis("rows"), [rows]),
        chart(
            "Findings",
            "Findings that each run reported, and how many of them were not known to it before.",
            x,
            Axis("findings"),
            [found, new],
        ),
        chart(
            "Speed of fuzzing",
            "Cases judged in a second of a subject's time, by op; reduction is not counted.",
            x,
            Axis("cases per second"),
            speeds,
        ),
    ]
    return [c for c in charts if c is not None]


def kernel_trends(runs: Sequence[RunRecord]) -> list[Chart]:
    """Return a chart an op of the own kernels' times over runs of the benchmark; none with fewer than two."""
    runs = [run for run in runs if run.timings]
    if len(runs) < 2:
        return []
    x = _axis(runs)
    charts = []
    for op in OPS:
        lines: dict[str, list[Point]] = {}
        for i, run in enumerate(runs):
            for t in run.timings:
                if t["op"] == op and t["family"] == "own" and t["median"] is not None:
                    lines.setdefault(t["shape"], []).append(Point(i, t["median"], t["low"], t["high"]))
        steady = sorted((s for s in lines if len(lines[s]) > 1), key=lambda s: lines[s][-1].y)
        # Some of the many shapes, evenly from the fastest to the slowest.
        kept = steady[:: math.ceil(len(steady) / MOST_LINES) or 1]
        series = [Series(shape, tuple(lines[shape])) for shape in kept]
        about = f"Medians with intervals of 95% of the own {op} kernel, by shape, over runs of the benchmark."
        charts.append(chart(f"Time of the own {op}", about, x, Axis("µs a call", log=10), series))
    return [c for c in charts if c is not None]


def _axis(runs: Sequence[RunRecord]) -> Axis:
    names, brief = (tuple(show(run.started) for run in runs) for show in (moment, brief_moment))
    return Axis("run (start, UTC)", names=names, brief=brief)
