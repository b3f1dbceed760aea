"""Mutants of a set of sources: one small change each, named by what it changes and not by where it stands."""

from __future__ import annotations

import difflib
import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .operators import OPERATORS
from .source import SUFFIXES, Source, function_of, read

SHOWN = 3
"""Lines of context in a diff."""


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes
    ----------
    file, function : str
        Where it is; `function` is empty at file scope.
    operator : str
        A key of `OPERATORS`.
    node, replacement : str
        The changed node's text before and after, white space squeezed.
    ordinal : int
        Number among the mutants of the file that are the same in all of this.
    start, end : int
        The bytes that are replaced.
    text : str
        What replaces them.
    line : int
        Where it is, for people; no part of its identity.
    """

    file: str
    function: str
    operator: str
    node: str
    replacement: str
    ordinal: int
    start: int
    end: int
    text: str
    line: int

    @property
    def key(self) -> tuple[str, str, str, str, str, int]:
        """What it is told apart by."""
        return (self.file, self.function, self.operator, self.node, self.replacement, self.ordinal)

    @property
    def id(self) -> str:
        """A short name, the same for as long as the change means the same."""
        return hashlib.sha256(repr(self.key).encode()).hexdigest()[:12]

    @property
    def title(self) -> str:
        """One line for people."""
        change = f"{self.node} → {self.replacement or 'nothing'}"
        return f"{self.file}:{self.line} {self.function or 'file scope'}: {self.operator}: {_short(change)}"

    def apply(self, source: Source) -> bytes:
        """Return the file's text with the change."""
        return source.data[: self.start] + self.text.encode() + source.data[self.end :]

    def diff(self, source: Source) -> str:
        """Return the change as a unified diff."""
        before = source.data.decode().splitlines(keepends=True)
        after = self.apply(source).decode().splitlines(keepends=True)
        names = f"a/{self.file}", f"b/{self.file}"
        return "".join(difflib.unified_diff(before, after, *names, n=SHOWN))


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:60]} … {text[-35:]}"


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def mutants_of(source: Source, operators: Iterable[str] | None = None) -> list[Mutant]:
    """Return the mutants of a file, in the order of its text; no two give the same text.

    Parameters
    ----------
    source : Source
        The file.
    operators : iterable of str, optional
        Keys of `OPERATORS`; default: all.
    """
    by_type: dict[str, list[str]] = defaultdict(list)
    for name, operator in OPERATORS.items():
        for kind in operator.nodes:
            by_type[kind].append(name)
    wanted = set(OPERATORS if operators is None else operators)
    seen_texts = {hashlib.sha256(source.data).digest()}
    ordinals: Counter[tuple[str, ...]] = Counter()
    found: list[Mutant] = []
    for node in source.nodes():
        for name in by_type.get(node.type, ()):
            for text in OPERATORS[name].replacements(node, source):
                mutant = _mutant(source, node, name, text, ordinals)
                changed = hashlib.sha256(mutant.apply(source)).digest()
                # Ids must not depend on the operators asked for, so all are made and some are kept.
                if changed in seen_texts:
                    continue
                seen_texts.add(changed)
                if name in wanted:
                    found.append(mutant)
    return found


def _mutant(source: Source, node: Any, operator: str, text: str, ordinals: Counter[tuple[str, ...]]) -> Mutant:
    function = function_of(source, node)
    before, after = _squeezed(source.text(node)), _squeezed(text)
    key = (function, operator, before, after)
    ordinal = ordinals[key]
    ordinals[key] += 1
    line = node.start_point[0] + 1
    place = node.start_byte, node.end_byte
    return Mutant(source.name, function, operator, before, after, ordinal, *place, text, line)


def sample(mutants: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """Return `count` mutants, each operator getting its share and at least one; the same for the same seed.

    Parameters
    ----------
    mutants : list of Mutant
        What to choose from.
    count : int
        How many; all if there are fewer.
    seed : int
        Any number.
    """
    groups: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        groups[mutant.operator].append(mutant)
    # Ordered by a hash of seed and id: a mutant more or less elsewhere in the sources moves no other.
    queues = {
        name: sorted(group, key=lambda m: hashlib.sha256(f"{seed}:{m.id}".encode()).digest())
        for name, group in groups.items()
    }
    chosen: set[str] = set()
    names = sorted(queues)
    random.Random(seed).shuffle(names)
    share = {name: max(1, count * len(queues[name]) // max(len(mutants), 1)) for name in names}
    for name in names:
        chosen |= {m.id for m in queues[name][: share[name]]}
    rest = [m for name in names for m in queues[name][share[name] :]]
    chosen |= {m.id for m in rest[: max(0, count - len(chosen))]}
    if len(chosen) > count:
        first = [queues[name][0].id for name in names]
        chosen = set([*first, *(i for i in sorted(chosen) if i not in first)][:count])
    return [m for m in mutants if m.id in chosen]


def digest(folder: Path) -> str:
    """Return a hash of all CUDA sources of a folder: results belong to it."""
    hashed = hashlib.sha256()
    for path in sorted(p for p in folder.glob("*.cu*") if p.suffix in SUFFIXES):
        data = path.read_bytes()
        hashed.update(f"{path.name}:{len(data)}:".encode() + data)
    return hashed.hexdigest()[:16]


def write_variant(folder: Path, target: Path, mutant: Mutant | None) -> None:
    """Copy the CUDA sources of a folder into another one, with a mutant's change."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(p for p in folder.glob("*.cu*") if p.suffix in SUFFIXES):
        source = read(path)
        changed = mutant is not None and mutant.file == path.name
        (target / path.name).write_bytes(mutant.apply(source) if changed and mutant is not None else source.data)
