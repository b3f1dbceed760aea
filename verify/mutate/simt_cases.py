"""The cases that mutants are tried with on the executor: small ones, spread evenly over the kernels' instantiations."""

from __future__ import annotations

import importlib
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from moeproof.kernels.launcher import use_executor
from moeproof.strategies.case import Case
from moeproof.strategies.domain import AlignDomain, Domain, GateDomain
from moeproof.strategies.domain_check import why_outside
from moeproof.verify import corpus
from moeproof.verify.contract import arguments, output_specs
from moeproof.verify.explore import derived, explore, inside
from moeproof.verify.extras import sampled
from moeproof.verify.guard import POISONS, carve
from moeproof.verify.simt.subjects import DOMAINS, MODULES, SM_COUNT, own

from .judge import Attempt

ELEMENTS = {"fused_gate": 1 << 12, "moe_align_block_size": 1 << 12}
"""Largest number of elements in a case's main tensor: a launch costs milliseconds."""
BUILDS = {"fused_gate": 14, "moe_align_block_size": 12}
"""How many instantiations are compiled."""
SURPLUS = 4
"""So many cases are drawn for each that is kept: the others need instantiations that are not compiled."""
_ALIGNED = tuple(range(8, 520, 8))
_PAIRS = ((2, 1), (4, 2), (8, 4), (8, 1), (8, 8), (16, 4), (32, 8))
"""(groups, kept groups) of real models, and extreme ones."""
_ARGUMENT = re.compile(r"[<,]\s*([^,<>]+)")


def foci(op: str) -> list[Domain]:
    """Return the domains that cases are drawn from, in equal shares: all that is claimed, and where few cases go."""
    whole = DOMAINS[op]
    if isinstance(whole, GateDomain):
        fast = replace(whole, layouts=("contiguous",), scorings=("sigmoid", "softmax"), groups="none")
        return [
            whole,
            replace(fast, experts=_ALIGNED),
            replace(fast, experts=tuple(range(32, 520, 32)), groups=_PAIRS, topk=range(1, 9)),
            replace(fast, experts=tuple(range(520, 2100, 8)), tokens=range(1, 9)),
        ]
    if isinstance(whole, AlignDomain):
        many = replace(whole, tokens=range(260, 400), topk=range(8, 9), max_ids=1 << 12, thresholds={})
        return [whole, many, replace(many, experts=range(1, 513), layouts=("contiguous",))]
    raise ValueError(f"op is {op!r}; allowed on the executor: {', '.join(DOMAINS)}")


def cases(op: str, count: int, seed: int) -> list[Attempt]:
    """Return the corpus's small cases and `count` generated ones."""
    domains = foci(op)
    entries, _ = corpus.load([corpus.SHIPPED])
    kept = [e.case for e in entries if e.case.op == op and _size(e.case) <= ELEMENTS[op]]
    kept = [case for case in kept if why_outside(case, domains[0]) is None]
    drawn: list[Case] = []
    for number, domain in enumerate(domains):
        strategy = inside(op, domain, max_elements=ELEMENTS[op])
        start = derived(seed, "mutate", op, number)
        explore(strategy, drawn.append, start=start, count=count * SURPLUS // len(domains))
    builds = {id(case): ";".join(f"{file}:{name}" for file, name in launches(op, case)) for case in (*kept, *drawn)}
    chosen = panel([b for b in builds.values() if b], BUILDS[op])
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in drawn:
        groups[builds[id(case)]].append(case)
    # In turns, so that a rare instantiation gets as many cases as a common one, while they last.
    turns = itertools.zip_longest(*(groups[b] for b in sorted(chosen) if b in groups))
    spread = [case for turn in turns for case in turn if case is not None][:count]
    fitting = [case for case in kept if builds[id(case)] in chosen] + spread
    return [Attempt(op, case, sampled(n, op), builds[id(case)]) for n, case in enumerate(fitting)]


def _size(case: Case) -> int:
    rows, columns = case.main.shape
    return rows * columns


class _Dry:
    """An executor that launches nothing, and notes what it should have."""

    sm_count = SM_COUNT

    def __init__(self) -> None:
        self.names: dict[tuple[str, str], None] = {}

    def load(self, file: str, name: str) -> Any:
        self.names[file, name] = None
        return self

    def launch(self, *_: Any, **__: Any) -> None:
        pass


def launches(op: str, case: Case) -> list[tuple[str, str]]:
    """Return (file, name) of the kernels that a case launches."""
    dry = _Dry()
    tensors, _ = case.build("cpu")
    outputs = carve(output_specs(case, own(op)), torch.device("cpu"), POISONS[0]).outputs
    function = getattr(importlib.import_module(f"moeproof.kernels.{MODULES[op]}"), op)
    with use_executor(dry):
        function(**arguments(case, tensors), out=tuple(outputs.values()))
    return list(dry.names)


def panel(builds: Sequence[str], most: int) -> set[str]:
    """Return few builds in which each template argument takes each of its values, as far as `most` allows.

    Chosen one after the other: the one with most values not seen yet, among those the one with most cases.
    """
    counts = Counter(builds)
    traits = {build: _traits(build) for build in counts}
    seen: set[str] = set()
    chosen: set[str] = set()
    while len(chosen) < min(most, len(counts)):
        best = max(
            (b for b in sorted(counts) if b not in chosen),
            key=lambda b: (len(traits[b] - seen), counts[b]),
        )
        chosen.add(best)
        seen |= traits[best]
    return chosen


def _traits(build: str) -> set[str]:
    """Return the values of a build's template arguments, as texts that tell them apart."""
    found: set[str] = set()
    for kernel in build.split(";"):
        name = kernel.partition("<")[0]
        found |= {f"{name}#{i}={value}" for i, value in enumerate(_ARGUMENT.findall(kernel))} or {name}
    return found
