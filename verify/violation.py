"""The classes of checks, and what a failed check reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

CHECKS = {
    "ids_invalid": "ids are out of range, repeated, or not what a shared or padded place holds",
    "nan_policy": "a NaN score outranks another, or a NaN reaches an output",
    "selection": "an expert is chosen, or placed, before one with a certainly higher score",
    "tie_order": "experts with equal scores are not ordered by id",
    "weights": "a weight differs from the score of its expert by more than float32 rounding explains",
    "align_layout": "blocks, padding or counts break the contract of moe_align_block_size",
    "unwritten": "part of an output is never written",
    "guard_zone": "memory outside the outputs is written",
    "input_modified": "an input, or memory beside it, is written",
    "nondeterminism": "two runs on the same input differ, though the subject promises they don't",
    "batch_variance": "a row's result depends on other rows",
    "cuda_error": "the launch fails, or the process dies",
    "hang": "no result within the time limit",
    "domain": "it refuses what it claims to support, or accepts what it claims to refuse",
    "graph_replay": "a captured graph, replayed with new inputs, gives another result than a plain call",
    "fake_op": "the fake implementation gives other shapes, dtypes or strides than the real one",
}
"""Check classes and what each one means when it fails."""

SEVERITY = {
    "guard_zone": "critical",
    "input_modified": "critical",
    "cuda_error": "critical",
    "hang": "critical",
    "ids_invalid": "high",
    "selection": "high",
    "weights": "high",
    "align_layout": "high",
    "unwritten": "high",
    "graph_replay": "high",
    "nan_policy": "medium",
    "nondeterminism": "medium",
    "batch_variance": "medium",
    "tie_order": "medium",
    "domain": "medium",
    "fake_op": "low",
}


@dataclass(frozen=True)
class Violation:
    """One failed check of one run.

    Attributes
    ----------
    check : str
        A key of `CHECKS`.
    message : str
        One or a few lines: what came out, what should have, where.
    rows : tuple of int
        The first rows that fail, at most `MAX_ROWS`; empty where rows have no meaning.
    count : int
        How many rows fail.
    """

    check: str
    message: str
    rows: tuple[int, ...] = ()
    count: int = 1

    def __post_init__(self) -> None:
        if self.check not in CHECKS:
            raise ValueError(f"check is {self.check!r}; allowed: {', '.join(CHECKS)}")

    def to_json(self) -> dict[str, Any]:
        """Return the violation as JSON data."""
        return asdict(self) | {"rows": list(self.rows)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Violation:
        """Read a violation from JSON data."""
        return cls(data["check"], data["message"], tuple(data["rows"]), data["count"])


MAX_ROWS = 64
"""How many failing rows a violation lists."""
