"""Small helpers to draw with: strategies made once, simplest choice first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

T = TypeVar("T")
Draw = Callable[[st.SearchStrategy[Any]], Any]
"""What `st.composite` passes as its first argument."""


@functools.lru_cache(maxsize=4096)
def _integers(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


def integer(draw: Draw, low: int, high: int) -> int:
    """Draw an int in [low, high]; shrinks towards 0 or the bound next to it.

    A range of one is drawn too: a case whose number of choices depends on sizes shrinks badly.
    """
    return draw(_integers(low, high))


def pick(draw: Draw, choices: Sequence[T]) -> T:
    """Draw one of the choices; shrinks towards the first."""
    return choices[integer(draw, 0, len(choices) - 1)]


def chance(draw: Draw, once_in: int) -> bool:
    """Draw True about once in `once_in` times; shrinks towards False."""
    return integer(draw, 0, once_in - 1) == once_in - 1


def sometimes(draw: Draw, choices: Sequence[T], always: bool) -> T | None:
    """Draw one of the choices about once in four times, or always if there are any; shrinks towards None."""
    if not choices:
        return None
    taken, chosen = chance(draw, 4), pick(draw, choices)
    return chosen if taken or always else None


def seed(draw: Draw) -> int:
    """Draw the seed of a recipe."""
    return integer(draw, 0, 2**32 - 1)
