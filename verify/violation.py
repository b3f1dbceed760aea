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
    "unwritten": "part of an output is never written, or memory is read that nothing has written",
    "guard_zone": "memory outside the outputs is written, or memory outside the arguments read",
    "input_modified": "an input, or memory beside it, is written",
    "nondeterminism": "two runs on the same input differ, though the subject promises they don't",
    "batch_variance": "a row's result depends on other rows",
    "layout_variance": "the same values give another result where they lie elsewhere in memory",
    "dtype_variance": "the same values give another result in another dtype",
    "label_variance": "experts that are numbered otherwise get other rows",
    "perturbation": "the result depends on what else the GPU does, or on what others have left in its memory",
    "cuda_error": "a launch fails, the CUDA context is lost, or the process dies",
    "hang": "no result within the time limit, or threads that wait for each other",
    "race": "two threads access the same memory, and nothing orders them",
    "domain": "it refuses what it claims to support, or accepts what it claims to refuse",
    "graph_replay": "a captured graph, replayed with new inputs, gives another result than a plain call",
    "fake_op": "the fake implementation gives other shapes, dtypes or strides than the real one",
    "memcheck": "memory outside an allocation, or at a misaligned address, is accessed",
    "racecheck": "threads race for shared memory",
    "initcheck": "device memory is read that nothing has written",
    "synccheck": "a barrier is not reached by all of its threads",
}
"""Check classes and what each one means when it fails."""

SEVERITY = {
    "guard_zone": "critical",
    "input_modified": "critical",
    "cuda_error": "critical",
    "hang": "critical",
    "race": "critical",
    "memcheck": "critical",
    "ids_invalid": "high",
    "selection": "high",
    "weights": "high",
    "align_layout": "high",
    "unwritten": "high",
    "graph_replay": "high",
    "perturbation": "high",
    "racecheck": "high",
    "initcheck": "high",
    "synccheck": "high",
    "nan_policy": "medium",
    "nondeterminism": "medium",
    "batch_variance": "medium",
    "layout_variance": "medium",
    "dtype_variance": "medium",
    "label_variance": "medium",
    "tie_order": "medium",
    "domain": "medium",
    "fake_op": "low",
}

SANITIZERS = ("memcheck", "racecheck", "initcheck", "synccheck")
"""Check classes that need compute-sanitizer; they bear the names of its tools."""


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
    extras : tuple of str
        Names of the further checks under which it showed; empty for a failure of the case itself.
    """

    check: str
    message: str
    rows: tuple[int, ...] = ()
    count: int = 1
    extras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.check not in CHECKS:
            raise ValueError(f"check is {self.check!r}; allowed: {', '.join(CHECKS)}")

    @property
    def meaning(self) -> str:
        """What the failure means, in a few words."""
        if self.check == "cuda_error":
            pending = self.message.startswith(PENDING)
            return "a launch fails, and its error comes out of a later call" if pending else LOST
        return CHECKS[self.check]

    def to_json(self) -> dict[str, Any]:
        """Return the violation as JSON data."""
        return asdict(self) | {"rows": list(self.rows), "extras": list(self.extras)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Violation:
        """Read a violation from JSON data."""
        return cls(data["check"], data["message"], tuple(data["rows"]), data["count"], tuple(data.get("extras", ())))


VARIANCES = ("batch_variance", "layout_variance", "dtype_variance", "label_variance")
"""Check classes of which not the case fails but a variant of it."""
PENDING = "the launch failed, and the error came out of a later call; the process goes on"
"""Start of the message of a `cuda_error` that costs no context."""
LOST = "the CUDA context is lost, or the process dies"
"""What any other `cuda_error` means."""
MAX_ROWS = 64
"""How many failing rows a violation lists."""


class ReportedError(RuntimeError):
    """Raised by a subject that has itself seen which check fails.

    Attributes
    ----------
    violation : Violation
        How.
    """

    def __init__(self, violation: Violation) -> None:
        self.violation = violation
        super().__init__(violation.message)
