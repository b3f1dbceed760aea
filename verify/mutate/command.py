"""`moeproof mutate`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from moeproof.verify.messages import USAGE, usage

if TYPE_CHECKING:
    from .engine import Plan

CLEAN, BELOW = 0, 1


def mutate(
    paths: Annotated[list[Path], typer.Argument(help="CUDA sources, or their folder.")],
    operator: Annotated[list[str] | None, typer.Option("--op", help="Only this mutation operator. Repeatable.")] = None,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Only this mutant. Repeatable.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Try so many mutants, of every operator.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the cases and of the sample.")] = 0,
    cases: Annotated[int, typer.Option(min=1, help="Generated cases an op, and most cases a mutant.")] = 300,
    seconds: Annotated[float, typer.Option(min=1, help="Longest time for one mutant.")] = 600.0,
    jobs: Annotated[int, typer.Option(min=1, help="Processes side by side.")] = 2,
    floor: Annotated[float, typer.Option(min=0, max=100, help="Fail below this score, in percent.")] = 97.0,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of results and reports.")] = Path(
        ".moeproof/mutation"
    ),
    equivalents: Annotated[
        Path | None, typer.Option(help="List of equivalent mutants. Default: equivalent_mutants.toml beside them.")
    ] = None,
    list_only: Annotated[bool, typer.Option("--list", help="List the mutants and leave.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="With --list: print JSON.")] = False,
) -> None:
    """Plant small faults in CUDA kernels, one at a time, and see which of them fuzzing finds.

    An interrupted run goes on where it was when started again with the same settings.
    """
    from .engine import Plan, select
    from .equivalent import FILE, EquivalentError
    from .judge import JudgeError
    from .operators import OPERATORS
    from .source import SourceError, files_below

    console = Console(soft_wrap=True, markup=False)
    try:
        for name in operator or ():
            if name not in OPERATORS:
                raise SourceError(f"op is {name!r}; allowed: {', '.join(OPERATORS)}")
        files = tuple(files_below(paths))
        listed = equivalents or files[0].parent / FILE
        if equivalents is not None and not equivalents.is_file():
            raise EquivalentError(f"equivalents is {str(equivalents)!r}; allowed: an existing file")
        plan = Plan(files, tuple(operator or ()), tuple(ids or ()), sample, seed, cases, seconds, jobs, out, listed)
        if list_only:
            chosen = select(plan)[2]
            if json_output:
                names = ("id", "file", "line", "function", "operator", "node", "replacement", "ordinal")
                sys.stdout.write(json.dumps([{n: getattr(m, n) for n in names} for m in chosen], indent=1) + "\n")
            else:
                for mutant in chosen:
                    console.print(Text(f"{mutant.id}  {mutant.title}"))
            return
        code = _run(plan, console, floor)
    except (SourceError, EquivalentError, JudgeError, OSError) as error:
        raise usage(str(error)) from error
    raise typer.Exit(code)


def _run(plan: Plan, console: Console, floor: float) -> int:
    from .console import ConsoleWatcher, print_outcome
    from .engine import Engine
    from .report import score, write
    from .simt_judge import SimtJudge

    watcher = ConsoleWatcher(console)
    try:
        outcome = Engine(plan, SimtJudge(), watcher).run()
    finally:
        watcher.close()
    print_outcome(console, outcome)
    console.print(Text(f"report: {write(outcome)[1]}"))
    if outcome.untried:
        return USAGE
    share = score(outcome.verdicts)
    below = share is not None and share * 100 < floor
    if below:
        console.print(Text(f"the score is below the floor of {floor:g}%", style="bold red"))
    return BELOW if below or outcome.stale or outcome.refuted else CLEAN
