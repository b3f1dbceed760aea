"""Plots of time against size: one for each series, one line a subject, the floor drawn."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

from .analysis import device_timing
from .results import Results, ShapeResult, Timing


class PlotError(RuntimeError):
    """matplotlib is missing."""


def plot(results: Results, folder: Path) -> list[Path]:
    """Write an SVG and a PNG for each series of two shapes or more; return their paths.

    Raises
    ------
    PlotError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotError(f"{error}; install moeproof[bench]") from error
    written = []
    for series, group in itertools.groupby(results.shapes, key=lambda s: s.shape.series):
        shapes = sorted(group, key=lambda s: s.shape.size)
        if len(shapes) < 2:
            continue
        figure = Figure(figsize=(8, 5), layout="constrained")
        _draw(figure.add_subplot(), results, series, shapes)
        stem = re.sub(r"[^A-Za-z0-9]+", "-", series).strip("-").lower()
        for suffix in ("svg", "png"):
            path = folder / f"{stem}.{suffix}"
            # Without the date, equal results give equal files.
            figure.savefig(path, dpi=150, metadata={"Date": None} if suffix == "svg" else None)
            written.append(path)
    return written


def _draw(axes: Any, results: Results, series: str, shapes: list[ShapeResult]) -> None:
    for name in shapes[0].subjects:
        timings = {s.shape.size: device_timing(s.subjects[name]) for s in shapes if name in s.subjects}
        ours = results.families.get(name) == "own"
        _line(axes, timings, name, marker="o", linewidth=2.5 if ours else 1.2, zorder=3 if ours else 2)
    floors = {s.shape.size: s.floor for s in shapes}
    _line(axes, floors, "floor: the same bytes", color="black", linestyle="--", linewidth=1)
    _line(axes, {s.shape.size: s.empty for s in shapes}, "empty kernel", color="grey", linestyle=":", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("ids" if shapes[0].shape.axis == "ids" else "tokens")
    axes.set_ylabel("µs a call")
    axes.set_title(f"{series}, {results.environment['device']}", fontsize=10)
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(fontsize=7)


def _line(axes: Any, timings: dict[int, Timing | None], label: str, **style: Any) -> None:
    """Draw medians over sizes, with their intervals as bars."""
    points = [(size, t.estimate) for size, t in timings.items() if t is not None]
    if not points:
        return
    middles = [about.value for _, about in points]
    spread = [[about.value - about.low for _, about in points], [about.high - about.value for _, about in points]]
    axes.errorbar([size for size, _ in points], middles, yerr=spread, label=label, capsize=2, markersize=3, **style)
