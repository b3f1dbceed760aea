"""Shows a run in a terminal: live progress while it lasts, a summary at its end."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from .coordinator import Summary
from .events import Event
from .violation import SEVERITY

COLOURS = {"critical": "bold red", "high": "red", "medium": "yellow", "low": "cyan"}
SHOWN = 6
"""Values of a kind of label that the summary lists."""


class LiveConsole:
    """Reader of the event stream that keeps a few lines up to date in a terminal, or prints a line now and then.

    Parameters
    ----------
    console : Console
        Where to write.
    summary : Summary
        Takes in each event before this reader does.
    seconds : float, optional
        The time that was asked for.
    job : str
        Name of the command, and what the panel says while cases run.
    """

    EVERY = 10.0
    """Seconds between lines where the output is no terminal."""

    def __init__(self, console: Console, seconds: float | None, job: str = "fuzz") -> None:
        self.console = console
        self.job = job
        self.seconds = seconds
        self.summary = Summary()
        self.doing = "starting"
        self._told_of_building = False
        self._last = time.monotonic()
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        if self._live is not None:
            self._live.start()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        self.summary(event)
        data = event.data
        if event.kind in ("finding", "known") and data.get("listed"):
            self.console.print(
                Text(f"listed  {data['identity']}  {data['title']}\n        {data['listed']}", style="dim")
            )
        elif event.kind == "finding":
            colour = COLOURS[data["severity"]]
            self.console.print(Text.assemble(("finding ", colour), (data["identity"], "bold"), f"  {data['title']}"))
            self.console.print(Text(f"        {data['message']}\n        {data['folder']}", style="dim"))
        elif event.kind == "known":
            self.console.print(Text(f"known   {data['identity']}  {data['title']}"))
        elif event.kind == "unavailable":
            self.console.print(Text(f"skipped {data['subject']}: {data['reason']}", style="dim"))
        elif event.kind == "note":
            self.console.print(Text(f"note    {data['text']}", style="bold red" if data.get("error") else "dim"))
        elif event.kind == "reducing":
            self.doing = f"reducing a {data['check']} failure of {data['subject']}"
        elif event.kind == "building":
            if not self._told_of_building:
                self._told_of_building = True
                text = "note    compiles what is not in the cache yet; the time to fuzz does not run meanwhile"
                self.console.print(Text(text, style="dim"))
            self.doing = f"compiling {data['what']}"
        elif event.kind == "progress":
            self.doing = "replaying kept cases" if self.summary.replaying else f"{self.job} runs"
        if self._live is not None:
            self._live.update(self._panel())
        elif time.monotonic() - self._last >= self.EVERY:
            self._last = time.monotonic()
            self.console.print(Text(self._line()))

    def close(self) -> None:
        """Stop the live display."""
        if self._live is not None:
            self._live.stop()

    def _line(self) -> str:
        s = self.summary
        spent = max(s.seconds, 1e-9)
        runs = self.seconds and not s.replaying
        left = f", {max(0.0, (self.seconds or 0.0) - s.seconds):.0f} s left" if runs else ""
        return (
            f"{s.cases} cases ({s.cases / spent:.0f}/s), {s.rows} rows ({s.rows / spent:.0f}/s), "
            f"{len(s.findings)} findings{left}; {self.doing}"
        )

    def _panel(self) -> Panel:
        classes: dict[str, int] = {}
        for finding in self.summary.findings.values():
            classes[finding["check"]] = classes.get(finding["check"], 0) + 1
        found = ", ".join(f"{n} {c}" for c, n in sorted(classes.items())) or "none"
        return Panel(Group(Text(self._line()), Text(f"findings: {found}")), title=f"moeproof {self.job}", width=100)


def print_summary(console: Console, summary: Summary) -> None:
    """Print what a run covered and found."""
    table = Table(title="covered", title_justify="left", box=None, pad_edge=False)
    for column in ("subject", "cases", "rows", "failures", "dispatch paths"):
        table.add_column(column, justify="right" if column in ("cases", "rows") else "left", overflow="fold")
    for name, coverage in sorted(summary.subjects.items()):
        failures = ", ".join(f"{n} {c}" for c, n in summary.failures[name].most_common()) or "-"
        paths = _top(coverage.counts.get("path", {}))
        table.add_row(name, str(coverage.cases), str(coverage.rows), failures, paths)
    console.print(table)
    merged: dict[str, dict[str, int]] = {}
    for coverage in summary.subjects.values():
        for kind, counts in coverage.counts.items():
            for value, count in counts.items():
                merged.setdefault(kind, {})[value] = merged.setdefault(kind, {}).get(value, 0) + count
    for kind, total in sorted(merged.items()):
        if kind != "path":
            console.print(Text(f"  {kind}: {_top(total)}", style="dim"))
    for name, reason in sorted(summary.unavailable.items()):
        console.print(Text(f"not run: {name}: {reason}", style="yellow"))
    for error in summary.errors:
        console.print(Text(f"error: {error}", style="bold red"))
    spent = max(summary.seconds, 1e-9)
    console.print(
        f"{summary.cases} cases ({summary.cases / spent:.0f}/s), {summary.rows} rows ({summary.rows / spent:.0f}/s) "
        f"in {summary.seconds:.1f} s, and {summary.reducing:.1f} s reducing"
        + (f", {summary.building:.1f} s compiling" if summary.building else "")
        + ("; interrupted, everything is kept" if summary.interrupted else "")
    )
    if not summary.findings:
        console.print("no findings" if summary.subjects else "nothing could run")
        return
    order = list(COLOURS)
    rows = sorted(summary.findings.values(), key=lambda f: (order.index(SEVERITY[f["check"]]), f["identity"]))
    for finding in rows:
        colour = COLOURS[finding["severity"]]
        state = "listed" if finding.get("listed") else "known" if finding["known"] else "new"
        console.print(Text.assemble((finding["severity"], colour), f" {finding['check']} ({state}) {finding['title']}"))
        console.print(Text(f"    {finding['folder']}/repro.py", style="dim"))


def _top(counts: Any) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    text = ", ".join(f"{value} {count}" for value, count in ordered[:SHOWN])
    return text + (f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else "") or "-"
