"""Guarded execution: zones, poisons, unwritten or unrepeatable, inputs restored, refusals, further checks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from zoo import RIGHT

from moeproof.strategies.case import Case, TensorSpec
from moeproof.strategies.domain import AlignDomain, GateDomain
from moeproof.verify.execute import Outcome, Runner, is_cuda_failure, pick_device
from moeproof.verify.guard import ALIGNMENT, POISONS, ZONE, Kept, carve, carve_pair
from moeproof.verify.subject import Subject
from moeproof.verify.violation import PENDING

CPU = torch.device("cpu")
ROWS = ((0.0, 1.0, 2.0, 3.0), (3.0, 2.0, 1.0, 0.0), (1.0, 1.0, 0.0, 2.0))
GATE = Case("fused_gate", {"topk": 2}, {"logits": TensorSpec("float32", (3, 4), rows=ROWS)})
ALIGN = Case(
    "moe_align_block_size",
    {"num_experts": 3, "block_size": 2},
    {"topk_ids": TensorSpec("int32", (3, 2), rows=((0, 1), (1, 1), (0, 1)))},
)
Args = dict[str, Any]
Outputs = dict[str, torch.Tensor]
Twist = Callable[[Args, Outputs], Outputs | None]


def right(name: str) -> Any:
    return next(s for s in RIGHT if s.name == f"zoo:{name}").load()


def runner(twist: Twist, *, op: str = "fused_gate", base: str = "right-gate", **fields: Any) -> Runner:
    """Return a runner of a right subject whose results, or surroundings, `twist` then spoils."""
    call = right(base)

    def spoiled(args: Args, outputs: Outputs) -> Outputs | None:
        call(args, outputs)
        return twist(args, outputs)

    domain = fields.pop("domain", GateDomain() if op == "fused_gate" else AlignDomain())
    return Runner(Subject(f"test:{op}", op, lambda: spoiled, domain, **fields), CPU)


def nothing(args: Args, outputs: Outputs) -> None:
    """Leave a right result as it is."""


def only(outcome: Outcome) -> str:
    """Return the one violation's class and message."""
    (violation,) = outcome.violations
    return f"{violation.check}: {violation.message}"


# -- guards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(3, 5), (0, 4), (7,), (1,)], ids=str)
def test_carved_outputs_are_exact_aligned_and_poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    specs = {"a": (shape, dtype), "b": ((1,), torch.int32)}
    pair = carve_pair(specs, CPU)
    for poison, carved in zip((*POISONS, POISONS[0]), (*pair.runs, carve(specs, CPU, POISONS[0])), strict=True):
        assert carved.poison == poison
        assert bool((carved.arena == poison).all())
        for name, (wanted, kind) in specs.items():
            out = carved.outputs[name]
            assert (tuple(out.shape), out.dtype, out.is_contiguous()) == (wanted, kind, True)
            span = carved.spans[name]
            assert span.start - span.low >= ZONE
            assert span.high - span.end >= ZONE
            assert span.end - span.start == out.numel() * kind.itemsize
            assert span.start % ALIGNMENT == 0
            out.fill_(1)
            assert span.start == span.end or bool((carved.arena[span.start : span.end] != poison).any())
        assert carved.first_hit() is None
    assert len(pair.arenas[0]) % ALIGNMENT == 0
    assert not bool(pair.zones_hit())
    assert pair.first_hit() == "no guard byte has changed"


@pytest.mark.parametrize("run", [0, 1])
@pytest.mark.parametrize("side", ["first", "before", "past", "last"])
@pytest.mark.parametrize("name", ["a", "b"])
def test_one_changed_guard_byte_is_seen(name: str, side: str, run: int) -> None:
    pair = carve_pair({"a": ((2, 3), torch.int32), "b": ((3,), torch.float16)}, CPU)
    carved = pair.runs[run]
    span = carved.spans[name]
    at = {"first": span.low, "before": span.start - 1, "past": span.end, "last": span.high - 1}[side]
    carved.arena[at] ^= 1
    assert bool(pair.zones_hit())
    where = f"{span.start - at} bytes before its start" if at < span.start else f"{at - span.end} bytes past its end"
    size = {"a": 24, "b": 6}[name]
    assert pair.first_hit() == f"{name} ({size} bytes): 1 bytes outside it were written, the first {where}"


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("at", [0, 5])
def test_one_different_output_byte_is_seen(name: str, at: int) -> None:
    pair = carve_pair({"a": ((2, 3), torch.int32), "b": ((3,), torch.float16)}, CPU)
    assert bool(pair.outputs_differ())
    for carved in pair.runs:
        for out in carved.outputs.values():
            out.zero_()
    assert not bool(pair.outputs_differ())
    pair.runs[1].outputs[name].view(torch.uint8).view(-1)[at] = 1
    assert bool(pair.outputs_differ())
    assert not bool(pair.zones_hit())


