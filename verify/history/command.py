"""The commands `moeproof history list`, `show` and `import`."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moeproof.verify.messages import usage

if TYPE_CHECKING:
    from .record import RunRecord
    from .store import History

FILE = "history.db"
"""Name of the SQLite file in a run's folder."""

_out = Console(soft_wrap=True, markup=False)

HistoryOption = Annotated[
    str | None,
    typer.Option(
        "--history",
        envvar="MOEPROOF_HISTORY",
        show_envvar=True,
        help="Database of runs: a path (SQLite) or postgresql://USER@HOST/DATABASE. Default: history.db in the folder "
        "of --out.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder of the default database.")]

app = typer.Typer(help="Show and fill the database of runs.", no_args_is_help=True)


@app.command("list")
def list_runs(
    history: HistoryOption = None,
    out: OutOption = Path(".moeproof"),
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="How many runs, the latest.")] = 20,
    job: Annotated[str | None, typer.Option(help="Only runs of one job: fuzz, bench, …")] = None,
    subject: Annotated[str | None, typer.Option("--subject", "-s", help="Only runs with this subject.")] = None,
    json_output: JsonOption = False,
) -> None:
    """List runs, the latest last."""
    with _opened(history, out) as database:
        runs = database.runs(last=last, job=job, subject=subject)
    if json_output:
        _print_json([_brief(run) for run in runs])
        return
    table = Table(box=None, pad_edge=False)
    for name in ("run", "started", "job", "status", "exit", "cases", "rows", "findings", "timings", "host"):
        right = name in ("exit", "cases", "rows", "findings", "timings")
        table.add_column(name, justify="right" if right else "left", overflow="fold", no_wrap=name == "run")
    for run in runs:
        table.add_row(*_cells(run))
    _out.print(table)
    if not runs:
        _out.print("no runs")


@app.command()
def show(
    run: Annotated[str, typer.Argument(help="The beginning of a run's id, or 'last'.")] = "last",
    history: HistoryOption = None,
    out: OutOption = Path(".moeproof"),
    json_output: JsonOption = False,
) -> None:
    """Show one run: its subjects, findings and notes."""
    with _opened(history, out) as database:
        found = database.runs(last=1) if run == "last" else database.find(run)
    if len(found) != 1:
        some = ", ".join(r.id[:12] for r in found[:5])
        detail = f"{len(found)} runs begin with it: {some}" if found else "no run begins with it"
        raise usage(f"run is {run!r}: {detail}; allowed: what `moeproof history list` names, or 'last'")
    if json_output:
        _print_json(_full(found[0]))
        return
    _show(found[0])


@app.command("import")
def import_files(
    files: Annotated[list[Path], typer.Argument(help="events.jsonl, spools of a lost history, bench.json.")],
    history: HistoryOption = None,
    out: OutOption = Path(".moeproof"),
) -> None:
    """Add runs from files; a run that is there already, with as much of it, is left as it is."""
    from .files import RunFileError, read_runs

    try:
        runs = [run for path in files for run in read_runs(path)]
    except RunFileError as error:
        raise usage(str(error)) from error
    with _opened(history, out, create=True) as database:
        for run in runs:
            added = database.add(run)
            _out.print(f"{'added' if added else 'there already'}: {run.id}, {run.job}, {_when(run.started)}")


def where(history: str | None, out: Path) -> str:
    """Return the history that is meant: what was asked for, or the file in a run's folder."""
    return history or str(out / FILE)


@contextlib.contextmanager
def _opened(history: str | None, out: Path, *, create: bool = False) -> Iterator[History]:
    from .errors import HistoryError, libraries_needed

    place = where(history, out)
    try:
        with libraries_needed(place):
            from .store import History

            database = History(place, create=create)
        try:
            yield database
        finally:
            database.close()
    except HistoryError as error:
        raise usage(str(error)) from error


def _cells(run: RunRecord) -> list[str]:
    brief = _brief(run)
    names = ("status", "exit", "cases", "rows", "findings", "timings", "host")
    numbers = ["-" if brief[name] is None else str(brief[name]) for name in names]
    return [run.id[:12], _when(run.started), run.job, *numbers]


def _brief(run: RunRecord) -> dict[str, Any]:
    """Return a run's line of the list as JSON data."""
    return {
        "id": run.id,
        "job": run.job,
        "started": run.started,
        "ended": run.ended,
        "status": run.status(time.time()),
        "exit": run.exit,
        "seconds": round(run.seconds, 3),
        "cases": run.cases,
        "rows": run.rows,
        "findings": len(run.findings),
        "timings": len(run.timings),
        "host": str(run.details.get("host", "")),
        "revision": str(run.details.get("revision", "")),
    }


def _full(run: RunRecord) -> dict[str, Any]:
    """Return all of a run as JSON data."""
    subjects = {name: asdict(subject) for name, subject in run.subjects.items()}
    rest = {"details": run.details, "notes": run.notes, "timings": run.timings}
    return {**_brief(run), "subjects": subjects, "findings": list(run.findings.values()), **rest}


def _show(run: RunRecord) -> None:
    for name, value in _brief(run).items():
        text = _when(value) if name in ("started", "ended") and value is not None else str(value)
        _out.print(Text.assemble((f"{name:10}", "bold"), "-" if value is None else text))
    table = Table(box=None, pad_edge=False)
    for name in ("subject", "device", "version", "cases", "rows", "failed checks"):
        table.add_column(name, justify="right" if name in ("cases", "rows") else "left", overflow="fold")
    for s in sorted(run.subjects.values(), key=lambda s: s.name):
        failed = s.unavailable or ", ".join(f"{count} {check}" for check, count in s.failures.items()) or "-"
        table.add_row(s.name, s.device, s.version, str(s.cases), str(s.rows), failed)
    if run.subjects:
        _out.print(table)
    for finding in run.findings.values():
        _out.print(Text(f"{finding['severity']} {finding['check']} {finding['identity']} {finding['title']}"))
    for timing in run.timings:
        time_ = timing["status"] if timing["median"] is None else f"{timing['median']:.4g} µs"
        _out.print(Text(f"{timing['shape']}  {timing['subject']}  {time_}"))
    for note in run.notes:
        _out.print(Text(f"{'error' if note['error'] else 'note'}: {note['text']}"))


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _print_json(data: Any) -> None:
    sys.stdout.write(json.dumps(data, indent=2) + "\n")
