"""Small helpers to draw with, simplest choice first; what they draw from is Hypothesis, or plain random bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar
from weakref import WeakKeyDictionary

from hypothesis import strategies as st

T = TypeVar("T")
P = ParamSpec("P")


class Draw(Protocol):
    """Where choices come from; all that is drawn comes down to integers."""

    def integer(self, low: int, high: int) -> int:
        """Return an int in [low, high]."""
        ...


class NoChoicesLeftError(Exception):
    """Bytes have run out before a case was drawn."""


class Bytes:
    """Choices read from bytes, without a record of them.

    Hypothesis keeps a tree of an example's choices, which shrinking needs and which costs more than the example. It
    makes the same choices of the same bytes.

    Parameters
    ----------
    data : bytes
        Random bytes.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def integer(self, low: int, high: int) -> int:
        """Return an int in [low, high], all equally likely.

        Raises
        ------
        NoChoicesLeftError
            If there are too few bytes.
        ValueError
            If there is no such int.
        """
        most = high - low
        if most <= 0:
            if most:
                raise ValueError(f"high is {high}; allowed: an int >= low, which is {low}")
            return low
        bits = most.bit_length()
        size, mask = (bits + 7) >> 3, (1 << bits) - 1
        while True:
            chosen = self._data[self._at : self._at + size]
            if len(chosen) < size:
                raise NoChoicesLeftError
            self._at += size
            value = int.from_bytes(chosen, "big") & mask
            if value <= most:
                return low + value


class _Engine:
    """Choices of Hypothesis's engine."""

    def __init__(self, draw: Callable[[st.SearchStrategy[int]], int]) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return self._draw(_integers(low, high))


@functools.lru_cache(maxsize=4096)
def _integers(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high)


_functions: WeakKeyDictionary[st.SearchStrategy[Any], Callable[[Draw], Any]] = WeakKeyDictionary()


def composite(function: Callable[Concatenate[Draw, P], T]) -> Callable[P, st.SearchStrategy[T]]:
    """Make a function that draws return a strategy, as `st.composite` does; `function_of` gives it back.

    Its arguments can't be strategies, which Hypothesis unwraps on the way: pass functions.
    """

    @st.composite
    def drawn(draw: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        return function(_Engine(draw), *args, **kwargs)

    @functools.wraps(function)
    def strategy(*args: P.args, **kwargs: P.kwargs) -> st.SearchStrategy[T]:
        made = drawn(*args, **kwargs)
        _functions[made] = lambda draw: function(draw, *args, **kwargs)
        return made

    return strategy


def function_of(strategy: st.SearchStrategy[T]) -> Callable[[Draw], T]:
    """Return the function that draws what a strategy made by `composite` draws.

    Raises
    ------
    ValueError
        If the strategy was made in another way.
    """
    found = _functions.get(strategy)
    if found is None:
        raise ValueError(f"strategy is {strategy!r:.200}; allowed: one that draws.composite made")
    return found


def integer(draw: Draw, low: int, high: int) -> int:
    """Draw an int in [low, high]; shrinks towards 0 or the bound next to it.

    A range of one is drawn too: a case whose number of choices depends on sizes shrinks badly.
    """
    return draw.integer(low, high)


def pick(draw: Draw, choices: Sequence[T]) -> T:
    """Draw one of the choices; shrinks towards the first."""
    return choices[draw.integer(0, len(choices) - 1)]


def chance(draw: Draw, once_in: int) -> bool:
    """Draw True about once in `once_in` times; shrinks towards False."""
    return draw.integer(0, once_in - 1) == once_in - 1


def sometimes(draw: Draw, choices: Sequence[T], always: bool) -> T | None:
    """Draw one of the choices about once in four times, or always if there are any; shrinks towards None."""
    if not choices:
        return None
    taken, chosen = chance(draw, 4), pick(draw, choices)
    return chosen if taken or always else None


def seed(draw: Draw) -> int:
    """Draw the seed of a recipe."""
    return draw.integer(0, 2**32 - 1)
