"""The command line: `moeproof fuzz`, `subjects`, `doctor`, `replay`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moeproof import __version__

from . import corpus
from .bench.command import bench
from .config import Config, ConfigError
from .explain.command import explain
from .gate.command import gate
from .history.command import HistoryOption, where
from .history.command import app as history_app
from .lanes.command import lanes
from .ledger.command import LedgerOption
from .ledger.command import app as ledger_app
from .messages import USAGE, usage, warn
from .mutate.command import mutate
from .nightly.command import nightly
from .report.command import report
from .sanitize.command import sanitize
from .subject import OUTPUTS, Subject, SubjectError, Unavailable, all_subjects, find, plugin_problems

CLEAN, FINDINGS = 0, 1

app = typer.Typer(
    name="moeproof",
    help="Prove or break mixture-of-experts routing kernels. Exit codes: 0 clean, 1 findings, 2 usage or environment.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Names of subjects and folders may hold brackets: nothing that is printed is markup.
_out = Console(soft_wrap=True, markup=False)

SubjectOption = Annotated[
    list[str] | None,
    typer.Option("--subject", "-s", help="Subject: a name, family, pattern, or FILE.py:NAME. Repeatable."),
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="Folder of findings, corpus and logs.")]


def _version(value: bool) -> None:
    if value:
        _out.print(f"moeproof {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass


@app.command()
def fuzz(
    subject: SubjectOption = None,
    op: Annotated[list[str] | None, typer.Option(help="Only subjects of this op. Repeatable.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Time to fuzz. Default: 60, unless --cases is given.")] = None,
    cases: Annotated[int | None, typer.Option(help="Cases for each subject.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of generation. Default: a new one, printed.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that fuzz side by side.")] = 1,
    out: OutOption = Path(".moeproof"),
    corpus_folder: Annotated[
        list[Path] | None, typer.Option("--corpus", help="Further corpus folder to replay first. Repeatable.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Only shapes of one model preset.")] = None,
    max_elements: Annotated[int | None, typer.Option(help="Largest number of elements in a tensor.")] = None,
    perturb: Annotated[bool, typer.Option(help="Run some cases on a GPU again under load, poison and delay.")] = True,
    case_seconds: Annotated[float, typer.Option(help="Watchdog limit of one case.")] = 30.0,
    reduce_seconds: Annotated[float, typer.Option(help="Time limit of one reduction.")] = 20.0,
    ledger: LedgerOption = None,
    history: HistoryOption = None,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML to write, a test case for each subject.")] = None,
    summary_file: Annotated[Path | None, typer.Option("--summary", help="Summary to write, in Markdown.")] = None,
) -> None:
    """Generate hard cases, judge them exactly, shrink what fails to a script, keep it.

    Without --subject: own kernels on a GPU where there is one, otherwise everything that runs on a CPU.
    """
    from .console import LiveConsole, print_summary
    from .coordinator import run
    from .events import JsonLines
    from .history.errors import HistoryError
    from .ledger import LedgerError, folders_of, read
    from .sinks import sinks

    chosen = tuple(subject or _default_subjects())
    for name in op or ():
        if name not in OUTPUTS:
            raise usage(f"op is {name!r}; allowed: {', '.join(OUTPUTS)}")
    if preset is not None:
        from moeproof.strategies.presets import PRESETS

        names = [p.name for p in PRESETS]
        if preset not in names:
            raise usage(f"preset is {preset!r}; allowed: {', '.join(sorted(names))}")
    start = int.from_bytes(os.urandom(4), "big") if seed is None else seed
    if seconds is None and cases is None:
        seconds = 60.0
    try:
        ops = sorted({s.op for s in find(chosen)})
        if op and not set(op) & set(ops):
            raise usage(f"op is {', '.join(op)}; allowed for {', '.join(chosen)}: {', '.join(ops)}")
        listed = read(ledger) if ledger is not None else None
        config = Config(
            subjects=chosen,
            ops=tuple(op or ()),
            seconds=seconds,
            cases=cases,
            seed=start,
            workers=workers,
            out=out,
            corpus=tuple(corpus_folder or ()),
            known=folders_of(listed),
            preset=preset,
            max_elements=max_elements,
            perturb=perturb,
            case_seconds=case_seconds,
            reduce_seconds=reduce_seconds,
        )
        log = JsonLines(out / "events.jsonl")
    except (ConfigError, LedgerError, SubjectError) as error:
        raise usage(str(error)) from error
    except OSError as error:
        raise usage(f"out is {str(out)!r}, which can't be written: {error}; allowed: a writable folder") from error
    _out.print(f"moeproof {__version__}, seed {start}, subjects {', '.join(chosen)}")
    # A scheduler that ends a job sends SIGTERM first: what was found is to be in the summary then too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = LiveConsole(_out, seconds)
    try:
        with sinks(history=where(history, out), spool=out, junit=junit, summary=summary_file, tell=warn) as further:
            summary = run(config, [console, log, *further], listed)
    except (ConfigError, HistoryError) as error:
        raise usage(str(error)) from error
    except OSError as error:
        raise usage(f"out is {str(out)!r}: {error}") from error
    finally:
        console.close()
        log.close()
    print_summary(_out, summary)
    raise typer.Exit(summary.exit_code())


app.command("bench")(bench)
app.command("explain")(explain)
app.command("gate")(gate)
app.command("lanes")(lanes)
app.command("mutate")(mutate)
app.command("nightly")(nightly)
app.command("report")(report)
app.add_typer(history_app, name="history")
app.add_typer(ledger_app, name="ledger")
app.command("sanitize")(sanitize)


@app.command("subjects")
def list_subjects(
    pattern: Annotated[list[str] | None, typer.Argument(help="Names, families or patterns. Default: all.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the subjects that are known, and what each claims."""
    try:
        found = find(pattern) if pattern else all_subjects()
    except SubjectError as error:
        raise usage(str(error)) from error
    if json_output:
        data = [{"name": s.name, "op": s.op, "device": s.device, "order": s.order, "bitwise": s.bitwise} for s in found]
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for column in ("subject", "op", "device", "promises"):
        table.add_column(column, overflow="fold")
    for s in found:
        table.add_row(s.name, s.op, s.device, ", ".join(_promises(s)))
    _out.print(table)


