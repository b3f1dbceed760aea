"""What `hypothesis.target` is given: higher for cases that are harder."""

from __future__ import annotations

import pytest

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify import testing
from moeproof.verify.execute import Outcome
from moeproof.verify.subject import find
from moeproof.verify.targets import targets


def gate(*row: float, topk: int = 1, **params: int | str) -> Case:
    logits = TensorSpec("float32", (2, len(row)), rows=(row,))
    return Case("fused_gate", {"topk": topk, **params}, {"logits": logits})


def align(*ids: int, experts: int = 4) -> Case:
    spec = TensorSpec("int32", (len(ids), 1), rows=tuple((i,) for i in ids))
    return Case("moe_align_block_size", {"num_experts": experts, "block_size": 2}, {"topk_ids": spec})


def test_nearer_scores_at_the_boundary_count_more() -> None:
    far, near = (targets(gate(0.0, x, -3.0))["boundary nearness"] for x in (1.0, 0.001))
    assert near > far + 5
    # What lies beyond the boundary does not count, nor what is tied.
    assert targets(gate(0.0, 1.0, -3.0)) == targets(gate(0.0, 1.0, -5.0))
    assert targets(gate(1.0, 1.0, 1.0)) == {}


def test_cases_without_a_boundary() -> None:
    nan = float("nan")
    assert targets(gate(0.0, 1.0, topk=2)) == {}
    assert targets(gate(1.0, nan, nan)) == {}
    assert targets(gate(0.0, 1.0, 2.0, 3.0, num_expert_group=2, topk_group=1, topk=2)) == {}
    assert targets(gate(*[0.5, 0.25] * 20_000)) == {}
    assert targets(Case("fused_gate", {"topk": 1}, {"logits": TensorSpec("float32", (0, 4), rows=())})) == {}


@pytest.mark.parametrize(("ids", "imbalance"), [((0, 1, 2, 3), 1.0), ((1, 1, 1, 1), 4.0), ((1, 1, 0, -1, 9), 8 / 3)])
def test_load_imbalance(ids: tuple[int, ...], imbalance: float) -> None:
    assert targets(align(*ids)) == {"load imbalance": pytest.approx(imbalance)}
    assert targets(align(-1, -1)) == {}


def test_a_parity_test_aims_at_them(monkeypatch: pytest.MonkeyPatch) -> None:
    (subject,) = find(["numpy:moe_align_block_size"])
    aimed: list[str] = []

    class Idle:
        device = "cpu"

        def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
            return Outcome()

    executor = Idle()
    executor.subject = subject  # type: ignore[attr-defined]
    monkeypatch.setattr(testing, "target", lambda value, label: aimed.append(label))
    testing._generated(executor, "generated", None, 256, 20)  # type: ignore[arg-type]
    assert set(aimed) == {"load imbalance"}
    aimed.clear()
    testing._generated(executor, "outside", None, 256, 20)  # type: ignore[arg-type]
    assert aimed == []
