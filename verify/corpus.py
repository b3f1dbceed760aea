"""The corpus: cases kept for ever and replayed first in every run.

A corpus is a folder of JSON files, one case each. The one that ships with moeproof is hand-picked; a run adds the
cases of its findings to its own. Files are data only: they are read with limits and never run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from moeproof.strategies.case import DTYPES, MAX_BYTES, Case, CaseError, TensorSpec

from .files import write_text

SHIPPED = Path(__file__).parent / "corpus_data"
MAX_FILE = 16 << 20
"""Largest corpus file, in bytes."""
MAX_SIZE = 2**40
"""Largest size of a dimension, and largest stride."""


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
        case = Case.loads(path.read_text(encoding="utf-8"))
        for name, spec in case.tensors.items():
            _check_size(name, spec)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CaseError(f"{path}: {error}") from error
    return case


def _check_size(name: str, spec: TensorSpec) -> None:
    """Refuse what the storage does not show: huge empty shapes, huge shapes of stride 0, overlaps."""
    if any(size > MAX_SIZE for size in (*spec.shape, *(spec.strides or ()))):
        raise CaseError(f"{name} has shape {spec.shape}, strides {spec.strides}; allowed: sizes up to {MAX_SIZE}")
    elements = math.prod(spec.shape)
    if elements * DTYPES[spec.dtype].itemsize > MAX_BYTES:
        raise CaseError(f"{name} has {elements} elements; allowed: {MAX_BYTES} bytes")
    if spec.strides is not None and elements:
        reached = 1
        for size, stride in sorted(zip(spec.shape, spec.strides, strict=True), key=lambda pair: pair[1]):
            row_zero = stride == 0 and len(spec.shape) == 2 and spec.strides[0] == 0
            if size > 1 and stride < reached and not row_zero:
                raise CaseError(f"{name} has strides {spec.strides}; allowed for {spec.shape}: no overlap")
            reached = max(reached, (size - 1) * stride + reached)


def case_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the case files that paths name: files, ``case.json`` in finding folders, and ``*.json`` below others."""
    for path in paths:
        if path.is_file():
            yield path
        elif (path / "case.json").is_file():
            yield path / "case.json"
        else:
            found = (p for p in path.rglob("*.json") if p.is_file() and p.name != "finding.json")
            yield from sorted(p for p in found if "inflight" not in p.relative_to(path).parts)


def recover(out: Path) -> None:
    """Set aside the cases that an earlier run left in flight, before this run has any of its own there."""
    for path in (out / "inflight").glob("*.json"):
        text = path.read_text(encoding="utf-8", errors="replace")
        aside = path.parent / "interrupted" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        aside.parent.mkdir(exist_ok=True)
        path.replace(aside)


def interrupted(out: Path) -> list[Path]:
    """Return the requests that `recover` has set aside."""
    return sorted((out / "inflight" / "interrupted").glob("*.json"))


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
