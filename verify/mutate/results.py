"""Verdicts kept on disk as they come, so that an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from .judge import Verdict
from .source import users_of

FORMAT = 1


def keys(folder: Path, budget: str) -> dict[str, str]:
    """Return, for each source file of a folder, a hash of all that a verdict on its mutants depends on.

    Parameters
    ----------
    folder : Path
        The sources.
    budget : str
        What they are tried with, and how long.
    """
    users = users_of(folder)
    found = {}
    for name in users:
        # A header's mutants are judged in the .cu files that use it, with everything else that those contain.
        together = sorted(n for n, by in users.items() if by & users[name])
        hashed = hashlib.sha256(f"{FORMAT}:{budget}".encode())
        for other in together:
            data = (folder / other).read_bytes()
            hashed.update(f":{other}:{len(data)}:".encode() + data)
        found[name] = hashed.hexdigest()[:16]
    return found


class Store:
    """A file of verdicts, one a line.

    Parameters
    ----------
    path : Path
        The file; its folder is made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._known: dict[tuple[str, str], Verdict] = {}
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        for line in text.splitlines():
            try:
                data = json.loads(line)
                place = data.pop("id"), data.pop("key")
                self._known[place] = Verdict(**data)
            except (ValueError, KeyError, TypeError):
                continue  # cut short by a kill, or of another version: that mutant is judged again
        self._file = path.open("a", encoding="utf-8")
        if text and not text.endswith("\n"):
            self._file.write("\n")

    def get(self, mutant: str, key: str) -> Verdict | None:
        """Return the verdict on a mutant of sources with this key."""
        return self._known.get((mutant, key))

    def add(self, mutant: str, key: str, verdict: Verdict) -> None:
        """Keep a verdict."""
        self._known[mutant, key] = verdict
        self._file.write(json.dumps({"id": mutant, "key": key, **verdict.to_json()}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def budget_of(parts: Iterable[object]) -> str:
    """Return a text that differs where any part of a budget differs."""
    return "|".join(repr(p) for p in parts)
