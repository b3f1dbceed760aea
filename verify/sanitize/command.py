"""`moeproof sanitize`: subjects under compute-sanitizer."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from moeproof import __version__
from moeproof.verify.history.command import HistoryOption, where
from moeproof.verify.ledger.command import LedgerOption
from moeproof.verify.messages import usage, warn

if TYPE_CHECKING:
    from moeproof.verify.ledger import Ledger

    from .lane import Lane, Work

_out = Console(soft_wrap=True, markup=False, highlight=False)


def sanitize(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Finding ids, finding folders, case files, or folders of them; default: a fresh run."),
    ] = None,
    subject: Annotated[
        list[str] | None,
        typer.Option("--subject", "-s", help="Subject: a name, family, pattern, or FILE.py:NAME. Repeatable."),
    ] = None,
    op: Annotated[list[str] | None, typer.Option(help="Only subjects of this op. Repeatable.")] = None,
    tool: Annotated[
        list[str] | None,
        typer.Option("--tool", "-t", help="memcheck, racecheck, initcheck or synccheck; default: all. Repeatable."),
    ] = None,
    cases: Annotated[int, typer.Option(help="Generated cases for each subject, besides the corpus.")] = 40,
    seed: Annotated[int | None, typer.Option(help="Seed of generation. Default: a new one, printed.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Time to run cases in, without start-up. Default: all.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of findings, corpus and logs.")] = Path(".moeproof"),
    case_seconds: Annotated[float, typer.Option(help="Watchdog limit of one case.")] = 120.0,
    reduce_seconds: Annotated[float, typer.Option(help="Time limit of one reduction.")] = 30.0,
    ledger: LedgerOption = None,
    history: HistoryOption = None,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML to write, a test case for each subject.")] = None,
    summary_file: Annotated[Path | None, typer.Option("--summary", help="Summary to write, in Markdown.")] = None,
) -> None:
    """Run subjects under NVIDIA's compute-sanitizer and turn its reports into findings, one for each defect.

    Without --subject: own kernels. A tool that fails, is killed, or gives no summary is an error, never a pass.
    """
    from moeproof.verify.ledger import LedgerError, read
    from moeproof.verify.subject import OUTPUTS, Unavailable

    from . import tools

    limits = {"cases": (cases, 0, 10**6), "case_seconds": (case_seconds, 1, 3600), "seconds": (seconds, 0.1, 1e7)}
    limits |= {"reduce_seconds": (reduce_seconds, 0.1, 3600), "seed": (seed, 0, 2**63 - 1)}
    for name, (value, low, high) in limits.items():
        if value is not None and not low <= value <= high:
            raise usage(f"{name} is {value}; allowed: {low:g} to {high:g}")
    start = int.from_bytes(os.urandom(4), "big") if seed is None else seed
    try:
        tools.chosen(tool or [])
        listed = read(ledger) if ledger is not None else None
        program = tools.locate()
        release = tools.version(program)
        if paths:
            work = _named(paths, subject, tool or [], out)
        else:
            work = _fresh(subject or [f"own:{name}" for name in OUTPUTS], op or [], tool or [], out, cases, start)
    except (LedgerError, Unavailable, ValueError, OSError) as error:
        raise usage(str(error)) from error
    from .lane import Lane

    lane = Lane(program, tuple(work), out, seconds, case_seconds, reduce_seconds)
    _out.print(f"moeproof {__version__}, compute-sanitizer {release}, seed {start}")
    starts = f"{lane.processes} process{'es' if lane.processes > 1 else ''} to start"
    _out.print(
        f"{starts}, about {tools.START_SECONDS:.0f} s each on an H100, "
        f"for {lane.runs} runs of cases; each report then costs up to {1.5 * reduce_seconds:.0f} s of reduction"
    )
    asked = {"history": where(history, out), "spool": out, "junit": junit, "summary": summary_file}
    raise typer.Exit(_run(lane, start, listed, asked))


def _named(paths: list[str], subject: list[str] | None, names: list[str], out: Path) -> list[Work]:
    """Return the work that findings and case files ask for."""
    from moeproof.verify import corpus
    from moeproof.verify.subject import find

    from .lane import work_of_files

    files: list[Path] = []
    for path in paths:
        place = next((p for p in (Path(path), out / "findings" / path) if os.path.exists(p)), None)
        if place is None:
            allowed = f"a finding id below {out / 'findings'}, a case file or a folder"
            raise ValueError(f"path is {path!r}; allowed: {allowed}")
        files += corpus.case_files([place])
    work = work_of_files(files, find(subject) if subject else None, names)
    if not work:
        raise ValueError(f"no case files below {', '.join(paths)} that the subjects take")
    return work


def _fresh(patterns: list[str], ops: list[str], names: list[str], out: Path, cases: int, seed: int) -> list[Work]:
    """Return the work of a run over the corpus and generated cases."""
    from moeproof.verify import corpus
    from moeproof.verify.subject import OUTPUTS, find

    from .lane import generated_work
    from .tools import chosen

    for name in ops:
        if name not in OUTPUTS:
            raise ValueError(f"op is {name!r}; allowed: {', '.join(OUTPUTS)}")
    found = [s for s in find(patterns) if not ops or s.op in ops]
    subjects = [s for s in found if s.device != "cpu"]
    if not subjects:
        why = "which run on the CPU: there is nothing to check" if found else f"none of them of op {', '.join(ops)}"
        raise ValueError(f"subject is {', '.join(patterns)}, {why}; allowed: subjects that run on a GPU")
    folders = [corpus.SHIPPED, out / "corpus"]
    work, problems = generated_work(subjects, chosen(names), folders=folders, cases=cases, seed=seed)
    for problem in problems:
        warn(f"note: {problem}")
    return work


def _run(lane: Lane, seed: int, listed: Ledger | None, readers: dict[str, Any]) -> int:
    """Run a lane with its readers and return the exit status."""
    from moeproof.verify.console import LiveConsole, print_summary
    from moeproof.verify.coordinator import Summary, tee
    from moeproof.verify.events import Event, JsonLines, environment
    from moeproof.verify.history.errors import HistoryError
    from moeproof.verify.sinks import sinks

    from .lane import LaneRun

    try:
        log = JsonLines(lane.out / "events.jsonl")
    except OSError as error:
        raise usage(f"out is {str(lane.out)!r}, which can't be written: {error}") from error
    summary = Summary()
    console = LiveConsole(_out, lane.seconds, "sanitize")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with sinks(**readers, tell=warn) as further:
            sink = tee(summary, [console, log, *further], listed)
            subjects = list(dict.fromkeys(work.subject.name for work in lane.work))
            asked = {"seconds": lane.seconds, "cases": lane.runs, "seed": seed, "workers": 1, "subjects": subjects}
            sink(Event("start", {"job": "sanitize", **environment(), **asked, "ops": [], "preset": None}))
            try:
                LaneRun(lane, sink).run()
            except KeyboardInterrupt:
                summary.interrupted = True
            # What was cut short has not passed.
            code = summary.exit_code() or (2 if summary.interrupted else 0)
            sink(Event("end", {"exit": code, "interrupted": summary.interrupted, "errors": summary.errors}))
    except HistoryError as error:
        raise usage(str(error)) from error
    except OSError as error:
        raise usage(f"out is {str(lane.out)!r}: {error}") from error
    finally:
        console.close()
        log.close()
    print_summary(_out, summary)
    return code
