"""The command `moeproof bench`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from moeproof.verify.messages import usage, warn

if TYPE_CHECKING:
    from moeproof.verify.subject import Subject

    from .results import Results, ShapeResult
    from .shapes import Shape

CLEAN, WRONG_RESULT = 0, 1
MAX_CPU_SCORES = 1 << 18
"""Largest T·E of the suites' shapes that is measured on a CPU."""

_out = Console(soft_wrap=True, markup=False)


def bench(
    suite: Annotated[list[str] | None, typer.Option(help="Suite of shapes. Repeatable. Default: all.")] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Instead of suites: OP:KEY=VALUE,… as in gate:E=256/384,T=1. Repeatable."),
    ] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option(
            "--subject",
            "-s",
            help="Subject: a name, family, pattern, or FILE.py:NAME. Repeatable. Default: own, torch, libraries.",
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Time to aim at for the whole run.")] = 240.0,
    rounds: Annotated[int, typer.Option(help="Samples of each time, at most.")] = 30,
    seed: Annotated[int | None, typer.Option(help="Seed of contents and orders. Default: a new one, printed.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu. Default: cuda where there is one.")] = None,
    skewed: Annotated[bool, typer.Option("--skewed", help="Ids that follow a power law (align, append).")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for JSON, Markdown and plots.")] = None,
    compare: Annotated[Path | None, typer.Option(help="JSON of an older run to compare with.")] = None,
) -> None:
    """Measure kernels side by side: device time by graph replay, and eager time, with intervals.

    Each result is judged before it is timed. Exit code 1: a result of an own kernel was wrong, or it failed.
    """
    import dataclasses

    import torch

    from moeproof.verify.subject import SubjectError, find

    from . import report
    from .analysis import compare as compare_rows
    from .analysis import compare_at
    from .results import FAILED, WRONG, Results, ResultsError
    from .runner import BenchError, Runner, default_subjects, runs_on
    from .session import Settings
    from .shapes import NAMES, ShapeError, parse
    from .shapes import suite as shapes_of

    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if place not in ("cuda", "cpu"):
        raise usage(f"device is {place!r}; allowed: cuda, cpu")
    if place == "cuda" and not torch.cuda.is_available():
        raise usage(f"device is 'cuda', and torch {torch.__version__} sees none; allowed here: cpu")
    if rounds < 1 or seconds <= 0:
        raise usage(f"rounds is {rounds} and seconds is {seconds}; allowed: at least 1, and more than 0")
    try:
        if suite and shape:
            raise usage("both --suite and --shape are given; allowed: one of them")
        shapes: list[Shape] = [s for text in shape for s in parse(text)] if shape else shapes_of(suite or [])
        old = None if compare is None else Results.loads(compare.read_text(encoding="utf-8"))
        chosen: list[Subject] = find(subject) if subject else default_subjects(place)
    except (ShapeError, SubjectError, ResultsError) as error:
        raise usage(str(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise usage(f"compare is {str(compare)!r}: {error}; allowed: a JSON file of moeproof bench") from error
    if skewed:
        shapes = [dataclasses.replace(s, skewed=s.op != "gate") for s in shapes]
    elsewhere = [s.name for s in chosen if not runs_on(s, place)]
    chosen = [s for s in chosen if runs_on(s, place)]
    if not chosen:
        raise usage(f"subject is {elsewhere[0]!r}, which runs on another device; allowed: one for {place}")
    if elsewhere:
        warn(f"left out, for they don't run on {place}: {', '.join(elsewhere)}")
    ops = {s.op for s in chosen}
    shapes = [s for s in shapes if NAMES[s.op] in ops]
    if place == "cpu" and not shape:
        small = [s for s in shapes if s.tokens * s.experts <= MAX_CPU_SCORES]
        _out.print(f"{len(shapes) - len(small)} shapes are too large for a CPU and left out; --shape measures any")
        shapes = small
    if not shapes:
        raise usage(f"no shape is of an op of the subjects; these are of {', '.join(sorted(ops))}")
    _check_out(out)
    start = int.from_bytes(os.urandom(4), "big") if seed is None else seed
    _out.print(f"{len(shapes)} shapes, {len(chosen)} subjects, on {place}, seed {start}")

    def show(results: Results, result: ShapeResult) -> None:
        _out.print(report.line(compare_at(results, result)))

    try:
        with Runner(chosen, Settings(place, rounds, start)) as runner:
            results = runner.run(shapes, seconds=seconds, each=show)
    except BenchError as error:
        raise usage(str(error)) from error
    except KeyboardInterrupt:
        raise usage("interrupted") from None
    rows = compare_rows(results)
    _out.print()
    # A pipe is 80 wide for rich, and cells would be cut there.
    Console(width=None if _out.is_terminal else 180).print(report.console_table(rows))
    if out is not None:
        _write(results, out)
    if old is not None:
        _show_changes(results, old)
    own = {name for name, family in results.families.items() if family == "own"}
    bad = [r for r in results.shapes for n, m in r.subjects.items() if n in own and m.status in (WRONG, FAILED)]
    raise typer.Exit(WRONG_RESULT if bad else CLEAN)


def _check_out(out: Path | None) -> None:
    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise usage(f"out is {str(out)!r}: {error}; allowed: a writable folder") from error


def _write(results: Results, out: Path) -> None:
    from moeproof.verify.files import write_text

    from .plot import PlotError, plot
    from .report import markdown

    write_text(out / "bench.json", results.dumps())
    write_text(out / "bench.md", markdown(results))
    try:
        plots = plot(results, out)
    except PlotError as error:
        warn(f"no plots: {error}")
    else:
        _out.print(f"written: {out / 'bench.json'}, {out / 'bench.md'}, {len(plots)} plots")


def _show_changes(results: Results, old: Results) -> None:
    from .against import changes
    from .report import interval

    if old.environment.get("device") != results.environment.get("device"):
        warn(f"the older run is of another device: {old.environment.get('device')}")
    found = list(changes(results, old))
    _out.print(f"\nNew time over old, {len(found)} times in both runs; control: the floor, or a small torch operation:")
    for change in found:
        colour = {"faster": "green", "slower": "red"}.get(change.verdict, "")
        control = "" if change.control is None else f", control {interval(change.control)}"
        text = f"{change.label}  {change.subject}  {change.clock}  {interval(change.ratio)}{control}"
        _out.print(Text.assemble((f"{change.verdict:7}", colour), text))
