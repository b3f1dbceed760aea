"""JSON data as Python source that a person can read: long runs folded, long lines wrapped."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from typing import Any

WIDTH = 100
"""Width of a line of source."""
SHORT_RUN = 4
"""Equal items that are still written out one by one."""


def source(value: Any) -> str:
    """Return JSON data as one Python expression; ``nan`` and ``inf`` are names.

    Runs of equal items become ``[0.0] * 384``, ascending ints ``[*range(0, 384)]``, where that is shorter.
    """
    if isinstance(value, list | tuple):
        return _list(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {source(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str):
        return value if value in ("nan", "inf", "-inf") else f'"{value}"'
    return repr(value)


def wrapped(text: str, indent: int) -> str:
    """Return an expression that stands inside brackets, broken at spaces; later lines are indented."""
    if indent + len(text) <= WIDTH:
        return text
    lines = textwrap.wrap(text, WIDTH - indent, break_long_words=False, break_on_hyphens=False)
    return ("\n" + " " * indent).join(lines)


def _list(items: Sequence[Any]) -> str:
    texts = [source(item) for item in items]
    plain = "[" + ", ".join(texts) + "]"
    if len(items) <= SHORT_RUN:
        return plain
    first = items[0]
    if all(type(v) is int for v in items) and list(items) == list(range(first, first + len(items))):
        return f"[*range({first}, {first + len(items)})]"
    folded = _folded(texts)
    return folded if len(folded) < len(plain) else plain


def _folded(texts: list[str]) -> str:
    """Return a sum of lists in which runs of equal items are products."""
    parts: list[str] = []
    loose: list[str] = []
    for text, run in itertools.groupby(texts):
        count = len(list(run))
        if count <= SHORT_RUN:
            loose += [text] * count
            continue
        if loose:
            parts.append("[" + ", ".join(loose) + "]")
            loose = []
        parts.append(f"[{text}] * {count}")
    if loose:
        parts.append("[" + ", ".join(loose) + "]")
    return " + ".join(parts)


def repeated(rows: Sequence[Any], count: int) -> str:
    """Return rows repeated cyclically to `count` of them, as one expression."""
    if count == len(rows):
        return source(rows)
    if len(rows) == 1:
        return f"{source(rows)} * {count}"
    times = -(-count // len(rows))
    whole = f"{source(rows)} * {times}"
    return whole if times * len(rows) == count else f"({whole})[:{count}]"
