"""Geometry of small charts: scales, ticks and points; the page's template draws them as SVG."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .words import short

WIDTH, HEIGHT = 540, 280
LEFT, RIGHT, TOP = 58, 26, 12
BOTTOM = {"lines": 48, "bars": 86}
"""Room below; labels of bars stand upright."""
RIVAL_OF_NONE = ("floor", "empty")
COLOURS = 8
"""Colours of lines; they come with as many markers, so that no line is known by its colour alone."""


@dataclass(frozen=True)
class Point:
    """A value to draw.

    Attributes
    ----------
    x, y : float
        The value.
    low, high : float, optional
        Ends of its interval.
    """

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points under one name.

    Attributes
    ----------
    name : str
        For the legend.
    points : tuple of Point
        By x.
    style : str
        Empty; ``"own"`` for the line that a chart is about; ``"floor"`` or ``"empty"`` for one that is no rival.
    """

    name: str
    points: tuple[Point, ...]
    style: str = ""


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes
    ----------
    title : str
        What it counts, with its unit.
    log : float
        Base of a logarithmic scale; 0 for a linear one that starts at 0.
    names : tuple of str
        Names of the places 0, 1, 2, … where it counts nothing.
    brief : tuple of str
        Shorter ones for its ticks; empty if `names` are short.
    """

    title: str
    log: float = 0.0
    names: tuple[str, ...] = ()
    brief: tuple[str, ...] = ()


@dataclass
class Drawn:
    """A series in the drawing's coordinates.

    Attributes
    ----------
    name, style : str
        As in `Series`.
    number : int
        Which colour and marker it has.
    path : str
        SVG path through its points; empty for a single one.
    marks : list of (x, y, text)
        Its points.
    spans : list of (x, top, bottom)
        Intervals.
    """

    name: str
    style: str
    number: int
    path: str
    marks: list[tuple[float, float, str]]
    spans: list[tuple[float, float, float]]


@dataclass
class Chart:
    """A chart, ready to be drawn.

    Attributes
    ----------
    title, description : str
        For those who don't see it, too.
    kind : str
        ``"lines"`` or ``"bars"``.
    x, y : Axis
        The axes.
    x_ticks, y_ticks : list of (position, text)
        Where they are marked.
    drawn : list of Drawn
        The series.
    bar : float
        Width of a bar.
    header, rows : list
        The same values as a table.
    width, height : int
        Size of the drawing.
    """

    title: str
    description: str
    kind: str
    x: Axis
    y: Axis
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    drawn: list[Drawn]
    bar: float
    header: list[str]
    rows: list[list[str]]
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the area between the axes."""
        return LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM[self.kind]


def chart(
    title: str, description: str, x: Axis, y: Axis, series: Sequence[Series], kind: str = "lines"
) -> Chart | None:
    """Lay out a chart; None if there is nothing to draw.

    Parameters
    ----------
    title, description : str
        What it shows.
    x, y : Axis
        The axes.
    series : sequence of Series
        What to draw; places of a logarithmic axis that aren't positive are left out.
    kind : str
        ``"lines"`` or ``"bars"``.
    """
    series = [s for s in (_positive(s, x, y) for s in series) if s.points]
    points = [p for s in series for p in s.points]
    if not points:
        return None
    to_x, x_ticks = _x_scale(x, [p.x for p in points], kind)
    tops = [p.y if p.high is None else p.high for p in points]
    lows = [p.y if p.low is None or (y.log and p.low <= 0) else p.low for p in points]
    whole = all(float(p.y).is_integer() for p in points)
    to_y, y_ticks = _y_scale(y, min(lows), max(tops), HEIGHT - BOTTOM[kind], whole=whole)
    numbers = itertools.count()
    drawn = [_draw(s, COLOURS if s.style in RIVAL_OF_NONE else next(numbers) % COLOURS, to_x, to_y) for s in series]
    places = len(x.names) or 1
    bar = (WIDTH - LEFT - RIGHT) / places * 0.72
    header, rows = _table(x, y, series)
    return Chart(title, description, kind, x, y, x_ticks, y_ticks, drawn, bar, header, rows)


