"""What a gate has come to: checks, findings, speed, and the verdict with its reasons."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from moeproof import __version__

from .git import Checkout
from .rule import SLOWER, Ratio
from .selection import Touched
from .speed import Speed

PASSED, FAILED, SKIPPED, BROKEN = "passed", "failed", "skipped", "error"
CODES = {"pass": 0, "fail": 1, "error": 2}


@dataclass(frozen=True)
class Check:
    """One check of one subject.

    Attributes
    ----------
    subject, name : str
        What was checked, and for what.
    status : str
        `PASSED`, `FAILED`, `SKIPPED` (it does not apply, or can't run here) or `BROKEN` (the harness failed).
    detail : str
        One sentence.
    told : bool
        Findings or speeds say why it failed.
    """

    subject: str
    name: str
    status: str
    detail: str = ""
    told: bool = False


@dataclass
class Outcome:
    """All that a gate has found.

    Attributes
    ----------
    checkout : Checkout
        What was gated.
    touched : list of Touched
        What the change touches.
    seed : int
        Of all that was drawn.
    device : str
        Where it ran.
    checks : list of Check
    findings : dict of str to dict
        Findings by identity, as `coordinator.Summary` has them.
    speeds : list of Speed
    notes, errors : list of str
        What a person should know; faults of the harness.
    partial : bool
        What can't run on this machine is left to another one.
    interrupted : bool
        Ctrl-C or SIGTERM ended it.
    seconds : float
        How long it took.
    """

    checkout: Checkout
    touched: list[Touched]
    seed: int
    device: str
    checks: list[Check] = field(default_factory=list)
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    speeds: list[Speed] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    partial: bool = False
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def open(self) -> list[dict[str, Any]]:
        """Findings that no ledger lists."""
        return [f for f in self.findings.values() if not f.get("listed")]

    @property
    def slower(self) -> list[Speed]:
        """What has become slower."""
        return [s for s in self.speeds if s.change == SLOWER]

    @property
    def failures(self) -> list[str]:
        """Why the change must not be merged."""
        why = [f"{f['check']}: {f['title']}" for f in self.open]
        why += [f"speed: {s.subject} is {percent(s.ratio)} slower at {s.shape} ({s.clock} clock)" for s in self.slower]
        untold = (c for c in self.checks if c.status == FAILED and not c.told)
        return why + [f"{c.name}: {c.subject}: {c.detail}" for c in untold]

    @property
    def untested(self) -> list[Touched]:
        """What the change touches and nothing was run of."""
        ran = {c.subject for c in self.checks if c.status in (PASSED, FAILED)}
        return [t for t in self.touched if t.runs is None or t.runs.name not in ran]

    @property
    def doubts(self) -> list[str]:
        """Why there is no verdict."""
        why = list(self.errors)
        why += [f"{c.name}: {c.subject}: {c.detail}" for c in self.checks if c.status == BROKEN]
        if self.interrupted:
            why.append("it was interrupted")
        if self.untested and len(self.untested) == len(self.touched) and not self.partial:
            names = ", ".join(t.subject.name for t in self.untested)
            why.append(f"nothing of what the change touches can run on this machine ({names}); see --partial")
        return why

    @property
    def verdict(self) -> str:
        """``"pass"``, ``"fail"``, or ``"error"`` where it can't be told."""
        return "fail" if self.failures else "error" if self.doubts else "pass"

    @property
    def code(self) -> int:
        """The exit status."""
        return CODES[self.verdict]

    @property
    def headline(self) -> str:
        """The verdict in one sentence."""
        if self.verdict == "fail":
            return f"fail: {_count(len(self.failures), 'reason')}"
        if self.verdict == "error":
            return f"no verdict: {self.doubts[0].strip().splitlines()[-1]}"
        if not self.touched:
            return "pass: no kernel is touched; the harness works"
        tested = len(self.touched) - len(self.untested)
        words = [f"{_count(tested, 'touched subject')} tested"] if tested else []
        if self.speeds:
            words.append(f"no slow-down in {_count(len(self.speeds), 'comparison')}")
        elif any(c.name == "speed" and c.status == SKIPPED for c in self.checks):
            words.append("speed not compared")
        if self.untested:
            words.append(f"{_count(len(self.untested), 'subject')} left to a machine that can run them")
        return f"pass: {', '.join(words)}"

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON data."""
        made = self.checkout
        return {
            "moeproof": __version__,
            "verdict": self.verdict,
            "exit": self.code,
            "headline": self.headline,
            "failures": self.failures,
            "doubts": self.doubts,
            "base": {"asked": made.asked, "commit": made.base},
            "head": {"commit": made.head, "dirty": made.dirty},
            "changed": list(made.changed),
            "seed": self.seed,
            "device": self.device,
            "seconds": round(self.seconds, 1),
            "touched": [
                {
                    "lane": t.lane.name,
                    "subject": t.subject.name,
                    "runs": None if t.runs is None else t.runs.name,
                    "files": t.files,
                }
                for t in self.touched
            ],
            "checks": [vars(c) for c in self.checks],
            "findings": [_brief(f) for f in self.findings.values()],
            "speed": [_speed_json(s) for s in self.speeds],
            "notes": self.notes,
        }


def percent(ratio: Ratio) -> str:
    """Return a change in words, with its interval."""
    value, low, high = (abs(100 * (x - 1)) for x in (ratio.ratio.value, ratio.ratio.low, ratio.ratio.high))
    return f"{value:.1f}% ({min(low, high):.1f} to {max(low, high):.1f})"


def signed(ratio: Ratio) -> str:
    """Return a change with its sign, and its interval."""
    return f"{100 * (ratio.ratio.value - 1):+.1f}% ({_plus(ratio.ratio.low)} to {_plus(ratio.ratio.high)})"


def _plus(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _brief(finding: dict[str, Any]) -> dict[str, Any]:
    dropped: Iterable[str] = ("script", "case", "worker")
    return {name: value for name, value in finding.items() if name not in dropped}


def _speed_json(speed: Speed) -> dict[str, Any]:
    def one(ratio: Ratio) -> dict[str, Any]:
        return {
            "ratio": [round(x, 5) for x in (ratio.ratio.value, ratio.ratio.low, ratio.ratio.high)],
            "noise": [round(x, 5) for x in (ratio.noise.value, ratio.noise.low, ratio.noise.high)],
            "candidate_us": round(ratio.candidate, 4),
            "base_us": round(ratio.baseline, 4),
            "rounds": ratio.rounds,
        }

    return {
        "subject": speed.subject,
        "shape": speed.shape,
        "clock": speed.clock,
        "change": speed.change,
        "threshold": speed.first.threshold,
        **one(speed.first),
        "again": None if speed.second is None else one(speed.second),
    }
