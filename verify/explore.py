"""Draws cases from Hypothesis strategies and hands them to a function; nothing is shrunk or stored here."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace

from hypothesis.strategies import SearchStrategy

from moeproof.strategies import align, append, gate, outside
from moeproof.strategies.case import Case
from moeproof.strategies.domain import Domain
from moeproof.strategies.draws import Bytes, Draw, NoChoicesLeftError, composite, function_of

CASES: dict[str, Callable[..., SearchStrategy[Case]]] = {
    "fused_gate": gate.cases,
    "moe_align_block_size": align.cases,
    "append_shared_experts": append.cases,
}


def inside(op: str, domain: Domain, *, max_elements: int, preset: str | None = None) -> SearchStrategy[Case]:
    """Return the strategy of an op's cases inside a domain."""
    return CASES[op](domain, max_elements=max_elements, preset=preset)


def beyond(domain: Domain) -> SearchStrategy[Case]:
    """Return the strategy of cases just outside a domain; the reason is the case's note."""
    return _noted(function_of(outside.cases_outside(domain)))


@composite
def _noted(draw: Draw, drawn: Callable[[Draw], tuple[Case, str]]) -> Case:
    case, reason = drawn(draw)
    return replace(case, note=reason)


CHOICES = 2048
"""Random bytes offered to one case; a case takes a few hundred."""


def explore(strategy: SearchStrategy[Case], body: Callable[[Case], None], *, start: int, count: int) -> None:
    """Draw `count` independent cases and call `body` with each.

    The choices of each case come from fresh random bytes, past Hypothesis's engine. That one mutates earlier examples,
    which serves shrinking and rare equalities but leaves about a quarter as many distinct shapes in a hundred cases,
    and takes ten times as long.

    Parameters
    ----------
    strategy : SearchStrategy
        Where cases come from: what `inside` or `beyond` returned.
    body : callable
        Takes a case; an exception ends the exploration.
    start : int
        Seed.
    count : int
        How many.

    Raises
    ------
    NoChoicesLeftError
        If not one of them could be drawn.
    """
    function = function_of(strategy)
    choices = random.Random(start)
    drawn = 0
    for _ in range(count):
        try:
            case = function(Bytes(choices.randbytes(CHOICES)))
        except NoChoicesLeftError:
            continue
        drawn += 1
        body(case)
    if count and not drawn:
        raise NoChoicesLeftError(f"{CHOICES} random bytes were too few for each of {count} tries")


def derived(*parts: object) -> int:
    """Return a seed made from anything that prints."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
