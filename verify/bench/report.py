"""Puts results into words and tables: Markdown for people who read them later, a table for the console."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from rich.table import Table

from .analysis import Rival, Row, compare
from .results import FAILED, RIGHT, WRONG, Measured, Results, ShapeResult, Timing
from .statistics import Estimate

_COLUMNS = ("shape", "ours, µs", "fastest rival, µs", "rival", "speed-up", "floor, µs", "× floor", "eager, µs")


def number(value: float) -> str:
    """Return a time in microseconds, or a ratio, with three digits or so."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def interval(value: Estimate) -> str:
    """Return a median with its interval."""
    return f"{number(value.value)} [{number(value.low)}, {number(value.high)}]"


def cells(row: Row) -> list[str]:
    """Return a row's cells, in the order of the summary's columns."""
    floor = row.result.floor
    return [
        row.result.shape.label,
        _time(row.ours),
        _time(row.rival),
        "–" if row.rival is None else _shorter(row.rival.name),
        "–" if row.speedup is None else interval(row.speedup),
        "–" if floor is None else number(floor.estimate.value),
        "–" if row.floors is None else interval(row.floors),
        f"{_short(row.eager)} / {_short(row.eager_rival)}",
    ]


def line(row: Row) -> str:
    """Return a shape's outcome in one line."""
    parts = [row.result.shape.label]
    parts.append("no right result of ours" if row.ours is None else f"{_shorter(row.ours.name)} {_time(row.ours)} µs")
    if row.rival is not None:
        parts.append(f"{_shorter(row.rival.name)} {_time(row.rival)} µs")
    if row.speedup is not None:
        parts.append(f"speed-up {interval(row.speedup)}")
    if row.floors is not None:
        parts.append(f"{interval(row.floors)} × floor")
    bad = [f"{name} {m.status}" for name, m in row.result.subjects.items() if m.status in (FAILED, WRONG)]
    return "; ".join([*parts, *bad])


def console_table(rows: Sequence[Row]) -> Table:
    """Return the summary for a terminal."""
    table = Table(box=None, pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, no_wrap=True)
    for row in rows:
        colour = None
        if row.speedup is not None:
            colour = "green" if row.speedup.low > 1 else "red" if row.speedup.high < 1 else None
        table.add_row(*cells(row), style=colour)
    return table


def markdown(results: Results) -> str:
    """Return the whole report."""
    about = results.environment
    out = [f"# Speed of routing kernels: {about['device']}", ""]
    out += [f"- {key}: {_flat(value)}" for key, value in about.items() if key != "device"]
    out += [
        "",
        "Times are medians with intervals of 95%, in µs a call. What they mean: docs/benchmarks/method.md.",
        "Speed-up is the fastest rival's time over ours. Eager: ours / fastest rival, on the host's clock.",
        "",
        "## Summary",
        "",
        *_table(_COLUMNS, [cells(row) for row in compare(results)]),
    ]
    for series, group in itertools.groupby(results.shapes, key=lambda s: s.shape.series):
        out += ["", f"## {series}", "", *_series(list(group))]
    notes = list(_notes(results))
    if notes:
        out += ["", "## Not measured, or not compared", "", *notes]
    return "\n".join(out) + "\n"


def _series(group: list[ShapeResult]) -> Iterator[str]:
    """Yield a table of all times of shapes that differ in size only."""
    axis = group[0].shape.axis
    names = [n for n in group[0].subjects if any(_measured(r.subjects.get(n)) for r in group)]
    header = [axis, *map(_shorter, names), "floor", "empty kernel", "eager torch op", "sets"]
    body = []
    for result in group:
        times = [_both(result.subjects.get(name)) for name in names]
        sets = f"{result.sets}, {'cold' if result.cold else 'cached'}"
        body.append([str(result.shape.size), *times, *map(_plain, (result.floor, result.empty, result.dispatch)), sets])
    yield from _table(header, body)


def _measured(measured: Measured | None) -> bool:
    return measured is not None and (measured.device is not None or measured.eager is not None)


def _both(measured: Measured | None) -> str:
    """Return the device's and the eager time of a subject, and what is wrong with them."""
    if measured is None or not _measured(measured):
        return "–" if measured is None else measured.status
    mark = "" if measured.status == RIGHT else f" ({measured.status})"
    if measured.device is not None and measured.device.method != "graph":
        mark += f" ({measured.device.method})"
    times = [interval(t.estimate) for t in (measured.device,) if t is not None]
    times += [f"eager {number(t.estimate.value)}" for t in (measured.eager,) if t is not None]
    return ", ".join(times) + mark


def _notes(results: Results) -> Iterator[str]:
    """Yield each reason why a subject has no time, or one that isn't compared, with the shapes that it holds for."""
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for result in results.shapes:
        for name, m in result.subjects.items():
            if m.status != RIGHT or m.detail:
                reasons.setdefault((name, m.status, " ".join(m.detail.split())), []).append(result.shape.label)
    for (name, status, detail), labels in reasons.items():
        where = labels[0] if len(labels) == 1 else f"{len(labels)} shapes"
        yield f"- {name}, {where}: {status}: {detail}"


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(header) + " |"
    yield "|" + " --- |" * len(header)
    for row in body:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def _shorter(name: str) -> str:
    """Return a subject's name without its op, which the shape tells."""
    library, _, rest = name.partition(":")
    return library + "".join(rest.partition("@")[1:])


def _flat(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _time(rival: Rival | None) -> str:
    return "–" if rival is None else interval(rival.timing.estimate)


def _short(rival: Rival | None) -> str:
    return "–" if rival is None else number(rival.timing.estimate.value)


def _plain(timing: Timing | None) -> str:
    return "–" if timing is None else number(timing.estimate.value)
