"""Each relation flags the fault that is planted for it, stays silent elsewhere, and leaves the arguments alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from zoo import RIGHT, WRONG

from moeproof.strategies.case import Case, TensorSpec
from moeproof.strategies.domain import AlignDomain, GateDomain
from moeproof.verify.contract import arguments
from moeproof.verify.execute import Outcome, Runner
from moeproof.verify.extras import EXTRAS, complete, named, of_check, sampled
from moeproof.verify.metamorphic.batches import BATCHES, NAN, first_descent, gathered, indices, owners, resized
from moeproof.verify.metamorphic.replay import change, relocated
from moeproof.verify.metamorphic.shown import spelled
from moeproof.verify.metamorphic.views import relabelled, relaid, widened
from moeproof.verify.reduce.engine import reduce_case
from moeproof.verify.subject import Subject
from moeproof.verify.trial import Trial
from moeproof.verify.violation import CHECKS, Violation

CPU = torch.device("cpu")
ZOO = {s.name.removeprefix("zoo:"): s for s in [*RIGHT, *(e.subject for e in WRONG)]}
RECIPE = {
    "kind": "scores",
    "seed": 972,  # each row's last bits depend on the order in which its weights are summed
    "blocks": [{"pattern": "normal", "center": 0.0, "scale": 1.0, "quantised": False}],
    "edits": [],
}


def gate(tokens: int = 6, experts: int = 24, dtype: str = "float32", **spec: Any) -> Case:
    logits = TensorSpec(dtype, (tokens, experts), recipe=RECIPE, **spec)
    return Case("fused_gate", {"topk": 16, "renormalize": True}, {"logits": logits})


def align(rows: tuple[tuple[int, ...], ...], experts: int = 3, block: int = 2, dtype: str = "int32") -> Case:
    ids = TensorSpec(dtype, (len(rows), len(rows[0])), rows=rows)
    return Case("moe_align_block_size", {"num_experts": experts, "block_size": block}, {"topk_ids": ids})


def append(tokens: int) -> Case:
    specs = {
        "topk_ids": TensorSpec("int32", (tokens, 2), rows=((0, 1), (1, 2), (2, 0))),
        "topk_weights": TensorSpec("float32", (tokens, 2), rows=((0.5, 0.25), (1.0, 0.0), (0.75, -0.0))),
        "shared_weights": TensorSpec("bfloat16", (tokens, 1), rows=((1.0,), (2.0,), (3.0,))),
    }
    return Case("append_shared_experts", {"num_experts": 4, "num_fused_shared_experts": 1}, specs)


CASES = {
    "even": gate(),
    "one": gate(tokens=1),
    "bfloat16": gate(dtype="bfloat16"),
    "strided": gate(strides=(32, 1)),
    "ids": align(((0, 1), (1, 1), (2, 1))),
    "many ids": align(((0,),) * 64),
    "one row": align(((2, 2, 0),)),
    "append": append(6),
}
CAUGHT = {
    "gate-sum-single-row": ("even", {"alone"}),
    "gate-sum-odd-position": ("even", {"permuted", "halves", "nan_neighbours"}),
    "gate-sum-last-row": ("even", {"alone", "halves", "appended"}),
    "gate-sum-nan-beside": ("even", {"nan_neighbours"}),
    "gate-split-sum": ("even", {"enlarged"}),
    "gate-sum-strided": ("even", {"layout"}),
    "gate-misread-strided": ("even", {"layout"}),
    "gate-sum-bfloat16": ("bfloat16", {"dtype"}),
    "align-over-64-ids": ("many ids", {"appended", "enlarged"}),
    "align-first-expert-cut": ("one row", {"labels"}),
    "append-odd-tokens": ("append", {"halves", "appended"}),
}


def flagged(subject: Subject, case: Case) -> set[str]:
    """Return the names of the further checks that flag a case, each run alone."""
    runner = Runner(subject, CPU)
    found = set()
    for name, extra in EXTRAS.items():
        outcome = runner.run(case, (name,))
        assert all((v.check, v.extras) == (extra.check, (name,)) for v in outcome.violations)
        found |= {name for _ in outcome.violations}
    return found


@pytest.mark.parametrize("slug", CAUGHT)
def test_a_planted_fault_is_flagged_by_its_relation_and_by_nothing_else(slug: str) -> None:
    case, names = CASES[CAUGHT[slug][0]], CAUGHT[slug][1]
    assert Runner(ZOO[slug], CPU).run(case).violations == ()
    assert flagged(ZOO[slug], case) == names


def test_every_relation_that_needs_no_gpu_has_a_planted_fault() -> None:
    caught = set().union(*(names for _, names in CAUGHT.values()))
    assert set(complete(perturb=False)) - caught == {"graph_replay", "fake_op"}


@pytest.mark.parametrize("name", CASES)
def test_right_subjects_pass_every_relation(name: str) -> None:
    case = CASES[name]
    for subject in RIGHT:
        if subject.op == case.op:
            assert Runner(subject, CPU).run(case, tuple(EXTRAS)).violations == (), subject.name


def test_only_what_a_subject_promises_is_compared_bit_for_bit() -> None:
    strided, narrow, last = ZOO["gate-sum-strided"], ZOO["gate-sum-bfloat16"], ZOO["gate-sum-last-row"]
    assert flagged(replace(strided, layout_invariant=False), gate()) == set()
    assert flagged(replace(narrow, dtype_invariant=False), gate(dtype="bfloat16")) == set()
    assert flagged(replace(last, batch_invariant=False), gate()) == set()
    # Other batches are contiguous: what differs there may be the layout's.
    assert flagged(replace(strided, layout_invariant=False), gate(strides=(32, 1))) == set()
    assert flagged(replace(last, layout_invariant=False), gate(strides=(32, 1))) == set()
    assert flagged(replace(last, layout_invariant=True), gate(strides=(32, 1))) == {"alone", "halves", "appended"}
    # Without the bits the contract still holds.
    assert flagged(replace(ZOO["gate-misread-strided"], layout_invariant=False), gate()) == {"layout"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_shared_weight_may_be_any_nan_and_a_copy_none_but_its_own(dtype: torch.dtype) -> None:
    """Torch's vector loop makes another NaN than what is left of a row, also of a dtype that stays the same."""
    case = append(1)
    tensors, _ = case.build(CPU)
    right = next(s for s in RIGHT if s.op == "append_shared_experts")
    nans = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    one = torch.tensor([[0.5, 0.25, 0.0]])
    copied, cast = one.clone(), one.clone()
    copied[0, 0], cast[0, 2] = nans[0], nans[0]
    others = copied.clone(), cast.clone()
    others[0][0, 0], others[1][0, 2] = nans[1], nans[1]
    args = arguments(case, tensors) | {"shared_weights": tensors["shared_weights"].to(dtype)}
    assert Trial(right, right.load(), case, args, {"weights": cast}).differs({"weights": others[1]}) is None
    assert Trial(right, right.load(), case, args, {"weights": copied}).differs({"weights": others[0]}) is not None


