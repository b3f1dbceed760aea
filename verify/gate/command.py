"""`moeproof gate`: a verdict on a change."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from moeproof import __version__
from moeproof.verify.history.command import HistoryOption, where
from moeproof.verify.lanes.command import DEFAULT
from moeproof.verify.ledger.command import LedgerOption
from moeproof.verify.messages import usage, warn

if TYPE_CHECKING:
    from .git import Checkout
    from .run import Request
    from .selection import Touched
    from .verdict import Outcome

SECONDS = 600.0
_out = Console(soft_wrap=True, markup=False, highlight=False)


def gate(
    base: Annotated[str, typer.Option("--base", help="Revision to merge into, such as origin/main.")],
    lanes: Annotated[Path, typer.Option("--lanes", help="Lanes file.")] = DEFAULT,
    lane: Annotated[list[str] | None, typer.Option("--lane", help="Only this lane. Repeatable.")] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Only this check of the lanes. Repeatable.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of findings, logs and result.json.")] = Path(
        ".moeproof/gate"
    ),
    seconds: Annotated[
        float, typer.Option(min=5, max=1e6, help="Time to aim at; cases are cut short by it.")
    ] = SECONDS,
    cases: Annotated[int | None, typer.Option(min=1, help="Generated cases of each subject.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed. Default: the lane's, the same every time.")] = None,
    threshold: Annotated[
        str | None, typer.Option(help="Slow-down that fails, such as 3%. Default: the lane's.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="What this machine can't run is left to another, and fails nothing.")
    ] = False,
    ledger: LedgerOption = None,
    history: HistoryOption = None,
    summary_file: Annotated[Path | None, typer.Option("--summary", help="Summary to write, in Markdown.")] = None,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML to write.")] = None,
    sarif: Annotated[Path | None, typer.Option(help="SARIF 2.1.0 to write.")] = None,
) -> None:
    """Test and time the kernels that a change touches; run it in the checkout, uncommitted changes included.

    Exit codes: 0 pass, 1 fail, 2 usage, environment, or a fault of the harness.
    """
    from moeproof.verify.config import ConfigError
    from moeproof.verify.events import JsonLines
    from moeproof.verify.history.errors import HistoryError
    from moeproof.verify.lanes.reader import LanesError, load_lanes, pick
    from moeproof.verify.lanes.schema import CHECKS
    from moeproof.verify.ledger import LedgerError, read
    from moeproof.verify.sinks import sinks, try_file

    from .git import GitError, checkout
    from .run import Gate, Request
    from .selection import SelectionError, touched

    for name in only or ():
        if name not in CHECKS:
            raise usage(f"only is {name!r}; allowed: {', '.join(CHECKS)}")
    files = {"summary": summary_file, "junit": junit, "sarif": sarif}
    # A scheduler that ends a job sends SIGTERM first: folders are removed, reports written then too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        import torch

        cuda = torch.cuda.is_available()
        # The change first: nothing else is worth reading where there is none.
        found = checkout(base, Path.cwd())
        declared = load_lanes(lanes)
        request = Request(
            lanes=declared,
            chosen=pick(declared, lane or ()),
            out=out,
            seconds=seconds,
            seed=seed,
            cases=cases,
            threshold=None if threshold is None else _percent(threshold),
            only=tuple(only or ()),
            partial=partial,
            cuda=cuda,
        )
        _check_shapes(request)
        known = ledger or declared.ledger
        listed = read(known) if known is not None else None
        hit = touched(found, declared, request.chosen, cuda=cuda)
        _show(found, hit)
        for name, path in files.items():
            if path is not None:
                try_file(name, path)
        log = JsonLines(out / "events.jsonl")
        with sinks(history=where(history, out), spool=out, junit=None, summary=None, tell=warn) as further:
            outcome = Gate(request, found, hit, [log, *further], listed, _tell).run()
        log.close()
        _write(outcome, out, files)
    except (ConfigError, GitError, HistoryError, LanesError, LedgerError, SelectionError) as error:
        raise usage(str(error)) from error
    except OSError as error:
        raise usage(f"out is {str(out)!r}: {error}; allowed: a writable folder") from error
    except KeyboardInterrupt:
        raise usage("interrupted") from None
    _print(outcome)
    raise typer.Exit(outcome.code)


def _percent(text: str) -> float:
    try:
        value = float(text.strip().removesuffix("%"))
    except ValueError:
        value = float("nan")
    if not 0.1 <= value <= 1000:
        raise usage(f"threshold is {text!r}; allowed: percent from 0.1 to 1000, such as 3%")
    return value


def _check_shapes(request: Request) -> None:
    """Refuse shapes that can't be read before anything runs."""
    from moeproof.verify.bench.shapes import ShapeError, parse

    for lane in request.chosen:
        for text in lane.shapes:
            try:
                parse(text)
            except ShapeError as error:
                raise usage(f"lane {lane.name!r}: shapes: {error}") from error


def _show(found: Checkout, hit: list[Touched]) -> None:
    _out.print(
        f"moeproof {__version__}, {found.head[:12]}{' with uncommitted changes' if found.dirty else ''} against "
        f"{found.base[:12]} ({found.asked}): {len(found.changed)} files changed"
    )
    for t in hit:
        runs = "not on this machine" if t.runs is None else "" if t.runs is t.subject else f"tested as {t.runs.name}"
        _out.print(f"  {t.subject.name}: {t.why}{f'; {runs}' if runs else ''}")
    if not hit:
        _out.print("no kernel of the lanes is touched: only the harness itself is tried")


def _write(outcome: Outcome, out: Path, files: dict[str, Path | None]) -> None:
    from moeproof.verify.files import write_text

    from .reports import junit, markdown
    from .sarif import sarif, workflow_commands

    write_text(out / "result.json", json.dumps(outcome.to_json(), indent=2) + "\n")
    for name, render in (("summary", markdown), ("junit", junit), ("sarif", sarif)):
        path = files[name]
        if path is not None:
            write_text(path, render(outcome))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        sys.stdout.write("".join(f"{line}\n" for line in workflow_commands(outcome)))


def _print(outcome: Outcome) -> None:
    colours = {"passed": "green", "failed": "red", "error": "red", "skipped": "yellow"}
    for check in outcome.checks:
        head = (f"{check.status:8}", colours[check.status])
        _out.print(Text.assemble(head, f"{check.subject}  {check.name}  {check.detail}".rstrip()))
    for reason in (*outcome.failures, *outcome.doubts):
        _out.print(Text(f"    {reason}", style="red"))
    _out.print(Text(outcome.headline, style={"pass": "green"}.get(outcome.verdict, "bold red")))


def _tell(text: str) -> None:
    _out.print(Text(text, style="dim"))