def _promises(subject: Subject) -> list[str]:
    promises = []
    if subject.op == "moe_align_block_size":
        promises += [f"{subject.order} order", f"-1: {subject.minus_one}"]
    if subject.bitwise:
        promises.append("repeatable")
    if subject.op == "fused_gate" and subject.batch_invariant:
        promises.append("batch invariant")
    if subject.capturable:
        promises.append("graph capture")
    if subject.refuses:
        promises.append("refuses bad input")
    return promises


@app.command()
def doctor() -> None:
    """Say what this machine can run, and what is missing."""
    from .doctor import checks

    failed = False
    for check in checks():
        mark, colour = {True: ("ok", "green"), False: ("missing", "yellow"), None: ("broken", "red")}[check.ok]
        failed |= check.ok is None
        _out.print(Text.assemble((f"{mark:8}", colour), f"{check.name}: {check.detail}"))
    for problem in plugin_problems():
        failed = True
        _out.print(Text.assemble(("broken  ", "red"), f"entry point {problem}"))
    raise typer.Exit(USAGE if failed else CLEAN)


@app.command()
def replay(
    paths: Annotated[list[str], typer.Argument(help="Finding ids, finding folders, case files, or folders of them.")],
    subject: SubjectOption = None,
    out: OutOption = Path(".moeproof"),
    case_seconds: Annotated[float, typer.Option(help="Watchdog limit of one case.")] = 30.0,
) -> None:
    """Run kept cases again, with every check, on the subjects that they were found in or on others."""
    from .replaying import Replay, replay_paths

    files = []
    for path in paths:
        candidates = [Path(path), out / "findings" / path]
        place = next((p for p in candidates if os.path.exists(p)), None)
        if place is None:
            raise usage(f"path is {path!r}; allowed: a finding id below {out / 'findings'}, a case file or a folder")
        files += list(corpus.case_files([place]))
    if not files:
        raise usage(f"no case files below {', '.join(paths)}")
    failed = ran = 0
    problems = 0
    try:
        chosen = find(subject) if subject else None
        for result in replay_paths(files, chosen, case_seconds):
            ran += result.status in (Replay.PASSED, Replay.FAILED)
            failed += result.status is Replay.FAILED
            problems += result.status is Replay.PROBLEM
            colour = {Replay.PASSED: "green", Replay.FAILED: "red"}.get(result.status, "yellow")
            _out.print(Text.assemble((f"{result.status.value:8}", colour), f"{result.subject} on {result.path}"))
            for line in result.lines:
                _out.print(Text(f"        {line}"))
    except KeyboardInterrupt:
        raise usage(f"interrupted after {ran} replays, {failed} of them failed") from None
    except (SubjectError, Unavailable) as error:
        raise usage(str(error)) from error
    _out.print(f"{ran} replayed, {failed} failed, {problems} could not be run")
    raise typer.Exit(FINDINGS if failed else USAGE if problems or not ran else CLEAN)


def _default_subjects() -> list[str]:
    import torch

    if torch.cuda.is_available():
        # Not their variants, which are slower: with delays, and on the CPU.
        return [f"own:{op}" for op in OUTPUTS]
    return ["numpy", "torch", "numba", "own:*@simt"]


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
