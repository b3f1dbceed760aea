"""Shows a mutation run in a terminal."""

from __future__ import annotations

import time
from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .engine import Outcome, Watcher
from .judge import DOES_NOT_COMPILE, EQUIVALENT, SURVIVED, Verdict
from .mutant import Mutant
from .report import grouped, percent, score, summary

EVERY = 20.0
"""Seconds between lines where the output is no terminal."""


class ConsoleWatcher(Watcher):
    """Keeps a progress bar, or prints a line now and then, and names survivors as they come.

    Parameters
    ----------
    console : Console
        Where to write.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.counts: Counter[str] = Counter()
        self.total = 0
        self._last = time.monotonic()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=console, transient=True) if console.is_terminal else None
        self._task: TaskID | None = None

    def note(self, text: str) -> None:
        """Print a line."""
        self.console.print(Text(text, style="dim"))

    def start(self, total: int, known: int) -> None:
        """Begin the bar."""
        self.total, self.counts["known"] = total, known
        self.note(f"{total} mutants, {known} of them judged by an earlier run")
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("mutants", total=total, completed=known)

    def judged(self, mutant: Mutant, verdict: Verdict) -> None:
        """Count a verdict; name a survivor."""
        self.counts[verdict.status] += 1
        if verdict.status == SURVIVED:
            self.console.print(Text.assemble(("survived ", "yellow"), (mutant.id, "bold"), f" {mutant.title}"))
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=1, description=self._line())
        elif time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self.console.print(Text(f"{sum(self.counts.values())} of {self.total}: {self._line()}"))

    def _line(self) -> str:
        return ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in self.counts.items() if n)

    def close(self) -> None:
        """Stop the bar."""
        if self._bar is not None:
            self._bar.stop()


def print_outcome(console: Console, outcome: Outcome) -> None:
    """Print a run's score, by file and by operator."""
    figures = summary(outcome)
    for title, groups in (
        ("file", grouped(outcome.verdicts, lambda m: m.file)),
        ("operator", grouped(outcome.verdicts, lambda m: m.operator)),
    ):
        table = Table(box=None, pad_edge=False)
        for column in (title, "mutants", "killed", "survived", "equivalent", "not compiled", "score"):
            table.add_column(column, justify="left" if column == title else "right")
        for name, pairs in groups.items():
            count = Counter("killed" if v.dead else v.status for _, v in pairs)
            cells = [str(count[s]) for s in ("killed", SURVIVED, EQUIVALENT, DOES_NOT_COMPILE)]
            table.add_row(name, str(len(pairs)), *cells, percent(score(pairs)))
        console.print(table)
    checks = ", ".join(f"{name} {count}" for name, count in figures["checks"].items())
    console.print(Text(f"killed by: {checks or 'nothing'}"))
    for text in (*(f"stale: {s}" for s in outcome.stale), *(f"not equivalent: {r}" for r in outcome.refuted)):
        console.print(Text(text, style="bold red"))
    console.print(
        f"score {percent(figures['score'])} of {figures['mutants']} mutants in {outcome.seconds:.0f} s"
        + (f"; {outcome.untried} not tried" if outcome.untried else "")
    )
