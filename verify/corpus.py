"""The corpus: cases kept for ever and replayed first in every run.

A corpus is a folder of JSON files, one case each. The one that ships with moeproof is hand-picked; a run adds the
cases of its findings to its own. Files are data only: they are read with limits and never run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from moeproof.strategies.case import Case, CaseError

from .files import write_text

SHIPPED = Path(__file__).parent / "corpus_data"
MAX_FILE = 16 << 20
"""Largest corpus file, in bytes."""


@dataclass(frozen=True)
class Entry:
    """A case of a corpus and the file that holds it."""

    path: Path
    case: Case


def read_case(path: Path) -> Case:
    """Read one case file.

    Raises
    ------
    CaseError
        If it is too large or malformed; names the file.
    OSError
        If it can't be read.
    """
    size = path.stat().st_size
    if size > MAX_FILE:
        raise CaseError(f"{path}: {size} bytes; allowed: {MAX_FILE}")
    try:
        return Case.loads(path.read_text(encoding="utf-8"))
    except (CaseError, UnicodeDecodeError) as error:
        raise CaseError(f"{path}: {error}") from error


def case_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the case files that paths name: files themselves, ``case.json`` in finding folders, and ``*.json`` below."""
    for path in paths:
        if path.is_file():
            yield path
        elif (path / "case.json").is_file():
            yield path / "case.json"
        else:
            yield from sorted(p for p in path.rglob("*.json") if p.is_file() and p.name != "finding.json")


def load(folders: Iterable[Path]) -> tuple[list[Entry], list[str]]:
    """Read all cases of some folders; what can't be read is left out and said."""
    entries, problems = [], []
    for path in case_files(f for f in folders if f.exists()):
        try:
            entries.append(Entry(path, read_case(path)))
        except (CaseError, OSError) as error:
            problems.append(str(error))
    return entries, problems


def keep(folder: Path, name: str, case: Case) -> Path:
    """Add a case to a corpus folder, below the name of its op."""
    path = folder / case.op / f"{name}.json"
    write_text(path, case.dumps())
    return path
