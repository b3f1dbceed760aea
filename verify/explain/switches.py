"""Finds the sizes at which a choice changes, by asking the function that makes it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

DENSE = 64
"""Neighbours that are tried one by one; further out, steps double."""


@dataclass(frozen=True)
class Switch:
    """Where a choice changes.

    Attributes
    ----------
    size : int
        The size nearest to the one asked about for which another choice is made.
    choice : hashable
        That choice.
    """

    size: int
    choice: Hashable


def nearest(choose: Callable[[int], Hashable | None], size: int, last: int, step: int = 1) -> Switch | None:
    """Return the nearest change between a size and `last`, on that side only, or None.

    Beyond `DENSE` neighbours a choice that comes and goes within a stride may be stepped over.

    Parameters
    ----------
    choose : callable
        Makes the choice for a size; None is no choice, and no change.
    size : int
        Where to start.
    last : int
        Where to end, above or below `size`.
    step : int
        Only sizes whose distance from `size` is a multiple are tried.
    """
    here = choose(size)
    sign = 1 if last > size else -1
    most = abs(last - size) // step

    def differs(distance: int) -> bool:
        there = choose(size + sign * distance * step)
        return there is not None and there != here

    same, distance = 0, 1
    while distance <= most and not differs(distance):
        same = distance
        distance = distance + 1 if distance < DENSE else min(2 * distance, most) if distance < most else most + 1
    if distance > most:
        return None
    while distance - same > 1:
        middle = (same + distance) // 2
        if differs(middle):
            distance = middle
        else:
            same = middle
    at = size + sign * distance * step
    return Switch(at, choose(at))
