"""What a lanes file may hold: its tables and keys, and which values each takes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from moeproof.strategies.presets import PRESETS
from moeproof.verify.subject import OUTPUTS

CHECKS = {
    "corpus": "kept cases are replayed",
    "fuzz": "cases are generated, judged and reduced; graph replay, opcheck and batch invariance run on a sample",
    "tests": "the lane's own test files run under pytest with the `nightly` Hypothesis profile",
    "sanitize": "a sample of cases runs under compute-sanitizer",
    "simt": "the kernels' sources run on the SIMT executor",
    "bench": "speed is measured",
    "parity": "every reference agrees on a fixed, seeded set of cases",
    "batch_invariance": "rows keep their results in batches on both sides of each dispatch threshold",
    "graph_replay": "a captured graph is replayed with new inputs",
    "opcheck": "torch.library's own checks of an op",
}
ANY_PRESET = "any"
"""Stands for shapes of every kind in a list of presets."""


@dataclass(frozen=True)
class Examples:
    """Where Hypothesis examples are shared.

    Attributes
    ----------
    redis : str
        URL of a Redis that several machines share; empty for none.
    github : str
        ``OWNER/REPOSITORY`` whose artifact is read; empty for none.
    artifact : str
        Name of that artifact.
    """

    redis: str = ""
    github: str = ""
    artifact: str = "moeproof-examples"


@dataclass(frozen=True)
class Lane:
    """What one part of a nightly run or a gate tests, and how much of the time it gets.

    Attributes
    ----------
    name : str
        Its name in the file.
    subjects : tuple of str
        What `subject.find` takes.
    ops : tuple of str
        Only subjects of these ops; empty for all.
    presets : tuple of str
        Model presets whose shapes are drawn, and `ANY_PRESET` for shapes of every kind.
    checks : tuple of str
        Some of `CHECKS`.
    tests : tuple of str
        Test files for the check ``tests``.
    paths : tuple of str
        Patterns of files that its subjects depend on, besides those that their sources tell: a gate tests them
        when one changes.
    shapes : tuple of str
        What a gate measures, as `bench.shapes.parse` takes it; empty for the usual.
    weight : float
        Its share of the time, relative to the other lanes.
    seconds, cases : float and int, optional
        Budgets: of the lane, and of each subject. Without them the lane lasts as long as the run.
    slice_seconds : float
        How long a worker stays with one subject at a time.
    seed : int
        Seed of runs that must repeat exactly.
    max_elements, case_seconds, reduce_seconds
        As in `Config`.
    speed_percent : float
        Threshold: a kernel slower by more than this fails.
    """

    name: str
    subjects: tuple[str, ...]
    ops: tuple[str, ...] = ()
    presets: tuple[str, ...] = (ANY_PRESET,)
    checks: tuple[str, ...] = ("corpus", "fuzz")
    tests: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    weight: float = 1.0
    seconds: float | None = None
    cases: int | None = None
    slice_seconds: float = 60.0
    seed: int = 0
    max_elements: int | None = None
    case_seconds: float = 30.0
    reduce_seconds: float = 20.0
    speed_percent: float = 5.0


@dataclass(frozen=True)
class Lanes:
    """A lanes file, checked.

    Attributes
    ----------
    path : Path
        The file.
    lanes : tuple of Lane
        In the file's order.
    corpus : tuple of Path
        Corpus folders that are replayed first.
    ledger : Path, optional
        Ledger of known findings.
    examples : Examples
        Shared example databases.
    """

    path: Path
    lanes: tuple[Lane, ...]
    corpus: tuple[Path, ...] = ()
    ledger: Path | None = None
    examples: Examples = field(default_factory=Examples)


@dataclass(frozen=True)
class Key:
    """A key of the file: a test of its value, and the test in words."""

    good: Callable[[object], bool]
    allowed: str


def _number(low: float, high: float, *, whole: bool = False) -> Key:
    kinds = (int,) if whole else (int, float)

    def good(value: object) -> bool:
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high

    return Key(good, f"{'a whole number' if whole else 'a number'} from {low:g} to {high:g}")


def _text(words: str) -> Key:
    return Key(lambda value: isinstance(value, str) and bool(value), words)


def _texts(words: str, *, empty: bool = True) -> Key:
    def good(value: object) -> bool:
        return isinstance(value, list) and all(isinstance(v, str) and v for v in value) and (empty or bool(value))

    return Key(good, words)


def _choices(names: Collection[str]) -> Key:
    def good(value: object) -> bool:
        return isinstance(value, list) and bool(value) and all(isinstance(v, str) and v in names for v in value)

    return Key(good, f"a list of {', '.join(names)}")


LANE_KEYS: dict[str, Key] = {
    "subjects": _texts("a list of subject names, families, patterns or FILE.py[:NAME], at least one", empty=False),
    "ops": _choices(OUTPUTS),
    "presets": _choices((ANY_PRESET, *(p.name for p in PRESETS))),
    "checks": _choices(CHECKS),
    "tests": _texts("a list of test files"),
    "paths": _texts("a list of file patterns, relative to the lanes file, such as '../csrc/**/*.cuh'"),
    "shapes": _texts("a list of OP:KEY=VALUE,… as moeproof bench --shape takes them"),
    "weight": _number(0.001, 1000),
    "seconds": _number(0.1, 1e7),
    "cases": _number(1, 1e9, whole=True),
    "slice_seconds": _number(1, 3600),
    "seed": _number(0, 2**63 - 1, whole=True),
    "max_elements": _number(64, 2**31, whole=True),
    "case_seconds": _number(0.1, 3600),
    "reduce_seconds": _number(0.1, 3600),
}
THRESHOLD_KEYS: dict[str, Key] = {"speed_percent": _number(0.1, 1000)}
EXAMPLES_KEYS: dict[str, Key] = {
    "redis": Key(
        lambda value: isinstance(value, str) and value.startswith(("redis://", "rediss://", "unix://")),
        "a URL that starts with redis://, rediss:// or unix://",
    ),
    "github": Key(
        lambda value: isinstance(value, str) and len([p for p in value.split("/") if p]) == 2 == value.count("/") + 1,
        "OWNER/REPOSITORY",
    ),
    "artifact": _text("the name of an artifact"),
}
FILE_KEYS: dict[str, Key] = {
    "corpus": _texts("a list of folders"),
    "ledger": _text("the path of a ledger file"),
}
