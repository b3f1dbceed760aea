"""The cases that mutants are tried with on the executor: small ones, spread evenly over the kernels' instantiations."""

from __future__ import annotations

import importlib
import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from moeproof.kernels.launcher import use_executor
from moeproof.strategies.case import Case
from moeproof.strategies.domain import AlignDomain, Domain, GateDomain
from moeproof.strategies.domain_check import why_outside
from moeproof.verify import corpus
from moeproof.verify.contract import arguments, output_specs
from moeproof.verify.explore import derived, explore, inside
from moeproof.verify.extras import of_check, sampled
from moeproof.verify.guard import POISONS, carve
from moeproof.verify.simt.devices import PLAIN, standing_in
from moeproof.verify.simt.subjects import DOMAINS, MODULES, own

from .judge import Attempt

VERSION = 5
"""Changes with the choice of cases: verdicts of another choice are judged again."""
SMALL = {"fused_gate": 1 << 12, "moe_align_block_size": 1 << 12}
"""Largest number of elements in the main tensor of most cases: a launch costs milliseconds."""
LARGE_IDS = 1 << 16
LARGE_ROWS = 1 << 14
LARGE_SPLIT = 1 << 16
"""The same of the few cases that reach loops over many tiles, over many rows, or over many rows that are split."""
BUILDS = {"fused_gate": 20, "moe_align_block_size": 12}
"""How many instantiations are compiled."""
SURPLUS = 4
"""So many cases are drawn for each that is kept: the others need instantiations that are not compiled."""
_ALIGNED = tuple(range(8, 520, 8))
_PAIRS = ((2, 1), (4, 2), (8, 4), (8, 1), (8, 8), (16, 4), (32, 8), (3, 2), (6, 4), (5, 1), (12, 6))
"""(groups, kept groups) of real models, extreme ones, and numbers that leave lanes without a group."""
STRIDED_EVERY = 3
"""One case in so many has its one-dimensional tensors spread out in memory."""
CORPUS_EXTRAS = (*of_check("batch_variance"), *of_check("layout_variance"))
"""Checks that every case of the corpus gets: some cases show their bug only in another batch or layout."""
_ARGUMENT = re.compile(r"[<,]\s*([^,<>]+)")


@dataclass(frozen=True)
class Focus:
    """Where to draw cases.

    Attributes
    ----------
    domain : Domain
        Their domain.
    elements : int
        Largest number of elements in the main tensor.
    share : float
        Their share among all cases; the shares of an op add up to 1.
    compiled : bool
        All instantiations that they need are compiled.
    """

    domain: Domain
    elements: int
    share: float
    compiled: bool = False


