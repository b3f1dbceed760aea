"""Draws cases from Hypothesis strategies and hands them to a function; nothing is shrunk or stored here."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace

from hypothesis import Verbosity, given, settings
from hypothesis.strategies import SearchStrategy

from moeproof.strategies import align, append, gate, outside
from moeproof.strategies.case import Case
from moeproof.strategies.domain import Domain

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
    return outside.cases_outside(domain).map(lambda pair: replace(pair[0], note=pair[1]))


CHOICES = 2048
"""Random bytes offered to one case; a case takes a few hundred."""


def explore(strategy: SearchStrategy[Case], body: Callable[[Case], None], *, start: int, count: int) -> None:
    """Draw `count` independent cases and call `body` with each.

    The choices of each case come from fresh random bytes. Hypothesis's own engine mutates earlier examples, which
    serves shrinking and rare equalities but leaves about a quarter as many distinct shapes in a hundred cases.

    Parameters
    ----------
    strategy : SearchStrategy
        Where cases come from.
    body : callable
        Takes a case; an exception ends the exploration.
    start : int
        Seed.
    count : int
        How many.
    """

    @settings(database=None, deadline=None, verbosity=Verbosity.quiet)
    @given(strategy)
    def run(case: Case) -> None:
        body(case)

    choices = random.Random(start)
    for _ in range(count):
        run.hypothesis.fuzz_one_input(choices.randbytes(CHOICES))  # type: ignore[attr-defined]


def derived(*parts: object) -> int:
    """Return a seed made from anything that prints."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
