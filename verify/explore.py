"""Draws cases with Hypothesis and hands them to a function; the engine explores, it neither shrinks nor stores."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from dataclasses import replace

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
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
    return outside.cases_outside(domain).map(lambda found: replace(found[0], note=found[1])).map(lambda pair: replace(pair[0], note=pair[1]))


def explore(strategy: SearchStrategy[Case], body: Callable[[Case], None], *, start: int, count: int) -> None:
    """Draw about `count` distinct cases and call `body` with each.

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

    @seed(start)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        verbosity=Verbosity.quiet,
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(strategy)
    def run(case: Case) -> None:
        body(case)

    run()


def derived(*parts: object) -> int:
    """Return a seed made from anything that prints."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
