"""What a run has covered: sizes, patterns, flags, dispatch paths and expert counts, counted by subject."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from moeproof.strategies.case import Case
from moeproof.strategies.domain import AppendDomain, Domain
from moeproof.strategies.labels import labels

EXPERTS = {
    "1-8": range(1, 9),
    "9-32": range(9, 33),
    "33-64": range(33, 65),
    "65-128": range(65, 129),
    "129-256": range(129, 257),
    "257-512": range(257, 513),
    "513-1024": range(513, 1025),
    "1025-4096": range(1025, 4097),
}
"""Ranges of E that are reported apart: a warp, a block and the routers of released models lie in one each."""
_SPLIT_AT = {"patterns": "+", "layout": "+", "flags": "+", "sizes": " ", "dtypes": " "}
"""What separates the parts of a label; a label of another kind has one part."""


class Coverage:
    """Counts of the labels of the cases that one subject has run.

    Attributes
    ----------
    cases, rows : int
        How many of each.
    counts : dict of str to Counter
        By kind of label, how often each value came up.
    experts : dict of str to Counter
        By key of `EXPERTS`, ``cases``, ``rows`` and ``failed`` cases inside the subject's domain.
    """

    def __init__(self) -> None:
        self.cases = 0
        self.rows = 0
        self.counts: dict[str, Counter[str]] = {}
        self.experts: dict[str, Counter[str]] = {}

    def add(self, case: Case, rows: int, path: str, *, failed: bool = False, refusal: bool = False) -> None:
        """Count a case; one that must be refused counts for no number of experts."""
        self.cases += 1
        self.rows += rows
        found = dict(labels(case))
        if path:
            found["path"] = path
        for kind, value in found.items():
            for part in value.split(_SPLIT_AT[kind]) if kind in _SPLIT_AT else [value]:
                self._count(kind, part)
        bucket = None if refusal else _bucket(case)
        if bucket is not None:
            self.experts.setdefault(bucket, Counter()).update(cases=1, rows=rows, failed=int(failed))

    def merge(self, data: dict[str, Any]) -> None:
        """Add counts in the form of `to_json`."""
        self.cases += data["cases"]
        self.rows += data["rows"]
        for mine, theirs in ((self.counts, data["counts"]), (self.experts, data["experts"])):
            for kind, counts in theirs.items():
                mine.setdefault(kind, Counter()).update(counts)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON data."""
        counts = {kind: dict(c.most_common()) for kind, c in self.counts.items()}
        experts = {bucket: dict(c) for bucket, c in self.experts.items()}
        return {"cases": self.cases, "rows": self.rows, "counts": counts, "experts": experts}

    def _count(self, kind: str, part: str) -> None:
        # A pattern's special value is a kind of its own: the pairs of both are too many to read, or to store.
        pattern = re.fullmatch(r"(\w+)\((\S+) (\w+)\)", part) if kind == "patterns" else None
        if pattern is not None:
            self._count(kind, pattern[1])
            kind, part = "specials", f"{_special(pattern[2])} in {pattern[3]}"
        self.counts.setdefault(kind, Counter())[part] += 1


def expert_buckets(domain: Domain) -> list[str]:
    """Return the keys of `EXPERTS` in which a domain has a number of experts."""
    if isinstance(domain, AppendDomain):
        return list(EXPERTS)
    return [name for name, bucket in EXPERTS.items() if any(e in domain.experts for e in bucket)]


def _bucket(case: Case) -> str | None:
    experts = case.params.get("num_experts", case.main.shape[-1] if case.main.shape else 0)
    return next((name for name, bucket in EXPERTS.items() if experts in bucket), None)


def _special(value: str) -> str:
    """Return the class of a special value: ids other than -1 differ with every E."""
    if value in ("nan", "inf", "-inf", "-1"):
        return value
    return "id < -1" if value.startswith("-") else "some id"
