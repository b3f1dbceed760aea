"""The command `moeproof report`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from moeproof.verify.history.command import FILE, HistoryOption
from moeproof.verify.messages import usage

if TYPE_CHECKING:
    from moeproof.verify.history.record import RunRecord

_out = Console(soft_wrap=True, markup=False)


def report(
    files: Annotated[
        list[Path] | None, typer.Argument(help="events.jsonl and bench.json files, instead of the history.")
    ] = None,
    history: HistoryOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="HTML page to write.")] = Path("report.html"),
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="How many runs, the latest.")] = 100,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "moeproof report",
    summary: Annotated[Path | None, typer.Option(help="Summary to write besides, in Markdown.")] = None,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML of the latest run to write besides.")] = None,
) -> None:
    """Write a page of runs: parity matrix, findings, coverage, trends, benchmark plots. It needs no network.

    Runs come from the history (default: .moeproof/history.db), or from the files that are named.
    """
    from moeproof.verify import junit as junit_xml
    from moeproof.verify.files import write_text

    from .markdown import summarise
    from .page import render

    runs = _runs(files or [], history, last)
    latest = [run for run in runs if run.job != "bench"] or runs
    texts = {out: lambda: render(runs, title=title)}
    if summary is not None:
        texts[summary] = lambda: summarise(latest[-1:])
    if junit is not None:
        texts[junit] = lambda: junit_xml.render(latest[-1])
    for path, text in texts.items():
        try:
            write_text(path, text())
        except OSError as error:
            raise usage(f"file is {str(path)!r}, which can't be written: {error}; allowed: a writable file") from error
    _out.print(f"{out}: {len(runs)} runs, {sum(len(run.findings) for run in runs)} findings")


def _runs(files: list[Path], history: str | None, last: int) -> list[RunRecord]:
    from moeproof.verify.history.errors import HistoryError, libraries_needed
    from moeproof.verify.history.files import RunFileError, read_runs

    try:
        if files:
            found = {run.id: run for path in files for run in read_runs(path)}
            return sorted(found.values(), key=lambda run: run.started)[-last:]
        place = history or str(Path(".moeproof") / FILE)
        with libraries_needed(place):
            from moeproof.verify.history.store import History

            database = History(place)
        try:
            runs = database.runs(last=last)
        finally:
            database.close()
    except (HistoryError, RunFileError) as error:
        raise usage(str(error)) from error
    if not runs:
        raise usage(f"history is {database}, which holds no runs; allowed: one with runs, or files of events")
    return runs
