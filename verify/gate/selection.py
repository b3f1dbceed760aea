"""Which subjects of which lanes a change touches, and what stands in for those that this machine can't run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moeproof.verify.lanes.resolve import subjects_of
from moeproof.verify.lanes.schema import Lane, Lanes
from moeproof.verify.subject import Subject, all_subjects, find

from .git import Checkout
from .sources import Sources, matches


class SelectionError(ValueError):
    """What is to be gated and what would run are not the same; says so."""


@dataclass(frozen=True)
class Touched:
    """A subject that a change touches.

    Attributes
    ----------
    lane : Lane
        The lane that names it.
    subject : Subject
        What the lane names.
    files : dict of str to str
        Changed files that it is made of, each with the file that names it: empty where it was named itself.
    runs : Subject, optional
        What is tested here: itself, or the same sources on the SIMT executor; None if nothing can be.
    """

    lane: Lane
    subject: Subject
    files: dict[str, str]
    runs: Subject | None

    @property
    def why(self) -> str:
        """The changed files in words."""
        shown = [f"{name} (by {by})" if by else name for name, by in list(self.files.items())[:3]]
        more = len(self.files) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more > 0 else "")

    @property
    def place(self) -> str:
        """The changed file that a report points to: a kernel's source before anything else."""
        return min(self.files, key=lambda name: (not name.endswith((".cu", ".cuh")), name.endswith("__init__.py")))


def touched(found: Checkout, lanes: Lanes, chosen: Sequence[Lane], *, cuda: bool) -> list[Touched]:
    """Return what a change touches, each subject once, by the first lane that names it.

    Parameters
    ----------
    found : Checkout
        The change.
    lanes : Lanes
        The lanes file.
    chosen : sequence of Lane
        Lanes of it.
    cuda : bool
        There is a CUDA device.

    Raises
    ------
    LanesError
        If a lane names a subject that is not known.
    SelectionError
        If own kernels have changed and those that would run are of another tree.
    """
    sources = Sources(found.root, found.changed)
    seen: dict[str, Touched] = {}
    for lane in chosen:
        for subject in subjects_of(lanes, lane):
            files = {n: by for n, by in sources.of(subject).items() if n in found.changed}
            files |= {n: "" for n in found.changed if n not in files and _matches(lane.paths, found.root / n)}
            if files and subject.name not in seen:
                seen[subject.name] = Touched(lane, subject, files, stand_in(subject, cuda=cuda))
    # A stand-in that a lane names itself runs once.
    named = {name for name, t in seen.items() if t.runs is t.subject}
    kept = [t for t in seen.values() if t.runs is None or t.runs is t.subject or t.runs.name not in named]
    if any({"own", "reference"} & set(t.subject.tags) for t in kept) and sources.own:
        _check_installed(found.root, [n for t in kept for n in sources.of(t.subject)])
    return kept


def stand_in(subject: Subject, *, cuda: bool) -> Subject | None:
    """Return what can be tested of a subject on this machine."""
    if cuda or subject.device != "cuda":
        return subject
    if "own" not in subject.tags or "@" in subject.name:
        return None
    return next((s for s in all_subjects() if s.name == f"{subject.name}@simt"), None)


def smoke(chosen: Iterable[Subject], *, cuda: bool) -> list[Subject]:
    """Return a subject of each op to see that the harness works: of those named, else a reference."""
    fast = [s for s in chosen if (cuda or s.device != "cuda") and "simt" not in s.tags]
    picked: dict[str, Subject] = {}
    for subject in (*fast, *find(["numpy"])):
        picked.setdefault(subject.op, subject)
    return list(picked.values())


def _matches(patterns: Iterable[str], path: Path) -> bool:
    return any(matches(pattern, str(path)) for pattern in patterns)


def _check_installed(root: Path, names: Iterable[str]) -> None:
    """Refuse to test other files than the checkout's."""
    import moeproof

    package = Path(os.path.realpath(moeproof.__file__)).parent
    for name in dict.fromkeys(names):
        ours, run = root / name, package / name
        if (ours.read_bytes() if ours.is_file() else b"") != (run.read_bytes() if run.is_file() else b""):
            raise SelectionError(
                f"moeproof is imported from {package}, whose {name} is not that of {root}; allowed: the checkout's own "
                "(pip install . or pip install -e . there, or PYTHONPATH=src)"
            )
