"""What a change touches, tried on a fixed set of cases: kept ones, generated ones, each check's own, the references."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from moeproof.strategies.case import Case
from moeproof.strategies.domain_check import why_outside
from moeproof.strategies.draws import NoChoicesLeftError
from moeproof.strategies.presets import presets_in
from moeproof.verify.campaign import CHUNK, Campaign, State
from moeproof.verify.child import Child, HarnessError, Isolated
from moeproof.verify.config import Config
from moeproof.verify.events import Sink
from moeproof.verify.explore import derived, explore, inside
from moeproof.verify.extras import of_check
from moeproof.verify.lanes.schema import ANY_PRESET
from moeproof.verify.subject import OUTPUTS, Subject, Unavailable, find
from moeproof.verify.violation import Violation

CHECKED = {"batch_invariance": "batch_variance", "graph_replay": "graph_replay", "opcheck": "fake_op"}
"""Classes of further checks, by a lane's names for them."""
CHECK_CASES = 16
PARITY_CASES = 16
CHECK_ELEMENTS = 1 << 12
"""Largest tensor of the cases above: there are few elements, so that rows can be repeated up to a threshold."""
ENOUGH_FINDINGS = 5
"""Of one subject: the verdict is clear by then, and each costs a reduction."""
EXACT = {
    "fused_gate": ("indices",),
    "moe_align_block_size": ("expert_ids", "num_tokens_post_pad"),
    "append_shared_experts": OUTPUTS["append_shared_experts"],
}
"""Outputs that are compared with the references': what is left to float32 rounding or a free order is not."""


@dataclass
class Parity:
    """How a subject compares with one reference.

    Attributes
    ----------
    same, open : int
        Cases with equal outputs, and with others that the contract allows as well.
    broken : str
        How the reference itself breaks the contract; empty if it does not.
    missing : str
        Why the reference could not run.
    """

    same: int = 0
    open: int = 0
    broken: str = ""
    missing: str = ""


@dataclass(frozen=True)
class Plan:
    """What is run on each subject.

    Attributes
    ----------
    checks : tuple of str
        Names of `lanes.schema.CHECKS`.
    presets : tuple of str
        As in `Lane`.
    cases : dict of str to int
        Generated cases, by subject.
    """

    checks: tuple[str, ...]
    presets: tuple[str, ...]
    cases: dict[str, int] = field(default_factory=dict)