def test_kept_storages_are_compared_and_restored() -> None:
    storages = {"a": torch.arange(5), "b": torch.full((3,), torch.nan), "c": torch.zeros(7, dtype=torch.bfloat16)}
    kept = Kept(storages)
    assert not bool(kept.changed(kept.now()))
    storages["b"][1] = -torch.nan
    storages["c"][6] = -0.0
    now = kept.now()
    assert bool(kept.changed(now))
    assert kept.names_changed(now) == ["b", "c"]
    kept.restore()
    assert not bool(kept.changed(kept.now()))
    assert storages["c"].view(torch.int16).tolist() == [0] * 7


@pytest.mark.parametrize("shift", [-1, 6])
@pytest.mark.parametrize("value", [0, -1515870811, 1515870810])
def test_stray_write(shift: int, value: int) -> None:
    """A stray write is seen even where it writes what one of the poisons is."""

    def stray(args: Args, outputs: Outputs) -> None:
        out = outputs["indices"]
        out.as_strided((1,), (1,), out.storage_offset() + shift).fill_(value)

    text = only(runner(stray).run(GATE))
    assert text.startswith("guard_zone: indices (24 bytes): 4 bytes outside it")


# -- unwritten, nondeterminism -------------------------------------------------------------------------------


def test_right_subject_passes() -> None:
    outcome = runner(nothing).run(GATE, ("batch_variance", "graph_replay", "fake_op"))
    assert (outcome.violations, outcome.rows, outcome.fatal) == ((), 3, False)
    assert Outcome.from_json(outcome.to_json()) == outcome


def test_unwritten_elements_of_two_outputs_are_one_violation() -> None:
    for_run = itertools.cycle(POISONS)

    def forget(args: Args, outputs: Outputs) -> None:
        left = torch.full((4,), next(for_run), dtype=torch.uint8)
        outputs["weights"][0, 0] = left.view(torch.float32)[0]
        outputs["indices"][1, 1] = left.view(torch.int32)[0]

    text = only(runner(forget).run(GATE))
    assert text == "unwritten: weights[0][0] is never written (1 elements of weights)"


def test_unwritten_flat_output_hides_its_shadow() -> None:
    """What is wrong only because it was never written is reported once."""

    class Lazy:
        def __init__(self) -> None:
            self.call = right("right-align")

        def __call__(self, args: Args, outputs: Outputs) -> None:
            before = outputs["sorted_token_ids"].clone()
            self.call(args, outputs)
            outputs["sorted_token_ids"][6:] = before[6:]

    subject = Subject("test:lazy", "moe_align_block_size", Lazy, AlignDomain())
    assert only(Runner(subject, CPU).run(ALIGN)).startswith("unwritten: sorted_token_ids[6] is never written")


@pytest.mark.parametrize("bitwise", [True, False])
def test_nondeterminism_only_where_repeatability_is_promised(bitwise: bool) -> None:
    runs = itertools.count()

    def last_bit(args: Args, outputs: Outputs) -> None:
        outputs["weights"].view(torch.int32)[2, 1] += next(runs) % 2

    found = runner(last_bit, bitwise=bitwise).run(GATE).violations
    assert [v.check for v in found] == (["nondeterminism"] if bitwise else [])
    if bitwise:
        assert found[0].rows == (2,)
        assert "weights[2][1] is" in found[0].message


def test_wrong_rows_besides_unstable_ones_are_still_judged() -> None:
    runs = itertools.count()

    def two_faults(args: Args, outputs: Outputs) -> None:
        outputs["weights"][0, 0] = float(next(runs))
        outputs["weights"][1, 0] *= 2

    found = runner(two_faults).run(GATE).violations
    assert {v.check: v.rows for v in found} == {"nondeterminism": (0,), "weights": (0, 1)}


def test_second_run_is_judged_where_runs_may_differ() -> None:
    runs = itertools.count()

    def wrong_every_other_time(args: Args, outputs: Outputs) -> None:
        if next(runs) % 2:
            outputs["weights"][1, 0] *= 2

    assert only(runner(wrong_every_other_time, bitwise=False).run(GATE)).startswith("weights: row 1")


