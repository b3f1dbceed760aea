"""Names of the pointers that a kernel is given, from its source: for reports only."""

from __future__ import annotations

import re
from pathlib import Path

from .module import source_parts

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)


def parameters(file: Path, name: str) -> tuple[tuple[str, str], ...]:
    """Return (type, name) of a kernel's parameters; empty if its declaration is not found."""
    text = _text(file)
    base = re.escape(name.partition("<")[0].rpartition("::")[2])
    match = re.search(rf"__global__[^;{{}}]*?\b{base}\s*\(([^)]*)\)\s*\{{", text)
    if match is None:
        return ()
    found = []
    for part in match[1].split(","):
        words = re.fullmatch(r"\s*(.*?)\s*(\w+)\s*", part, re.DOTALL)
        if words:
            found.append((" ".join(words[1].split()), words[2]))
    return tuple(found)


def pointer_fields(file: Path, name: str) -> tuple[str, ...]:
    """Return the pointers that the struct of a kernel's only parameter starts with, by name."""
    given = parameters(file, name)
    if len(given) != 1:
        return ()
    match = re.search(rf"struct {re.escape(given[0][0])}\s*\{{(.*?)\n\}};", _text(file), re.DOTALL)
    if match is None:
        return ()
    names: list[str] = []
    for declaration in match[1].split(";"):
        if "*" not in declaration:
            break
        names += re.findall(r"\*\s*(?:__restrict__\s*)?(\w+)", declaration)
    return tuple(names)


def _text(file: Path) -> str:
    parts = source_parts(file)
    return _COMMENT.sub("", "\n".join(str(part) for part in parts[1::2]))
