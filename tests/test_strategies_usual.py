"""How the cases of the gate are weighed: half as in production, half anything."""

from __future__ import annotations

from moeproof.strategies import gate
from moeproof.strategies.case import Case
from moeproof.strategies.domain import GateDomain
from moeproof.strategies.layouts import layouts_of
from moeproof.verify.explore import explore
from moeproof.verify.subject import find


def test_half_of_all_gate_cases_are_usual_and_the_rest_is_anything() -> None:
    """The own kernel's vectorised variants, as any library's, take aligned rows and whole vectors of experts only."""
    cases: list[Case] = []
    for start in range(4):
        explore(gate.cases(GateDomain(), max_elements=1 << 20), cases.append, start=start, count=250)
    (own,) = find(["own:fused_gate"])
    assert own.path is not None
    paths = [own.path(case) for case in cases]
    assert 0.4 < sum(p.startswith("fused_gate ") for p in paths) / len(paths) < 0.65
    assert len(set(paths)) > 12
    assert sum(c.tensors["logits"].shape[1] % 8 != 0 for c in cases) > 0.25 * len(cases)
    assert sum(bool(layouts_of(c.tensors["logits"])) for c in cases) > 0.3 * len(cases)