def test_outputs_of_another_shape_or_none() -> None:
    runs = itertools.count()

    def shorter(args: Args, outputs: Outputs) -> Outputs:
        return {"indices": outputs["indices"], "weights": outputs["weights"][: 3 - next(runs) % 2]}

    assert only(runner(shorter).run(GATE)) == (
        "nondeterminism: weights is (3, 2) torch.float32 in one run and (2, 2) torch.float32 in the next"
    )

    def wide(args: Args, outputs: Outputs) -> Outputs:
        return {"indices": outputs["indices"].long(), "weights": outputs["weights"]}

    assert only(runner(wide).run(GATE)).startswith("ids_invalid: output indices is (3, 2) torch.int64, expected (3, 2)")

    def missing(args: Args, outputs: Outputs) -> Outputs:
        return {"indices": outputs["indices"]}

    assert only(runner(missing).run(GATE)).startswith("ids_invalid: output weights is missing")


def test_returned_outputs_may_be_any_view() -> None:
    def transposed(args: Args, outputs: Outputs) -> Outputs:
        return {name: value.t().contiguous().t() for name, value in outputs.items()}

    assert runner(transposed).run(GATE).violations == ()


def test_returned_outputs_may_have_any_stride_beside_a_length_of_one() -> None:
    """As torch's argsort gives them; such a tensor counts as contiguous."""

    def odd(args: Args, outputs: Outputs) -> Outputs:
        return {n: v.as_strided(v.shape, (1, 2) if v.dim() == 2 else (2,)) for n, v in outputs.items()}

    column = Case("fused_gate", {"topk": 1}, {"logits": TensorSpec("float32", (2, 1), rows=((0.0,), (1.0,)))})
    assert runner(odd).run(column).violations == ()
    assert runner(odd).run(GATE.but(topk=1, logits=TensorSpec("float32", (1, 4), rows=ROWS[:1]))).violations == ()


# -- inputs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, -1, 12], ids=["inside", "before", "past"])
def test_changed_input_is_seen_and_restored(offset: int) -> None:
    seen = []

    def spoil(args: Args, outputs: Outputs) -> None:
        logits = args["logits"]
        seen.append(logits.clone())
        logits.as_strided((1,), (1,), logits.storage_offset() + offset).fill_(-7.0)

    # The result was made from the untouched input and is right: the judge must not see the change.
    text = only(runner(spoil).run(GATE))
    assert text == "input_modified: logits changed, or memory beside it"
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])


def test_unused_gaps_of_a_strided_input_count_too() -> None:
    case = GATE.but(logits=TensorSpec("float32", (3, 4), rows=ROWS, strides=(7, 1), offset=3))

    def spoil(args: Args, outputs: Outputs) -> None:
        args["logits"].as_strided((3, 7), (7, 1))[1, 5] = 0

    assert runner(nothing).run(case).violations == ()
    assert only(runner(spoil).run(case)).startswith("input_modified: logits")


# -- refusals ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError, NotImplementedError])
def test_refusal(error: type[Exception]) -> None:
    def refuse(args: Args, outputs: Outputs) -> None:
        raise error("topk is 2; allowed: 1")

    assert runner(refuse).run(GATE, refusal=True).violations == ()
    text = only(runner(refuse).run(GATE))
    assert text == f"domain: raises inside its claimed domain: {error.__name__}: topk is 2; allowed: 1"


def test_accepts_what_it_claims_to_refuse() -> None:
    case = Case(GATE.op, GATE.params, GATE.tensors, note="k above the domain")
    assert only(runner(nothing).run(case, refusal=True)) == (
        "domain: accepts silently what it claims to refuse: k above the domain"
    )


def test_accident_is_no_refusal() -> None:
    def accident(args: Args, outputs: Outputs) -> None:
        raise IndexError("list index out of range")

    assert only(runner(accident).run(GATE, refusal=True)).startswith("domain: ")


