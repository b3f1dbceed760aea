"""The parity matrix: op × subject × number of experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from moeproof.verify.coverage import EXPERTS
from moeproof.verify.history.record import RunRecord

from .words import op_order, subject_order

STATUSES = {
    "failing": "a check failed in the latest run that had such cases",
    "recovered": "no check failed in the latest run that had such cases; one failed before",
    "passing": "no check has failed",
    "untested": "the subject claims to support it, and no case has been run",
    "outside": "outside the subject's declared domain",
}
"""What a cell of the matrix can say."""


@dataclass
class Cell:
    """One subject at a range of E.

    Attributes
    ----------
    status : str
        A key of `STATUSES`.
    cases, rows, failed : int
        Over all runs of the report.
    """

    status: str = "outside"
    cases: int = 0
    rows: int = 0
    failed: int = 0


@dataclass
class Line:
    """One subject in the matrix.

    Attributes
    ----------
    subject, version, device : str
        As the latest run tells them.
    unavailable : str
        Why the latest run could not run it, or left it out.
    cells : list of Cell
        In the order of `EXPERTS`.
    cases, rows : int
        Over all runs of the report, outside cases included.
    """

    subject: str
    version: str = ""
    device: str = ""
    unavailable: str = ""
    cells: list[Cell] = field(default_factory=lambda: [Cell() for _ in EXPERTS])
    cases: int = 0
    rows: int = 0


@dataclass
class OpMatrix:
    """The lines of one op."""

    op: str
    lines: list[Line]


def matrices(runs: Sequence[RunRecord]) -> list[OpMatrix]:
    """Return the parity matrix of some runs, by op; runs are in the order of time."""
    by_op: dict[str, dict[str, Line]] = {}
    for run in runs:
        for subject in run.subjects.values():
            line = by_op.setdefault(subject.op or "unknown op", {}).setdefault(subject.name, Line(subject.name))
            line.version, line.device = subject.version or line.version, subject.device or line.device
            line.unavailable = subject.unavailable
            line.cases += subject.cases
            line.rows += subject.rows
            for bucket, cell in zip(EXPERTS, line.cells, strict=True):
                counts = subject.experts.get(bucket)
                if counts:
                    _add(cell, counts)
                elif bucket in subject.domain and cell.status == "outside":
                    cell.status = "untested"
    return [
        OpMatrix(op, [lines[name] for name in sorted(lines, key=subject_order)])
        for op, lines in sorted(by_op.items(), key=lambda item: op_order(item[0]))
    ]


def _add(cell: Cell, counts: dict[str, int]) -> None:
    failed = counts.get("failed", 0)
    cell.status = "failing" if failed else "recovered" if cell.failed else "passing"
    cell.cases += counts.get("cases", 0)
    cell.rows += counts.get("rows", 0)
    cell.failed += failed
