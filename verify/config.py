"""What a run of `moeproof fuzz` is asked to do, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A setting that can't be used; names it, its value and what is allowed."""


@dataclass(frozen=True)
class Config:
    """Settings of a run.

    Attributes
    ----------
    subjects : tuple of str
        What `subject.find` takes.
    ops : tuple of str
        Only subjects of these ops; empty for all.
    seconds : float, optional
        Time to fuzz, without start-up and reduction.
    cases : int, optional
        Cases to run for each subject. At least one of `seconds` and `cases` is given.
    seed : int
        Seed of generation.
    workers : int
        Processes that fuzz side by side.
    out : Path
        Folder of findings, corpus, logs and cases in flight.
    corpus : tuple of Path
        Further corpus folders.
    known : tuple of Path
        Folders of findings that a ledger lists: a case whose reduction is cut short may be one of them.
    preset : str, optional
        Only cases of one model preset.
    max_elements : int, optional
        Largest number of elements in a generated tensor; by device if not given.
    isolate : bool
        Run suspects in child processes.
    perturb : bool
        Some cases on a GPU also run under perturbation.
    case_seconds : float
        Watchdog limit of one case.
    reduce_seconds : float
        Time limit of one reduction.
    """

    subjects: tuple[str, ...]
    ops: tuple[str, ...] = ()
    seconds: float | None = None
    cases: int | None = None
    seed: int = 0
    workers: int = 1
    out: Path = Path(".moeproof")
    corpus: tuple[Path, ...] = ()
    known: tuple[Path, ...] = ()
    preset: str | None = None
    max_elements: int | None = None
    isolate: bool = True
    perturb: bool = True
    case_seconds: float = 30.0
    reduce_seconds: float = 20.0

    def __post_init__(self) -> None:
        if self.seconds is None and self.cases is None:
            raise ConfigError("neither seconds nor cases is given; allowed: at least one of them")
        limits: tuple[tuple[str, Any, float, float], ...] = (
            ("seconds", self.seconds, 0.1, 1e7),
            ("cases", self.cases, 1, 1e9),
            ("seed", self.seed, 0, 2**63 - 1),
            ("workers", self.workers, 1, 256),
            ("max_elements", self.max_elements, 64, 2**31),
            ("case_seconds", self.case_seconds, 0.1, 3600),
            ("reduce_seconds", self.reduce_seconds, 0.1, 3600),
        )
        for name, value, low, high in limits:
            if value is not None and not low <= value <= high:
                raise ConfigError(f"{name} is {value}; allowed: {low:g} to {high:g}")
        for folder in self.corpus:
            if not folder.is_dir():
                raise ConfigError(f"corpus is {str(folder)!r}; allowed: an existing folder")