def test_a_domain_bounds_the_variants() -> None:
    seen: Counter[tuple[Any, ...]] = Counter()
    right = ZOO["right-gate"].load()

    def call(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
        logits = args["logits"]
        seen[(logits.shape[0], logits.stride(), logits.dtype, bool(logits.isnan().any()))] += 1
        right(args, outputs)

    narrow = GateDomain(
        tokens=range(6, 7), layouts=("contiguous",), logits_dtypes=("bfloat16",), nan=False, thresholds={"tokens": (9,)}
    )
    subject = Subject("test:narrow", "fused_gate", lambda: call, narrow)
    assert Runner(subject, CPU).run(gate(dtype="bfloat16"), tuple(EXTRAS)).violations == ()
    # Twice the case, and its rows in another order.
    assert seen == {(6, (24, 1), torch.bfloat16, False): 3}


def test_what_fails_by_chance_is_no_variance() -> None:
    runs = iter(range(1000))
    right = ZOO["right-gate"].load()

    def flaky(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
        right(args, outputs)
        if next(runs) == 2:
            outputs["weights"][0, 0] = outputs["weights"][0, 0].nextafter(torch.tensor(0.0))

    subject = Subject("test:flaky", "fused_gate", lambda: flaky, GateDomain())
    (violation,) = Runner(subject, CPU).run(gate(), ("alone",)).violations
    assert violation.check == "nondeterminism"
    assert violation.message.startswith("in one run of two, row 0: weights are")


def test_a_variant_that_raises_is_a_failure_of_its_relation() -> None:
    right = ZOO["right-gate"].load()

    def odd_only(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
        if args["logits"].shape[0] == 1:
            raise ValueError("too few rows")
        right(args, outputs)

    subject = Subject("test:raises", "fused_gate", lambda: odd_only, GateDomain())
    (violation,) = Runner(subject, CPU).run(gate(), ("halves", "alone")).violations
    assert (violation.check, violation.extras) == ("batch_variance", ("alone",))
    assert violation.message == "raises on a variant of the case: ValueError: too few rows"


def test_names() -> None:
    assert {extra.check for extra in EXTRAS.values()} <= set(CHECKS)
    assert set(of_check("batch_variance")) == set(BATCHES)
    assert set(named(("batch_variance", "layout"))) == {*BATCHES, "layout"}
    with pytest.raises(ValueError, match="extra is 'other'; allowed: alone"):
        named(("other",))


def test_sampling_gives_each_check_its_share() -> None:
    for op, rarer in (("fused_gate", 1), ("moe_align_block_size", 2)):
        counts = Counter(name for count in range(960) for name in sampled(count, op, perturb=False))
        assert counts == {name: 960 // EXTRAS[name].every // rarer for name in complete(perturb=False)}
    assert max(len(sampled(count, "fused_gate")) for count in range(960)) <= 4


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_other_batches_hold_rows_of_the_case(name: str, tokens: int) -> None:
    domain = GateDomain(thresholds={"tokens": (7,)})
    for index in indices(name, gate(tokens), domain, "cpu"):
        assert index.tolist() != list(range(tokens))
        assert int(index.max()) < tokens
        assert int(index.min()) >= NAN
        assert eval(spelled(name, index), {"tokens": tokens}) == index.tolist()
    assert indices(name, gate(0), domain, "cpu") == []
    if name == "enlarged":
        assert [len(i) for i in indices(name, gate(tokens), domain, "cpu")] == [7, 8]
        assert indices(name, gate(tokens, experts=4096), domain, "cpu") == []


def test_a_gathered_batch() -> None:
    case = append(3)
    tensors, _ = case.build(CPU)
    index = torch.tensor([NAN, 2, NAN, 0])
    args = gathered(arguments(case, tensors) | {"num_token_non_padded": torch.tensor(1)}, index)
    assert "num_token_non_padded" not in args
    assert args["topk_ids"].tolist() == [[-1, -1], [2, 0], [-1, -1], [0, 1]]
    assert args["topk_weights"].isnan().all(1).tolist() == [True, False, True, False]
    assert args["shared_weights"][[1, 3]].tolist() == [[3.0], [1.0]]
    other = resized(case, 4)
    assert {n: s.shape for n, s in other.tensors.items()} == {n: tuple(args[n].shape) for n in other.tensors}


def test_owners_and_descents() -> None:
    made = {
        "sorted_token_ids": torch.tensor([3, 1, 0, 4, 2, 4, 4, 4]),
        "expert_ids": torch.tensor([0, 2, 2, -1]),
        "num_tokens_post_pad": torch.tensor([6]),
    }
    assert owners(made, 4, 2).tolist() == [2, 0, 2, 0]
    assert first_descent(made, 4, 2) == 1
    made["sorted_token_ids"][:2] = torch.tensor([1, 3])
    assert first_descent(made, 4, 2) is None
    made["num_tokens_post_pad"] = torch.tensor([4])
    assert owners(made, 4, 2).tolist() == [2, 0, -2, 0]


def test_views_hold_the_same_values() -> None:
    for case in (gate(), gate(strides=(0, 1)), align(((0, 5), (-1, 1)))):
        tensors, _ = case.build(CPU)
        (name,) = tensors
        for choices in relaid(case):
            assert all(c.tensors[name] != case.tensors[name] for _, c in choices)
    narrow = gate(dtype="float16", strides=(32, 1))
    tensors, _ = narrow.build(CPU)
    wide = widened(narrow, arguments(narrow, tensors))
    assert wide is not None
    assert (wide[0].tensors["logits"].dtype, wide[1]["logits"].dtype) == ("float32", torch.float32)
    assert torch.equal(wide[1]["logits"], tensors["logits"].float())
    assert widened(gate(), {}) is None


def test_backwards_numbers_leave_what_is_no_expert() -> None:
    case = align(((0, 5), (-1, 2)))
    tensors, _ = case.build(CPU)
    args = arguments(case, tensors) | {"expert_map": torch.tensor([2, -1, 0])}
    other = relabelled(case, args)[1]
    assert other["topk_ids"].tolist() == [[2, 5], [-1, 0]]
    assert other["expert_map"].tolist() == [0, -1, 2]


def test_a_replay_changes_every_tensor() -> None:
    case = Case(
        "fused_gate",
        {"topk": 2},
        {
            "logits": TensorSpec("float32", (1, 4), rows=((1.0, 2.0, 3.0, 4.0),), offset=3),
            "bias": TensorSpec("float32", (4,), rows=(0.0, 1.0, 0.0, 0.5)),
            "num_token_non_padded": TensorSpec("int32", (), rows=(1,)),
            "expert_map": TensorSpec("int32", (4,), rows=(3, 2, 1, 0)),
        },
    )
    tensors, _ = case.build(CPU)
    moved = {name: relocated(t) for name, t in tensors.items()}
    for name, tensor in moved.items():
        assert torch.equal(tensor, tensors[name])
        assert (tensor.stride(), tensor.storage_offset()) == (tensors[name].stride(), tensors[name].storage_offset())
    change(moved)
    assert all(not torch.equal(moved[n], tensors[n]) for n in tensors)
    assert sorted(moved["expert_map"].tolist()) == [0, 1, 2, 3]
    assert tensors["logits"].tolist() == [[1.0, 2.0, 3.0, 4.0]]
    broadcast = TensorSpec("float32", (3, 4), rows=((1.0, 2.0, 3.0, 4.0),), strides=(0, 1)).build(CPU)[0]
    change({"logits": broadcast})
    assert broadcast.tolist() == [[4.0, 1.0, 2.0, 3.0]] * 3


def test_align_in_any_order_is_compared_by_expert() -> None:
    subject = ZOO["right-align-shuffled"]
    assert subject.order == "any"
    assert flagged(subject, align(((0, 1), (1, 1), (2, 1)), dtype="int32")) == set()
    wrong = replace(ZOO["align-over-64-ids"], order="any", domain=AlignDomain(experts=range(1, 9)))
    assert flagged(wrong, CASES["many ids"]) == {"appended"}


def test_a_death_in_a_variant_is_reduced_to_a_case_that_dies_by_itself() -> None:
    class Dies:
        """Stands for a child that dies of five rows, and of ten where the halves are tried too."""

        subject = ZOO["right-gate"]

        def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
            sizes = {case.main.shape[0]} | ({case.main.shape[0] // 2} if "halves" in extras else set())
            return Outcome((Violation("cuda_error", "the process died", extras=extras),) if 5 in sizes else ())

    died = Violation("cuda_error", "the process died", extras=("permuted", "halves"))
    result = reduce_case(Dies(), gate(tokens=10), died, seconds=10)
    assert result.case.main.shape[0] == 5
    assert (result.violation.extras, result.failed, result.runs) == ((), 2, 2)


@pytest.mark.gpu
def test_a_graph_that_holds_on_to_an_old_bias_is_flagged() -> None:
    """What was read on the host at capture time does not change with the inputs."""
    from moeproof.verify.subject import find

    (own,) = find(["own:fused_gate"])
    real = own.load()
    kept: dict[str, torch.Tensor] = {}

    def frozen(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> Any:
        if torch.cuda.is_current_stream_capturing():
            args = args | {"bias": kept["bias"]}
        else:
            kept["bias"] = args["bias"].clone()
        return real(args, outputs)

    case = gate().but(bias=TensorSpec("float32", (24,), recipe=RECIPE))
    cuda = torch.device("cuda")
    assert Runner(own, cuda).run(case, ("graph_replay",)).violations == ()
    wrong = replace(own, load=lambda: frozen)
    assert Runner(wrong, cuda).run(case, ("graph_replay",)).checks == ("graph_replay",)
