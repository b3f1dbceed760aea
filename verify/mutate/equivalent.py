"""Mutants that change nothing a caller can see, each with the reason written down.

The list is a TOML file beside the kernels. An entry names a mutant by what it changes, so it stays when code moves; one
that no longer names any is stale, and one whose mutant is killed is wrong. Both fail the run until the entry goes.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .mutant import Mutant
from .operators import OPERATORS

FILE = "equivalent_mutants.toml"
"""Name of the list in a folder of kernels."""
_LISTS = ("operator", "node")
LEAST = 20
"""Shortest reason, in letters: it has to say why no input can show the change."""


class EquivalentError(ValueError):
    """A list that is malformed; names the entry."""


@dataclass(frozen=True)
class Entry:
    """Equivalent mutants of one piece of source.

    Attributes
    ----------
    file, function, node : str
        As a `Mutant` has them.
    operator : tuple of str
        Operators that this is about, as a `Mutant` has one of them.
    replacement : str or None
        As a `Mutant` has it; None: every replacement of this operator.
    ordinal : int or None
        As a `Mutant` has it; None: all that are otherwise the same.
    reason : str
        Why nobody can tell.
    """

    file: str
    function: str
    operator: tuple[str, ...]
    node: str
    reason: str
    replacement: str | None = None
    ordinal: int | None = None

    def names(self, mutant: Mutant) -> bool:
        """Return whether this entry is about a mutant."""
        return (
            (self.file, self.function, self.node) == (mutant.file, mutant.function, mutant.node)
            and mutant.operator in self.operator
            and self.replacement in (None, mutant.replacement)
            and self.ordinal in (None, mutant.ordinal)
        )

    @property
    def title(self) -> str:
        """One line for people."""
        change = f"{self.node} → {self.replacement}" if self.replacement is not None else self.node
        return f"{self.file} {self.function or 'file scope'}: {', '.join(self.operator)}: {change}"


def load(path: Path) -> list[Entry]:
    """Read a list; empty if there is no such file.

    Raises
    ------
    EquivalentError
        If it is malformed.
    """
    if not path.exists():
        return []
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EquivalentError(f"{path}: {error}") from error
    entries = data.pop("mutant", [])
    if data or not isinstance(entries, list):
        raise EquivalentError(f"{path} holds {', '.join(data) or 'no list'}; allowed: tables [[mutant]]")
    return [entry for number, data in enumerate(entries, 1) for entry in _read(path, number, data)]


def _read(path: Path, number: int, data: Any) -> list[Entry]:
    """Return an entry for each of the nodes that a table names."""
    where = f"{path}: entry {number}"
    names = {f.name for f in fields(Entry)}
    required = names - {"replacement", "ordinal"}
    if not isinstance(data, dict) or not required <= set(data) <= names:
        given = ", ".join(data) if isinstance(data, dict) else repr(data)
        raise EquivalentError(f"{where} has {given}; allowed: {', '.join(sorted(names))}")
    data = {name: [value] if name in _LISTS and isinstance(value, str) else value for name, value in data.items()}
    for name, value in data.items():
        texts = value if isinstance(value, list) and name in _LISTS else [value]
        if not all(isinstance(text, int if name == "ordinal" else str) for text in texts):
            raise EquivalentError(f"{where}: {name} is {value!r}; allowed: text, a list of it, or an int for ordinal")
    for operator in data["operator"]:
        if operator not in OPERATORS:
            raise EquivalentError(f"{where}: operator is {operator!r}; allowed: {', '.join(OPERATORS)}")
    if len(data["reason"].split()) < 4 or len(data["reason"]) < LEAST:
        raise EquivalentError(f"{where}: reason is {data['reason']!r}; allowed: one that says why")
    nodes, operators = data.pop("node"), tuple(data.pop("operator"))
    return [Entry(**data, node=node, operator=operators) for node in nodes]


def reason_for(mutant: Mutant, entries: Iterable[Entry]) -> str | None:
    """Return why a mutant is equivalent, or None if no entry names it."""
    return next((e.reason for e in entries if e.names(mutant)), None)


def stale(entries: Iterable[Entry], mutants: Iterable[Mutant]) -> list[Entry]:
    """Return the entries that name none of the mutants."""
    known = list(mutants)
    return [e for e in entries if not any(e.names(m) for m in known)]