def _positive(series: Series, x: Axis, y: Axis) -> Series:
    kept = tuple(p for p in series.points if (p.x > 0 or not x.log) and (p.y > 0 or not y.log))
    return Series(series.name, kept, series.style)


def _x_scale(axis: Axis, values: list[float], kind: str) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    low, high = LEFT + 12, WIDTH - RIGHT - 12
    if axis.names:
        step = (WIDTH - LEFT - RIGHT) / len(axis.names)

        def place(value: float) -> float:
            return round(LEFT + (value + 0.5) * step, 1)

        # Labels of bars stand upright and fit closer than those of runs.
        every = math.ceil(len(axis.names) / (40 if kind == "bars" else 5))
        return place, [(place(i), name) for i, name in enumerate(axis.brief or axis.names) if i % every == 0]
    first, last = math.log2(min(values)), math.log2(max(values))
    width = (last - first) or 1.0

    def scaled(value: float) -> float:
        return round(low + (math.log2(value) - first) / width * (high - low), 1)

    wanted = sorted(set(values))
    every = math.ceil(len(wanted) / 9)
    return scaled, [(scaled(v), f"{v:.0f}" if v < 1e6 else short(v)) for v in wanted[::every]]


def _y_scale(
    axis: Axis, least: float, most: float, bottom: int, *, whole: bool
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    top = TOP
    if axis.log:
        first, last = math.floor(math.log10(least) + 1e-9), math.ceil(math.log10(most) - 1e-9)
        last = max(last, first + 1)

        def logarithmic(value: float) -> float:
            return round(bottom - (math.log10(value) - first) / (last - first) * (bottom - top), 1)

        steps = (1, 2, 5) if last - first <= 2 else (1,)
        every = math.ceil((last - first) / 8)
        ticks = [s * 10.0**e for e in range(first, last + 1, every) for s in steps if s * 10.0**e <= 10.0**last]
        return logarithmic, [(logarithmic(t), short(t)) for t in ticks]
    most = most or 1.0  # nothing but zeros
    step = max(_nice(most / 4), 1.0 if whole else 0.0)
    end = step * math.ceil(most / step - 1e-9)

    def linear(value: float) -> float:
        return round(bottom - value / end * (bottom - top), 1)

    return linear, [(linear(i * step), short(i * step)) for i in range(round(end / step) + 1)]


def _nice(step: float) -> float:
    """Return the next of 1, 2, 5, 10, … times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * (1 - 1e-9))


def _draw(series: Series, number: int, to_x: Callable[[float], float], to_y: Callable[[float], float]) -> Drawn:
    marks = [(to_x(p.x), to_y(p.y), short(p.y)) for p in series.points]
    path = "M" + "L".join(f"{x},{y}" for x, y, _ in marks) if len(marks) > 1 else ""
    spans = [
        (to_x(p.x), to_y(p.high), to_y(p.low))
        for p in series.points
        if p.low is not None and p.high is not None and p.low > 0
    ]
    return Drawn(series.name, series.style, number, path, marks, spans)


def _table(x: Axis, y: Axis, series: Sequence[Series]) -> tuple[list[str], list[list[str]]]:
    places = sorted({p.x for s in series for p in s.points})
    by_place = [{p.x: p for p in s.points} for s in series]
    names = [x.names[int(place)] if x.names else f"{place:g}" for place in places]
    rows = [[name, *(_cell(s.get(place)) for s in by_place)] for name, place in zip(names, places, strict=True)]
    header = [f"{s.name}, {y.title}" if len(series) == 1 and s.name != y.title else s.name for s in series]
    return [x.title, *header], rows


def _cell(point: Point | None) -> str:
    if point is None:
        return "–"
    value = f"{point.y:.4g}" if point.y < 10000 else f"{point.y:,.0f}"
    if point.low is None or point.high is None:
        return value
    return f"{value} [{point.low:.4g}, {point.high:.4g}]"
