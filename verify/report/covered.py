"""Which sizes, patterns, flags and dispatch paths some runs have covered, by op."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from moeproof.verify.history.record import RunRecord

from .words import op_order, size_order, subject_order

DIMENSIONS = {
    "T": "tokens",
    "E": "experts",
    "k": "places a row",
    "G": "expert groups",
    "S": "shared experts",
    "block": "block size",
}
"""Sizes, in the order in which they are shown."""
KINDS = {
    "patterns": "patterns of values",
    "specials": "special values",
    "ties": "classes of ties",
    "flags": "flags and options",
    "dtypes": "dtypes",
    "layout": "memory layouts",
}
"""Kinds of labels that are shown as tables of values by subjects."""


@dataclass
class Table:
    """Cases by value and subject.

    Attributes
    ----------
    kind, title : str
        A key of `KINDS`, and what it means.
    rows : list of (str, list of int)
        Values, each with a count for every subject.
    most : int
        The largest count.
    """

    kind: str
    title: str
    rows: list[tuple[str, list[int]]]
    most: int


@dataclass
class OpCoverage:
    """What was covered of one op.

    Attributes
    ----------
    op : str
        The op.
    subjects : list of str
        Columns of the tables.
    sizes : dict of str to dict
        By key of `DIMENSIONS`, cases by size class, the smallest first.
    tables : list of Table
        One for each kind of label.
    paths : list of (str, list of (str, int))
        Subjects that name dispatch paths, each with its paths and their cases.
    """

    op: str
    subjects: list[str]
    sizes: dict[str, dict[str, int]] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)
    paths: list[tuple[str, list[tuple[str, int]]]] = field(default_factory=list)


def covered(runs: Sequence[RunRecord]) -> list[OpCoverage]:
    """Return what some runs have covered, by op."""
    counts: dict[str, dict[str, dict[str, Counter[str]]]] = {}
    for run in runs:
        for subject in run.subjects.values():
            if subject.cases:
                mine = counts.setdefault(subject.op, {}).setdefault(subject.name, {})
                for kind, values in subject.coverage.items():
                    mine.setdefault(kind, Counter()).update(values)
    return [_of_op(op, counts[op]) for op in sorted(counts, key=op_order)]


def _of_op(op: str, counts: dict[str, dict[str, Counter[str]]]) -> OpCoverage:
    result = OpCoverage(op, sorted(counts, key=subject_order))
    sizes: dict[str, Counter[str]] = {}
    for kinds in counts.values():
        for label, count in kinds.get("sizes", Counter()).items():
            name, _, value = label.partition("=")
            sizes.setdefault(name, Counter())[value] += count
        if "block" in kinds:
            sizes.setdefault("block", Counter()).update(kinds["block"])
    for name in DIMENSIONS:
        if name in sizes:
            result.sizes[name] = dict(sorted(sizes[name].items(), key=lambda item: size_order(item[0])))
    for kind, title in KINDS.items():
        total: Counter[str] = sum((c.get(kind, Counter()) for c in counts.values()), Counter())
        values = sorted(total, key=lambda value: (-total[value], value))
        rows = [(value, [counts[s].get(kind, Counter())[value] for s in result.subjects]) for value in values]
        if rows:
            result.tables.append(Table(kind, title, rows, max(max(row) for _, row in rows)))
    result.paths = [(s, counts[s]["path"].most_common()) for s in result.subjects if "path" in counts[s]]
    return result
