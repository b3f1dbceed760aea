"""What a run has covered: sizes, patterns, flags and dispatch paths, counted by subject."""

from __future__ import annotations

from collections import Counter
from typing import Any

from moeproof.strategies.case import Case
from moeproof.strategies.labels import labels


class Coverage:
    """Counts of the labels of the cases that one subject has run.

    Attributes
    ----------
    cases, rows : int
        How many of each.
    counts : dict of str to Counter
        By kind of label, how often each value came up.
    """

    def __init__(self) -> None:
        self.cases = 0
        self.rows = 0
        self.counts: dict[str, Counter[str]] = {}

    def add(self, case: Case, rows: int, path: str) -> None:
        """Count a case."""
        self.cases += 1
        self.rows += rows
        found = dict(labels(case))
        if path:
            found["path"] = path
        for kind, value in found.items():
            counter = self.counts.setdefault(kind, Counter())
            for part in value.split("+"):
                counter[part] += 1

    def merge(self, data: dict[str, Any]) -> None:
        """Add counts in the form of `to_json`."""
        self.cases += data["cases"]
        self.rows += data["rows"]
        for kind, counts in data["counts"].items():
            self.counts.setdefault(kind, Counter()).update(counts)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON data."""
        counts = {kind: dict(c.most_common()) for kind, c in self.counts.items()}
        return {"cases": self.cases, "rows": self.rows, "counts": counts}
