"""`moeproof nightly`: run lanes on every GPU of this machine until the time is up."""

from __future__ import annotations

import importlib.util
import os
import signal
from dataclasses import replace
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

from .layout import REDIS_VARIABLE

if TYPE_CHECKING:
    from .results import Verdict
    from .supervisor import Night

SECONDS = 8 * 3600.0
_out = Console(soft_wrap=True, markup=False, highlight=False)


def nightly(
    lanes: Annotated[Path, typer.Option("--lanes", help="Lanes file.")] = DEFAULT,
    lane: Annotated[list[str] | None, typer.Option("--lane", help="Only this lane. Repeatable.")] = None,
    seconds: Annotated[
        float | None,
        typer.Option(min=1, max=1e7, help="Time from start to end. Default: the unfinished run's, else 8 hours."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of state, findings, corpus and reports.")] = Path(
        ".moeproof/nightly"
    ),
    history: HistoryOption = None,
    ledger: LedgerOption = None,
    redis: Annotated[
        str | None,
        typer.Option(
            envvar=REDIS_VARIABLE, show_envvar=True, help="Redis that shares examples. Default: by lanes file."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Workers in all. Default: by GPUs.")] = None,
    workers_per_gpu: Annotated[
        int | None, typer.Option(min=1, max=64, help="Workers on each GPU. Default: up to 4, by cores.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of a new run. Default: another each time.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start anew where an unfinished run could go on.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Only go on with an unfinished run, if any.")] = False,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML. Default: OUT/junit.xml.")] = None,
    summary_file: Annotated[Path | None, typer.Option("--summary", help="Default: OUT/summary.md.")] = None,
) -> None:
    """Replay the corpus, then fuzz by lanes until the time is up; run again with the same --out to go on.

    Exit codes: 0 nothing new, 1 new findings, 2 usage, or a fault of the harness.
    """
    from moeproof.verify.history.errors import HistoryError
    from moeproof.verify.lanes.reader import LanesError, load_lanes, pick
    from moeproof.verify.ledger import LedgerError, read

    from .examples import ExamplesError, chain
    from .plan import default_workers, devices
    from .supervisor import Night, NightlyError, Request, unfinished

    if importlib.util.find_spec("xdist") is None:
        raise usage("pytest-xdist is not installed; allowed with it: pip install 'moeproof[nightly]'")
    if fresh and resume:
        raise usage("fresh and resume are both given; allowed: one of them")
    before = unfinished(out)
    if resume and before is None:
        _out.print(f"{out} holds no run that was cut short")
        raise typer.Exit(0)
    try:
        found = load_lanes(lanes)
        if redis:
            found = replace(found, examples=replace(found.examples, redis=redis))
        chain(out / "examples", found.examples, print)
        known = ledger or found.ledger
        listed = read(known) if known is not None else None
        gpus = devices()
        request = Request(
            lanes=found,
            chosen=pick(found, lane or ()),
            seconds=seconds or (before.seconds if before is not None and not fresh else SECONDS),
            out=out,
            workers=workers or default_workers(len(gpus), workers_per_gpu),
            devices=gpus,
            seed=int.from_bytes(os.urandom(4), "big") if seed is None else seed,
            fresh=fresh,
        )
        night = Night(request, listed)
    except (ExamplesError, LanesError, LedgerError, NightlyError) as error:
        raise usage(str(error)) from error
    files = {"junit": junit or out / "junit.xml", "summary": summary_file or out / "summary.md"}
    # A scheduler that ends a job sends SIGTERM first: what was found is to be in the reports then too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        verdict = _lead(night, where(history, out), files)
    except HistoryError as error:
        raise usage(str(error)) from error
    except OSError as error:
        raise usage(f"out is {str(out)!r}: {error}; allowed: a writable folder") from error
    except KeyboardInterrupt:
        raise usage("interrupted while reports were written; run it again with the same --out") from None
    finally:
        night.close()
    raise typer.Exit(verdict.exit_code)


def _lead(night: Night, history: str, files: dict[str, Path]) -> Verdict:
    """Run a night with its reports, and print what it came to."""
    from moeproof.verify.console import LiveConsole, print_summary
    from moeproof.verify.sinks import sinks

    from .results import judge, promote, to_json, write_page, write_results
    from .supervisor import EVENTS

    run, request, out = night.run, night.request, night.request.out
    left = max(0.0, request.seconds - run.spent)
    place = f"GPUs {', '.join(request.devices)}" if request.devices else "the CPU"
    _out.print(
        f"moeproof {__version__}, nightly run {run.id}, seed {run.seed}: {len(night.units)} units of "
        f"{len(request.chosen)} lanes, {request.workers} workers on {place}"
    )
    if night.resumed:
        _out.print(f"goes on where it was cut short: {left:.0f} s of {request.seconds:.0f} s are left")
    console = LiveConsole(_out, left, "nightly")
    try:
        with sinks(history=history, spool=out, junit=files["junit"], summary=files["summary"], tell=warn) as further:
            night.work([console, *further])
            verdict = judge(night.summary, night.failing)
            night.end({"exit": verdict.exit_code, "errors": verdict.errors})
    finally:
        console.close()
    results = to_json(verdict, night.summary, night.store.slices(run.id), night.units)
    write_results(out / "result.json", {"run": run.id, "name": run.name, "seed": run.seed, **results})
    kept = promote(out, verdict, request.lanes.corpus)
    write_page(out / "report.html", history, night.folder / EVENTS)
    night.finish()
    print_summary(_out, night.summary)
    for test in verdict.failing:
        _out.print(Text(f"fails: {test}", style="red"))
    if kept:
        _out.print(f"{len(kept)} cases are ready to be committed: {out / 'promote' / 'README.md'}")
    _out.print(
        f"{len(verdict.new)} new findings, {len(verdict.known)} reported before, {len(verdict.listed)} in the ledger; "
        f"{out / 'report.html'}"
    )
    if night.summary.interrupted:
        _out.print("interrupted: run it again with the same --out, and it goes on")
    return verdict
