"""Sizes worth trying: 0, 1, powers of two, warps, vectors, and where a subject switches path, each ±1."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

from .draws import Draw, chance, integer, pick

# Powers of two, and multiples of a warp (32) and of wide vectors (4, 8) that are none.
_CENTRES = (*(1 << i for i in range(31)), 3, 5, 6, 12, 24, 48, 96, 192, 160, 320, 384, 576, 640, 768, 1536)
SMALL = 9
"""Sizes below this are drawn most often, and are what shrinking ends at."""


def interesting(low: int, high: int) -> list[int]:
    """Return the sizes in [low, high] where implementations go wrong, ascending."""
    return around(low, high, (low, high, *_CENTRES))


def around(low: int, high: int, centres: Iterable[int]) -> list[int]:
    """Return the centres and their neighbours in [low, high], ascending."""
    return sorted({n + step for n in centres for step in (-1, 0, 1) if low <= n + step <= high})


def size(draw: Draw, low: int, high: int, thresholds: Iterable[int] = ()) -> int:
    """Draw a size in [low, high]: small, interesting, at a threshold, or any; shrinks towards `low`."""
    kind = integer(draw, 0, 3)
    if kind == 0 or high - low < SMALL:
        return integer(draw, low, min(high, low + SMALL))
    if kind == 3:
        return integer(draw, low, high)
    critical = around(low, high, thresholds) if kind == 2 else []
    return pick(draw, critical or interesting(low, high))


class Choices:
    """Members of a `range` or a list of sizes, to draw from.

    Parameters
    ----------
    allowed : sequence of int
        What a domain allows; a `range` is never enumerated.
    thresholds : iterable of int
        Sizes at which the implementation under test switches path.
    """

    def __init__(self, allowed: Sequence[int], thresholds: Iterable[int] = ()) -> None:
        self.allowed = allowed if isinstance(allowed, range) else sorted(set(allowed))
        low, high = (self.allowed[0], self.allowed[-1]) if self.allowed else (0, -1)
        self.special = [n for n in interesting(low, high) if n in self.allowed]
        self.critical = [n for n in around(low, high, thresholds) if n in self.allowed]

    def draw(self, draw: Draw, low: int, high: int) -> int:
        """Draw a member in [low, high], which holds at least one; shrinks towards the smallest."""
        first, last = bisect.bisect_left(self.allowed, low), bisect.bisect_right(self.allowed, high) - 1
        kind = integer(draw, 0, 3)
        if kind == 0 or last - first < SMALL:
            return self.allowed[integer(draw, first, min(last, first + SMALL))]
        critical = [n for n in self.critical if low <= n <= high] if kind == 2 else []
        if critical:
            return pick(draw, critical)
        start, stop = bisect.bisect_left(self.special, low), bisect.bisect_right(self.special, high)
        if kind == 3 or start == stop:
            return self.allowed[integer(draw, first, last)]
        return self.special[integer(draw, start, stop - 1)]

    def within(self, low: int, high: int) -> bool:
        """Return whether any member lies in [low, high]."""
        first = bisect.bisect_left(self.allowed, low)
        return first < len(self.allowed) and self.allowed[first] <= high


def tokens(draw: Draw, low: int, high: int, thresholds: Iterable[int] = ()) -> int:
    """Draw T in [low, high]: as `size` does, but 0 only once in a while; shrinks towards 1."""
    if low == 0 and (chance(draw, 12) or high == 0):
        return 0
    return size(draw, max(low, 1), high, thresholds)


def token_limit(allowed: range, width: int, max_elements: int) -> int:
    """Return the largest allowed T with T·width within the budget, or the smallest T if there is none."""
    return max(allowed[0], min(allowed[-1], max_elements // max(width, 1)))
