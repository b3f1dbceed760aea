"""Reduction: it ends, keeps the class of the failure, and reaches the case that a person would write."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from zoo import WRONG

from moeproof.strategies.case import Case, TensorSpec
from moeproof.strategies.domain import AlignDomain, GateDomain
from moeproof.strategies.domain_check import why_outside
from moeproof.verify.child import Inline
from moeproof.verify.execute import Outcome
from moeproof.verify.explore import beyond, explore, inside
from moeproof.verify.reduce.cost import cost
from moeproof.verify.reduce.engine import Reduced, reduce_case
from moeproof.verify.reduce.literal import relaid, spelled, with_rows
from moeproof.verify.reduce.probe import MAX_SPELLED
from moeproof.verify.subject import Subject
from moeproof.verify.violation import Violation

torch.set_num_threads(1)  # several test processes share the cores
NORMAL = {
    "kind": "scores",
    "seed": 1,
    "blocks": [{"pattern": "normal", "center": 0.0, "scale": 1.0, "quantised": False}],
    "edits": [],
}
MOST_TRIES = 200
SUBJECTS = {entry.subject.name.removeprefix("zoo:"): entry.subject for entry in WRONG}


class _FoundError(Exception):
    pass


def first_failure(subject: Subject, check: str, *, refusal: bool = False) -> tuple[Inline, Case, Violation]:
    """Return the first generated case that fails a check."""
    executor = Inline(subject)
    found: list[tuple[Case, Violation]] = []

    def body(case: Case) -> None:
        outcome = executor.run(case, () if refusal else ("batch_variance",), refusal=refusal)
        found.extend((case, v) for v in outcome.violations if v.check == check)
        if found:
            raise _FoundError

    strategy = beyond(subject.domain) if refusal else inside(subject.op, subject.domain, max_elements=4096)
    with pytest.raises(_FoundError):
        explore(strategy, body, start=7, count=1000)
    return executor, *found[0]


def reduced(slug: str, check: str, *, refusal: bool = False) -> tuple[Case, Reduced]:
    """Return the first failing case of a subject of the zoo, and what it is reduced to."""
    executor, case, violation = first_failure(SUBJECTS[slug], check, refusal=refusal)
    result = reduce_case(executor, case, violation, seconds=300, refusal=refusal)
    # Effort is counted in runs: a slow machine needs as many.
    assert result.complete
    assert result.tries <= MOST_TRIES
    return case, result


def rows(result: Reduced, name: str) -> object:
    return result.case.tensors[name].rows


def test_a_tie_shrinks_to_two_equal_logits() -> None:
    _, result = reduced("gate-tie-higher-id", "tie_order")
    assert result.complete
    assert rows(result, "logits") == ((0.0, 0.0),)
    assert list(result.case.tensors) == ["logits"]
    assert (result.case.params["topk"], result.failed, result.runs) == (1, 10, 10)


def test_swapped_weights_shrink_to_two_experts() -> None:
    _, result = reduced("gate-weights-swapped", "weights")
    assert rows(result, "logits") in (((1.0, 0.0),), ((0.0, 1.0),))
    assert result.case.params["topk"] == 2


def test_a_nan_shrinks_to_one_nan() -> None:
    _, result = reduced("gate-nan-weight", "nan_policy")
    assert result.case.tensors["logits"].shape == (1, 1)
    assert not math.isfinite(result.case.tensors["logits"].rows[0][0])  # type: ignore[index]


def test_a_bad_write_shrinks_to_the_smallest_case_there_is() -> None:
    _, result = reduced("gate-write-past-end", "guard_zone")
    assert rows(result, "logits") == ((0.0,),)
    assert result.case.tensors["logits"].dtype == "float32"


def test_wrapped_ids_shrink_to_one_id() -> None:
    _, result = reduced("align-minus-one-wrapped", "align_layout")
    assert result.case.params == {"num_experts": 1, "block_size": 1}
    assert rows(result, "topk_ids") in (((-1,),), ((0,),))


def test_a_size_that_matters_is_kept() -> None:
    _, result = reduced("align-uint8-count", "align_layout")
    assert math.prod(result.case.tensors["topk_ids"].shape) == 256


def test_a_layout_that_matters_is_kept() -> None:
    _, result = reduced("align-row-stride-ignored", "align_layout")
    spec = result.case.tensors["topk_ids"]
    assert spec.shape[0] == 2
    assert spec.strides is not None
    assert spec.strides[0] > spec.shape[1]


def test_an_accepted_bad_argument_stays_the_same_argument() -> None:
    case, result = reduced("gate-accepts-outside", "domain", refusal=True)
    domain = SUBJECTS["gate-accepts-outside"].domain
    before, after = why_outside(case, domain), why_outside(result.case, domain)
    assert before is not None
    assert after is not None
    assert before.partition(" is ")[0] == after.partition(" is ")[0]
    assert cost(result.case) <= cost(case)


class Batches:
    """Executor of a subject that dies of more than 512 rows, whatever they hold."""

    subject = replace(SUBJECTS["gate-flaky-order"], domain=GateDomain())

    def __init__(self) -> None:
        self.tried: list[Case] = []

    def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
        self.tried.append(case)
        if case.main.shape[0] <= 512:
            return Outcome((), case.main.shape[0])
        return Outcome((Violation("cuda_error", "misaligned address"),), case.main.shape[0], fatal=True)


def test_rows_are_made_alike_before_shorter_batches_are_tried() -> None:
    executor = Batches()
    case = Case("fused_gate", {"topk": 2}, {"logits": TensorSpec("float32", (513, 16), recipe=NORMAL)})
    (violation,) = executor.run(case).violations
    result = reduce_case(executor, case, violation, seconds=300)
    assert result.complete
    assert result.case.tensors["logits"].shape == (513, 1)
    assert len(rows(result, "logits")) == 1  # type: ignore[arg-type]
    first = next(
        n for n, c in enumerate(executor.tried) if c.main.shape[0] == 513 and len(c.tensors["logits"].rows or ()) == 1
    )
    assert first <= 6  # each run of such a subject costs a process


class Misaligned:
    """Executor of a subject that dies of misaligned logits, those of a variant included."""

    subject = replace(SUBJECTS["gate-flaky-order"], domain=GateDomain())

    def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
        if not case.tensors["logits"].offset % 4 and "layout" not in extras:
            return Outcome()
        return Outcome((Violation("cuda_error", "misaligned address", extras=extras),), fatal=True)


def test_a_death_of_a_variant_of_a_large_case_ends_as_a_case_that_dies_by_itself() -> None:
    logits = TensorSpec("float32", (MAX_SPELLED, 2), recipe=NORMAL)
    case, executor = Case("fused_gate", {"topk": 2}, {"logits": logits}), Misaligned()
    (violation,) = executor.run(case, ("layout",)).violations
    result = reduce_case(executor, case, violation, seconds=300)
    assert result.complete
    assert executor.run(result.case).violations
    assert result.case.main.shape == (1, 1)
    assert result.violation.extras == ()


class Narrow:
    """Executor of a subject that cuts ids to 32 bits."""

    subject = replace(SUBJECTS["align-uint8-count"], domain=AlignDomain())

    def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
        wrong = bool((case.main.contents("cpu") >= 1 << 32).any())
        return Outcome((Violation("align_layout", "wrong"),) if wrong else ())


def test_an_id_that_was_edited_in_is_found_among_millions() -> None:
    edits = [[142_193, 1, 1 << 32], [27_844, 4, 10]]
    recipe = {"kind": "ids", "seed": 1, "num_experts": 9, "blocks": [{"pattern": "uniform"}], "edits": edits}
    ids = TensorSpec("int64", (368_647, 5), recipe=recipe)
    case = Case("moe_align_block_size", {"num_experts": 9, "block_size": 1}, {"topk_ids": ids})
    result = reduce_case(Narrow(), case, Violation("align_layout", "wrong"), seconds=300)
    assert result.case.main.shape == (1, 1)


class Groups:
    """Executor of a subject for powers of two that fails where 5 and 7 are in two groups, neither the first one."""

    subject = replace(
        SUBJECTS["gate-flaky-order"],
        domain=GateDomain(experts=(8, 16, 32, 64, 128), groups=((1, 1), (2, 1), (4, 1), (8, 1))),
    )

    def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
        row = case.tensors["logits"].contents("cpu")[0].view(int(case.params["num_expert_group"]), -1)
        with_five, with_seven = (row == 5).any(1), (row == 7).any(1)
        wrong = bool(with_five.any() and with_seven.any() and not (with_five & with_seven).any())
        return Outcome((Violation("selection", "wrong", rows=(0,)),) if wrong else (), 1)


@pytest.mark.parametrize(("five", "seven"), [(3, 60), (19, 42), (8, 59)])
def test_groups_and_places_that_matter_are_found_between_allowed_sizes(five: int, seven: int) -> None:
    row = [0.0] * 64
    row[five], row[seven] = 5.0, 7.0
    params = {"topk": 1, "num_expert_group": 8, "topk_group": 1}
    case = Case("fused_gate", params, {"logits": TensorSpec("float32", (1, 64), rows=(tuple(row),))})
    executor = Groups()
    (violation,) = executor.run(case).violations
    result = reduce_case(executor, case, violation, seconds=300)
    assert result.complete
    assert result.case.main.shape == (1, 8)
    assert result.case.params["num_expert_group"] <= 4


class Flaky:
    """Executor of a subject that fails in every third run, whatever the case."""

    device = "cpu"

    def __init__(self, every: int) -> None:
        self.subject = SUBJECTS["gate-flaky-order"]
        self.every = every
        self.count = itertools.count(1)

    def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
        bad = next(self.count) % self.every == 0
        return Outcome((Violation("nondeterminism", "differs", (0,)),) if bad else ())

    def outputs(self, case: Case) -> dict[str, object]:
        return {}


@pytest.mark.parametrize("every", [3, 15])
def test_a_flaky_failure_is_reduced_and_its_rate_measured(every: int) -> None:
    logits = TensorSpec("float32", (4, 3), rows=((0.5, 0.25, 0.125),) * 4)
    case = Case("fused_gate", {"topk": 2, "renormalize": True}, {"logits": logits})
    result = reduce_case(Flaky(every), case, Violation("nondeterminism", "differs", (0,)), seconds=10)
    assert result.case.tensors["logits"].shape == (1, 1)
    assert result.failed > 0
    assert abs(result.failed / result.runs - 1 / every) < 0.12


def test_reduction_ends_at_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = itertools.count()
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    class Slow(Flaky):
        def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
            clock[0] += 1.0
            next(ran)
            return super().run(case, extras)

    logits = TensorSpec("float32", (64, 64), recipe=NORMAL)
    case = Case("fused_gate", {"topk": 8}, {"logits": logits})
    result = reduce_case(Slow(1), case, Violation("nondeterminism", "differs", (0,)), seconds=11.5)
    # Ten runs measure the rate and two reduce; six more fit into what confirming may take.
    assert (next(ran), result.tries, result.complete) == (18, 18, False)
    assert (result.failed, result.runs) == (6, 6)
    assert cost(result.case) < cost(case)


def test_each_step_is_cheaper_and_the_result_can_not_be_reduced_again() -> None:
    executor, case, violation = first_failure(SUBJECTS["gate-bias-ignored"], "selection")
    result = reduce_case(executor, case, violation)
    again = reduce_case(executor, result.case, result.violation)
    assert cost(result.case) < cost(case)
    assert again.case.dumps() == result.case.dumps()


@pytest.mark.parametrize(
    ("shape", "strides", "new", "kind"),
    [
        ((8, 4), (6, 1), (3, 4), (6, 1)),
        ((8, 4), (6, 1), (8, 2), (4, 1)),
        ((8, 4), (1, 8), (3, 4), (1, 3)),
        ((8, 4), (1, 10), (3, 4), (1, 5)),
        ((8, 4), (0, 1), (3, 4), (0, 1)),
        ((8, 4), None, (3, 4), None),
    ],
)
def test_a_layout_is_kept_in_kind(
    shape: tuple[int, int],
    strides: tuple[int, int] | None,
    new: tuple[int, int],
    kind: tuple[int, int] | None,
) -> None:
    spec = TensorSpec("float32", shape, recipe=NORMAL, strides=strides)
    assert relaid(spec, new) == kind


@pytest.mark.parametrize("strides", [None, (6, 1), (1, 8), (0, 1)])
def test_rows_that_are_spelled_out_are_those_of_the_recipe(strides: tuple[int, int] | None) -> None:
    spec = TensorSpec("bfloat16", (8, 4), recipe=NORMAL, strides=strides)
    whole = spec.build("cpu")[0]
    assert torch.equal(spelled(spec).build("cpu")[0], whole)
    assert torch.equal(spelled(spec, [6, 2]).build("cpu")[0], whole[[6, 2]])


def test_padding_is_counted_among_the_rows_that_stay() -> None:
    logits = TensorSpec("float32", (5, 1), rows=tuple((float(r),) for r in range(5)))
    limit = TensorSpec("int32", (), rows=(3,))
    case = Case("fused_gate", {"topk": 1}, {"logits": logits, "num_token_non_padded": limit})
    part = with_rows(case, [4, 1, 2])
    assert part.tensors["logits"].rows == ((4.0,), (1.0,), (2.0,))
    assert part.tensors["num_token_non_padded"].rows == (2,)
    longer = with_rows(case, [1], count=9)
    assert longer.tensors["logits"].build("cpu")[0].flatten().tolist() == [1.0] * 9
