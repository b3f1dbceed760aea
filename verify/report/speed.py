"""Plots of a run of the benchmark: time against size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moeproof.verify.history.record import RunRecord

from .chart import Axis, Chart, Point, Series, chart
from .words import op_order

RIGHT = "right"
"""Status of a timing whose result the oracle has accepted."""


def speed_charts(run: RunRecord) -> list[Chart]:
    """Return a chart for each series of shapes with two sizes or more: a line a subject, floors drawn."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for timing in run.timings:
        groups.setdefault((timing["op"], timing["series"]), []).append(timing)
    charts = []
    for (op, series), timings in sorted(groups.items(), key=lambda item: op_order(item[0][0])):
        if len({t["size"] for t in timings}) < 2:
            continue
        axis = "tokens" if timings[0]["axis"] == "T" else str(timings[0]["axis"])
        about = f"Medians with intervals of 95%, {op}, {series}, on {run.details.get('device', 'an unnamed device')}."
        lines = [_subject(name, timings) for name in dict.fromkeys(t["subject"] for t in timings)]
        lines += [_floor("floor: the same bytes", "floor", timings), _floor("empty kernel", "empty", timings)]
        charts.append(chart(series, about, Axis(axis, log=2), Axis("µs a call", log=10), lines))
    return [c for c in charts if c is not None]


def not_compared(run: RunRecord) -> list[dict[str, str]]:
    """Return each reason why a subject has no time that counts, with the shapes that it holds for."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for t in run.timings:
        if t["status"] != RIGHT:
            reasons.setdefault((t["subject"], t["status"], t["detail"]), []).append(t["shape"])
    return [
        {"subject": name, "status": status, "detail": detail, "shapes": _shapes(shapes)}
        for (name, status, detail), shapes in reasons.items()
    ]


def _subject(name: str, timings: Sequence[dict[str, Any]]) -> Series:
    mine = [t for t in timings if t["subject"] == name and t["status"] == RIGHT and t["median"] is not None]
    points = [Point(t["size"], t["median"], t["low"], t["high"]) for t in mine]
    own = any(t["family"] == "own" for t in mine)
    return Series(name, tuple(sorted(points, key=lambda p: p.x)), "own" if own else "")


def _floor(name: str, field: str, timings: Sequence[dict[str, Any]]) -> Series:
    values = {t["size"]: t[field] for t in timings if t[field] is not None}
    return Series(name, tuple(Point(size, value) for size, value in sorted(values.items())), field)


def _shapes(shapes: Sequence[str]) -> str:
    return shapes[0] if len(shapes) == 1 else f"{len(shapes)} shapes"
