"""Further checks of a case that has been run and found right: their names, classes and sampling rates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .metamorphic.batches import BATCHES, batch_variance
from .metamorphic.fake import fake_op
from .metamorphic.replay import graph_replay
from .metamorphic.views import dtype_variance, label_variance, layout_variance
from .perturb import PERTURBATIONS, perturbation
from .trial import Trial
from .violation import Violation


@dataclass(frozen=True)
class Extra:
    """A check that costs extra launches.

    Attributes
    ----------
    check : str
        The class of its violations.
    every : int
        One case in so many is sampled.
    run : callable
        Takes a `Trial`, returns violations; none where the check does not apply.
    repeatable : bool
        What it finds in a subject of repeatable results it finds every time.
    """

    check: str
    every: int
    run: Callable[[Trial], list[Violation]]
    repeatable: bool = True


PERTURB_EVERY = 48
_BATCH_EVERY = {"alone": 8, "permuted": 16, "halves": 16, "nan_neighbours": 16, "appended": 32, "enlarged": 32}
EXACT_RARER = 2
"""How much rarer they are for ops whose oracle leaves nothing open, so that little is left for them to find."""

EXTRAS: dict[str, Extra] = {
    **{name: Extra("batch_variance", _BATCH_EVERY[name], batch_variance(name)) for name in BATCHES},
    "layout": Extra("layout_variance", 16, layout_variance),
    "dtype": Extra("dtype_variance", 16, dtype_variance),
    "labels": Extra("label_variance", 16, label_variance),
    "graph_replay": Extra("graph_replay", 32, graph_replay),
    "fake_op": Extra("fake_op", 64, fake_op),
    **{name: Extra("perturbation", PERTURB_EVERY, perturbation(name), repeatable=False) for name in PERTURBATIONS},
}
"""Further checks by name."""


def sampled(count: int, op: str, *, perturb: bool = True) -> tuple[str, ...]:
    """Return the names of the checks that case number `count` of a subject of an op gets.

    They take turns: not even those with the same rate meet in one case. Perturbations are left out without `perturb`.
    """
    return tuple(name for name in complete(perturb=perturb) if (count + _TURNS[name]) % _every(name, op) == 0)


def complete(*, perturb: bool = True) -> tuple[str, ...]:
    """Return the names of all checks, or of all but the perturbations."""
    return tuple(name for name in EXTRAS if perturb or name not in PERTURBATIONS)


_TURNS = {name: turn * 8 + 3 if name in PERTURBATIONS else turn for turn, name in enumerate(EXTRAS)}


def _every(name: str, op: str) -> int:
    rarer = 1 if op == "fused_gate" or name in PERTURBATIONS else EXACT_RARER
    return rarer * EXTRAS[name].every


def of_check(check: str) -> tuple[str, ...]:
    """Return the names of the checks whose violations are of a class."""
    return tuple(name for name, extra in EXTRAS.items() if extra.check == check)


def named(names: Iterable[str]) -> dict[str, Extra]:
    """Return checks by name; a class of violations stands for all its checks.

    Raises
    ------
    ValueError
        If a name is neither.
    """
    chosen: dict[str, Extra] = {}
    for name in names:
        found = (name,) if name in EXTRAS else of_check(name)
        if not found:
            raise ValueError(f"extra is {name!r}; allowed: {', '.join(EXTRAS)}")
        chosen.update((n, EXTRAS[n]) for n in found)
    return chosen
