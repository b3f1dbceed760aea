"""Tells the parent of a process that runs suspects what it compiles, and how long: that is not the case's own time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

_tell: Callable[[dict[str, Any]], None] | None = None
_within = False


def tell_with(tell: Callable[[dict[str, Any]], None]) -> None:
    """Have `building` say what it has to say with a function that takes JSON data."""
    global _tell
    _tell = tell


@contextlib.contextmanager
def building(what: str) -> Iterator[None]:
    """Say that something is compiled inside, and then in how many seconds; what is needed for it is part of it.

    Parameters
    ----------
    what : str
        What a person waits for.
    """
    global _within
    if _tell is None or _within:
        yield
        return
    _tell({"building": what})
    begin, _within = time.monotonic(), True
    try:
        yield
    finally:
        _within = False
        _tell({"built": what, "seconds": time.monotonic() - begin})