@pytest.mark.parametrize("refusal", [False, True])
def test_the_harness_s_own_failure_is_not_blamed_on_the_subject(refusal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("the harness's own")

    tested = runner(nothing)
    monkeypatch.setattr("moeproof.verify.execute.arguments", fail)
    with pytest.raises(RuntimeError, match="the harness's own"):
        tested.run(GATE, refusal=refusal)


def test_a_result_that_is_no_mapping_is_the_subject_s_fault() -> None:
    def number(args: Args, outputs: Outputs) -> Any:
        return 7

    text = only(runner(number).run(GATE))
    assert text == "domain: raises inside its claimed domain: TypeError: 'int' object is not iterable"


def test_devices() -> None:
    assert not is_cuda_failure(RuntimeError("CUDA error: misaligned address"), CPU)
    subject = runner(nothing, device="cpu").subject
    assert pick_device(subject) == CPU
    assert runner(nothing).device_name == "cpu"


def test_a_launch_error_is_told_from_a_lost_context(monkeypatch: pytest.MonkeyPatch) -> None:
    def unchecked(args: Args, outputs: Outputs) -> None:
        raise RuntimeError("CUDA error: invalid argument")

    lost = False
    monkeypatch.setattr("moeproof.verify.execute.is_context_lost", lambda device: lost)
    monkeypatch.setattr("moeproof.verify.execute.is_cuda_failure", lambda error, device: "CUDA error" in str(error))
    outcome = runner(unchecked).run(GATE)
    assert only(outcome) == f"cuda_error: {PENDING}: RuntimeError: CUDA error: invalid argument"
    assert not outcome.fatal
    lost = True
    outcome = runner(unchecked).run(GATE)
    assert only(outcome) == "cuda_error: RuntimeError: CUDA error: invalid argument"
    assert outcome.fatal


def test_literal_outputs() -> None:
    made = runner(nothing).literal_outputs(GATE)
    assert [list(row) for row in made["indices"]] == [[3, 2], [0, 1], [3, 0]]

    def fail(args: Args, outputs: Outputs) -> None:
        raise KeyError("x")

    assert runner(fail).literal_outputs(GATE)["error"] == "KeyError: 'x'"


def test_no_rows() -> None:
    empty = GATE.but(logits=TensorSpec("float32", (0, 4), rows=()))
    assert runner(nothing).run(empty, ("batch_variance",)).violations == ()


# -- further checks ------------------------------------------------------------------------------------------


def by_size(args: Args, outputs: Outputs) -> None:
    if args["logits"].shape[0] == 3:
        outputs["weights"][1] = outputs["weights"][1].nextafter(torch.zeros(2))


def test_batch_variance() -> None:
    text = only(runner(by_size).run(GATE, ("batch_variance",)))
    assert text.startswith("batch_variance: row 1: weights are")
    assert text.endswith("in one of 3 (permuted)")
    assert runner(by_size).run(GATE).violations == ()
    assert runner(by_size, batch_invariant=False).run(GATE, ("batch_variance",)).violations == ()
    # Other numbers of rows are outside this domain.
    narrow = GateDomain(tokens=range(3, 4))
    assert runner(by_size, domain=narrow).run(GATE, ("alone", "halves", "appended", "enlarged")).violations == ()


def test_padded_rows_take_no_part_in_batch_variance() -> None:
    case = GATE.but(num_token_non_padded=TensorSpec("int32", (), rows=(1,)))

    assert runner(nothing).run(case, ("batch_variance",)).violations == ()

    def last(args: Args, outputs: Outputs) -> None:
        if args["logits"].shape[0] == 1:
            outputs["weights"][0] = outputs["weights"][0].nextafter(torch.zeros(2))

    assert only(runner(last).run(case, ("batch_variance",))).startswith("batch_variance: row 0")


def test_wrong_result_is_not_compared_further() -> None:
    def wrong(args: Args, outputs: Outputs) -> None:
        outputs["weights"][:] = float(args["logits"].shape[0])

    assert runner(wrong).run(GATE, ("batch_variance",)).checks == ("weights",)


@pytest.mark.parametrize(("width", "wrong"), [(2, False), (3, True)])
def test_fake_op(width: int, wrong: bool) -> None:
    call = right("right-gate")

    def real_or_fake(args: Args, outputs: Outputs) -> Outputs | None:
        if outputs:
            call(args, outputs)
            return None
        logits = args["logits"]
        return {
            "weights": logits.new_empty((logits.shape[0], width)),
            "indices": logits.new_empty((logits.shape[0], 2), dtype=torch.int32),
        }

    subject = Subject("test:fake", "fused_gate", lambda: real_or_fake, GateDomain(), tags=("fake",))
    found = Runner(subject, CPU).run(GATE, ("fake_op",)).violations
    assert [v.check for v in found] == (["fake_op"] if wrong else [])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: out of memory"), MemoryError()]
)
@pytest.mark.parametrize("refusal", [False, True])
def test_a_shortage_of_memory_is_tried_again_and_is_never_a_result(error: Exception, refusal: bool) -> None:
    left = [1, 99]

    def short(args: Args, outputs: Outputs) -> None:
        if left[0]:
            left[0] -= 1
            raise error

    again = runner(short).run(GATE)
    assert again.violations == ()
    left[0] = left[1]
    with pytest.raises(MemoryError):
        runner(short).run(GATE, refusal=refusal)
    assert left[0] == left[1] - 2