def foci(op: str) -> list[Focus]:
    """Return all that an op's subject claims, and the parts of it where few cases go by themselves."""
    whole = DOMAINS[op]
    small = SMALL[op]
    if isinstance(whole, GateDomain):
        fast = replace(whole, layouts=("contiguous",), scorings=("sigmoid", "softmax"), groups="none")
        grouped = replace(fast, experts=tuple(range(32, 520, 32)), groups=_PAIRS, topk=range(1, 9))
        split = replace(fast, experts=tuple(range(520, 2100, 8)), tokens=range(1, 9))
        # Enough rows that a warp does two at once.
        pairs = replace(fast, experts=tuple(range(40, 257, 8)), tokens=range(9, 18), topk=range(1, 17))
        grouped_pairs = replace(grouped, experts=tuple(range(48, 257, 16)), tokens=range(9, 18))
        # More rows than the grid has teams, so that a team has several.
        plain = replace(fast, logits_dtypes=("float32",), scorings=("sigmoid",))
        rows = replace(whole, experts=range(1, 17), tokens=range(90, 200))
        fast_rows = replace(plain, experts=(8, 16, 32), tokens=range(90, 129))
        pair_rows = replace(plain, experts=(40, 48, 64), tokens=range(161, 250), topk=range(1, 9))
        split_rows = replace(plain, experts=(1032, 1280), tokens=range(33, 40), bias="required")
        return [
            Focus(whole, small, 0.18),
            Focus(replace(fast, experts=_ALIGNED), small, 0.16),
            Focus(grouped, small, 0.18),
            Focus(split, small, 0.14),
            Focus(pairs, small, 0.12),
            Focus(grouped_pairs, small, 0.1),
            Focus(rows, small, 0.04),
            Focus(fast_rows, small, 0.02, compiled=True),
            Focus(pair_rows, LARGE_ROWS, 0.03, compiled=True),
            Focus(split_rows, LARGE_SPLIT, 0.03, compiled=True),
        ]
    if isinstance(whole, AlignDomain):
        many = replace(whole, tokens=range(260, 400), topk=range(8, 9), max_ids=small, thresholds={})
        few_experts = replace(many, experts=range(1, 513), layouts=("contiguous",))
        # Where one loop over the experts ends with the last of them, and where the last warps and slices have some.
        wide = replace(many, experts=(*range(520, 1040, 8), *range(3584, 4097, 8)))
        most = LARGE_IDS // 8
        large = replace(few_experts, tokens=range(most // 2, most), max_ids=LARGE_IDS, block_sizes=range(1, 65))
        # What align_few counts with several ids a thread, where there are multiprocessors enough.
        some = replace(whole, tokens=range(65, 129), topk=range(8, 9), thresholds={})
        rest = [Focus(domain, small, 0.24) for domain in (whole, many, few_experts)]
        return [*rest, *(Focus(domain, small, 0.12) for domain in (wide, some)), Focus(large, LARGE_IDS, 0.04)]
    raise ValueError(f"op is {op!r}; allowed on the executor: {', '.join(DOMAINS)}")


def cases(op: str, count: int, seed: int) -> list[Attempt]:
    """Return the corpus's small cases and `count` generated ones."""
    entries, _ = corpus.load([corpus.SHIPPED])
    kept = [e.case for e in entries if e.case.op == op and math.prod(e.case.main.shape) <= SMALL[op]]
    kept = [case for case in kept if why_outside(case, DOMAINS[op]) is None]
    kept += [other for case in kept if (other := _spread(case)) != case]
    drawn: list[Case] = []
    needed = list(kept)
    for number, focus in enumerate(foci(op)):
        strategy = inside(op, focus.domain, max_elements=focus.elements)
        start = derived(seed, "mutate", op, number)
        surplus = SURPLUS if focus.elements == SMALL[op] else 1
        found: list[Case] = []
        explore(strategy, found.append, start=start, count=max(1, round(count * surplus * focus.share)))
        found = [_spread(case) if n % STRIDED_EVERY == 0 else case for n, case in enumerate(found, len(drawn))]
        drawn += found
        needed += found if focus.compiled else []
    builds = {id(case): ";".join(f"{file}:{name}" for file, name in launches(op, case)) for case in (*kept, *drawn)}
    always = {builds[id(case)] for case in needed if builds[id(case)]}
    chosen = panel([b for b in builds.values() if b], BUILDS[op], always)
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in drawn:
        groups[builds[id(case)]].append(case)
    # In turns, so that a rare instantiation gets as many cases as a common one, while they last; larger cases, which
    # are few, first in each.
    for group in groups.values():
        group.sort(key=lambda case: math.prod(case.main.shape) <= SMALL[op])
    turns = itertools.zip_longest(*(groups[b] for b in sorted(chosen) if b in groups))
    spread = [case for turn in turns for case in turn if case is not None][:count]
    picked = [Attempt(op, case, CORPUS_EXTRAS, builds[id(case)]) for case in kept if builds[id(case)]]
    return picked + [Attempt(op, case, sampled(n, op), builds[id(case)]) for n, case in enumerate(spread)]


def _spread(case: Case) -> Case:
    """Return a case with stride 2 in its bias and expert map, which generation leaves contiguous."""
    tensors = {
        name: replace(spec, strides=(2,)) if name in ("bias", "expert_map") and spec.strides is None else spec
        for name, spec in case.tensors.items()
    }
    return replace(case, tensors=tensors)


class _Dry:
    """An executor that launches nothing, and notes what it should have."""

    def __init__(self) -> None:
        self.sm_count = PLAIN.sm_count
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
    given = arguments(case, tensors)
    with use_executor(dry), standing_in(dry, op, given):
        function(**given, out=tuple(outputs.values()))
    return list(dry.names)


def panel(builds: Sequence[str], most: int, always: Collection[str] = ()) -> set[str]:
    """Return few builds in which each template argument takes each of its values, as far as `most` allows.

    Those of `always`, whatever `most` is; then one after the other the one with most values not seen yet, among those
    the one with most cases.
    """
    counts = Counter(builds)
    traits = {build: _traits(build) for build in counts}
    chosen = set(always)
    seen = {trait for build in chosen for trait in traits[build]}
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
