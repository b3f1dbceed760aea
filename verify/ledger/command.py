"""`moeproof ledger`: check a ledger, or add to it."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from moeproof.verify.messages import usage

LedgerOption = Annotated[
    Path | None, typer.Option("--ledger", help="Known findings (TOML): only what is not listed fails. Default: none.")
]
app = typer.Typer(help="Keep the list of known findings true.", no_args_is_help=True)
_out = Console(soft_wrap=True, markup=False, highlight=False)


@app.command()
def check(
    ledger: Annotated[Path, typer.Argument(help="The ledger, a TOML file.")],
    case_seconds: Annotated[float, typer.Option(help="Watchdog limit of one case.")] = 30.0,
) -> None:
    """Run each entry's case again; fail on an entry that no longer happens.

    Exit codes: 0 all that could be checked are there, 1 an entry is gone, 2 a bad ledger, or nothing could be checked.
    """
    from .check import Checker, Status
    from .entries import LedgerError, read

    counts = dict.fromkeys(Status, 0)
    colours = {Status.THERE: "green", Status.GONE: "red", Status.PROBLEM: "red", Status.UNCHECKED: "yellow"}
    try:
        for done in Checker(case_seconds).check(read(ledger)):
            counts[done.status] += 1
            head = (f"{done.status.value:12}", colours[done.status])
            _out.print(Text.assemble(head, f"{done.entry.identity}  {done.entry.library}: {done.entry.title}"))
            if done.detail:
                _out.print(Text(f"            {done.detail}"))
    except LedgerError as error:
        raise usage(str(error)) from error
    except KeyboardInterrupt:
        raise usage(f"interrupted after {sum(counts.values())} entries, {counts[Status.GONE]} of them gone") from None
    _out.print(
        ", ".join(f"{count} {status.value.lower()}" for status, count in counts.items() if count) or "no entries"
    )
    if counts[Status.GONE]:
        raise typer.Exit(1)
    nothing = counts[Status.UNCHECKED] and not counts[Status.THERE]
    raise typer.Exit(2 if counts[Status.PROBLEM] or nothing else 0)


@app.command()
def add(
    folder: Annotated[Path, typer.Argument(help="A finding's folder.")],
    ledger: Annotated[Path, typer.Option("--ledger", "-l", help="The ledger; made if missing.")],
    reason: Annotated[str, typer.Option(help="Why it stays known. This or --upstream is needed.")] = "",
    upstream: Annotated[str, typer.Option(help="Where it is reported.")] = "",
    title: Annotated[str | None, typer.Option(help="What happens, one line. Default: the finding's title.")] = None,
    version: Annotated[
        str | None, typer.Option(help="Versions that have it, such as '>=0.4,<0.5'. Default: the one it was seen with.")
    ] = None,
) -> None:
    """List a finding as known. Its folder is copied beside the ledger unless it is there."""
    from .entries import LedgerError, append

    today = datetime.date.today()
    try:
        entry = append(ledger, folder, reason=reason, upstream=upstream, version=version, title=title, date=today)
    except LedgerError as error:
        raise usage(str(error)) from error
    except OSError as error:
        raise usage(f"ledger is {str(ledger)!r}: {error}; allowed: a writable file") from error
    _out.print(f"{entry.identity} ({entry.library} {entry.version or 'of any version'}) is listed, with {entry.folder}")