class GateCampaign(Campaign):
    """A campaign of a fixed set of cases, which stops when time is up.

    Parameters
    ----------
    config : Config
        What to do; its ``cases`` are the plan's.
    sink : callable
        Takes events.
    plan : Plan
        What to run.
    deadline : float
        Time on the monotonic clock.

    Attributes
    ----------
    parity : dict of str to dict
        `Parity` by subject and reference.
    checked : Counter
        Cases that further checks had to themselves, by subject.
    late : set of str
        Subjects that time was up for.
    """

    def __init__(self, config: Config, sink: Sink, plan: Plan, deadline: float) -> None:
        super().__init__(config, sink)
        self.plan = plan
        self.parity: dict[str, dict[str, Parity]] = {}
        self.checked: Counter[str] = Counter()
        self.late: set[str] = set()
        self._deadline = deadline
        # The corpus leaves half of the time to what is generated.
        self._end = (time.monotonic() + deadline) / 2

    def _replay(self) -> None:
        if "corpus" in self.plan.checks:
            super()._replay()

    def _fuzz(self) -> None:
        wanted = [check for name, check in CHECKED.items() if name in self.plan.checks]
        extras = tuple(name for check in wanted for name in of_check(check))
        for number, state in enumerate(self.states):
            # What a subject does not use is the next one's.
            left = self._deadline - time.monotonic()
            self._end = time.monotonic() + left / (len(self.states) - number)
            if extras:
                self._each(state, "checks", CHECK_CASES, partial(self._check, state, extras))
            if "parity" in self.plan.checks:
                self._parity(state)
            if "fuzz" in self.plan.checks:
                self._generated(state)

    def _check(self, state: State, extras: tuple[str, ...], case: Case) -> None:
        self._case(state, case, extras=extras)
        self.checked[state.subject.name] += 1

    def _generated(self, state: State) -> None:
        """Run a subject's generated cases, the same number of each preset that fits it."""
        fitting = {p.name for p in presets_in(state.subject.domain, state.subject.op)}
        presets = [p for p in self.plan.presets if p == ANY_PRESET or p in fitting]
        given = self.config
        for number, preset in enumerate(presets):
            wanted = self.plan.cases[state.subject.name]
            share = wanted * (number + 1) // len(presets) - wanted * number // len(presets)
            self.config = replace(given, preset=None if preset == ANY_PRESET else preset)
            while share > 0 and not state.out and not self._is_late(state):
                # A round number of cases from each seed: where time is up, what has run is still the same.
                self._chunk(state, min(CHUNK, share), until=self._fuzzing() + self._end - time.monotonic())
                share -= CHUNK
            self.config = given

    def _each(self, state: State, what: str, count: int, body: Callable[[Case], None]) -> None:
        """Call `body` with small cases of a subject's domain, the same in every run."""
        subject = state.subject
        limit = min(self.config.max_elements or CHECK_ELEMENTS, CHECK_ELEMENTS)
        drawn: list[Case] = []
        try:
            strategy = inside(subject.op, subject.domain, max_elements=limit)
            explore(strategy, drawn.append, start=derived(self.config.seed, what, subject.name), count=count)
        except (NoChoicesLeftError, ValueError) as error:
            self._lost(state, f"no case of its domain can be drawn: {error}")
        for case in drawn:
            if state.out or self._is_late(state):
                return
            if why_outside(case, subject.domain) is None:
                body(case)

    def _case(self, state: State, case: Case, *, extras: tuple[str, ...], refusal: bool = False) -> None:
        if not self._is_late(state):
            super()._case(state, case, extras=extras, refusal=refusal)

    def _is_late(self, state: State) -> bool:
        if time.monotonic() <= self._end:
            return False
        self.late.add(state.subject.name)
        return True

    def _failed(self, state: State, case: Case, violation: Violation, refusal: bool) -> None:
        if sum(state.reductions.values()) < ENOUGH_FINDINGS:
            super()._failed(state, case, violation, refusal)
        else:
            state.failures[violation.check] += 1

    # -- references ----------------------------------------------------------------------------------------------

    def _parity(self, state: State) -> None:
        """Run the same cases on a subject and on each reference; both are judged, then compared."""
        subject = state.subject
        references = {
            r.name: r for r in find(["numpy", "torch", "numba"]) if r.op == subject.op and r.name != subject.name
        }
        found = self.parity[subject.name] = {name: Parity() for name in references}
        with Child(seconds=self.config.case_seconds) as child:
            executors: dict[str, Isolated] = {}
            for name, reference in references.items():
                try:
                    executors[name] = Isolated(reference, child)
                except Unavailable as error:
                    found[name].missing = str(error)

            def body(case: Case) -> None:
                before = sum(state.failures.values())
                self._case(state, case, extras=())
                if state.out or sum(state.failures.values()) > before:
                    return
                ours = state.executor.outputs(case)
                for name, executor in executors.items():
                    if why_outside(case, executor.subject.domain) is None and not found[name].broken:
                        self._compare(found[name], executor, case, subject, ours)

            self._each(state, "parity", PARITY_CASES, body)

    def _compare(
        self, parity: Parity, executor: Isolated, case: Case, subject: Subject, ours: dict[str, object]
    ) -> None:
        try:
            wrong = executor.run(case).violations
            theirs = executor.outputs(case)
        except (HarnessError, Unavailable) as error:
            parity.broken = str(error).strip().splitlines()[-1]
            return
        if wrong:
            parity.broken = f"{wrong[0].check}: {wrong[0].message}"
        elif subject.minus_one == executor.subject.minus_one and all(
            ours.get(n) == theirs.get(n) for n in EXACT[case.op]
        ):
            parity.same += 1
        else:
            parity.open += 1


def planned(subjects: Sequence[Subject], cases: int | None, *, cuda: bool) -> dict[str, int]:
    """Return how many generated cases each subject gets, unless a number is given for all."""

    def usual(subject: Subject) -> int:
        if "simt" in subject.tags:  # compiles each variant that a case takes, seconds each
            return 24
        return 480 if cuda and subject.device != "cpu" else 120

    return {s.name: cases or usual(s) for s in subjects}
