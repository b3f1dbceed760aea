"""Drawn cases lie inside their domain, drawn outsiders outside, and both find what they are made to find."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from moeproof.strategies import align, append, gate
from moeproof.strategies.case import DTYPES, Case, TensorSpec, literal
from moeproof.strategies.contents import holds_inf, marked_values
from moeproof.strategies.domain import AlignDomain, AppendDomain, Domain, GateDomain
from moeproof.strategies.domain_check import why_outside
from moeproof.strategies.labels import labels, patterns_of, size_class
from moeproof.strategies.layouts import layouts_of
from moeproof.strategies.outside import cases_outside, steps_outside
from moeproof.strategies.presets import PRESETS, preset_named, presets_in
from moeproof.strategies.sizes import Choices, interesting
from moeproof.verify.explore import explore

NARROW_GATE = GateDomain(
    experts=(64, 128, 256),
    topk=range(1, 9),
    logits_dtypes=("bfloat16", "float16"),
    bias_dtypes=("float32", "bfloat16"),
    bias_same_dtype=True,
    bias="required",
    scorings=("sigmoid",),
    groups="none",
    shared=range(1),
    renormalize=(True,),
    scale_on_output=(False,),
    scale=False,
    padding=False,
    expert_map=False,
    layouts=("contiguous",),
    nan=False,
    inf=False,
    tokens=range(1, 1025),
    thresholds={"tokens": (512,)},
)
DOMAINS: dict[str, Domain] = {
    "gate": GateDomain(),
    "gate narrow": NARROW_GATE,
    "gate pairs": GateDomain(
        experts=(256, 384), topk=range(8, 9), groups=((8, 4), (1, 1)), shared=range(2), bias="none"
    ),
    "gate few per group": GateDomain(
        experts=range(1, 513), max_experts_per_group=32, max_groups=32, topk=range(2, 20), inf=False
    ),
    "gate shared": GateDomain(experts=range(8, 600, 8), shared=range(2, 4), topk=range(4, 7), layouts=("transposed",)),
    "align": AlignDomain(),
    "align narrow": AlignDomain(
        experts=(8, 64, 256),
        block_sizes=(16, 64, 128),
        topk=range(1, 9),
        ids_dtypes=("int32",),
        minus_one=False,
        out_of_range=False,
        expert_map=False,
        layouts=("contiguous",),
        tokens=range(1, 4097),
        max_ids=4096,
        thresholds={"ids": (1024,)},
    ),
    "append": AppendDomain(),
    "append narrow": AppendDomain(
        topk=range(8, 9),
        shared=range(1, 2),
        ids_dtypes=("int64",),
        weights_dtypes=("float32",),
        shared_dtypes=("bfloat16",),
        shared_forms=("vector",),
        padding=False,
        layouts=("contiguous",),
        tokens=range(1, 100),
    ),
}
QUICK = settings(
    max_examples=50,
    database=None,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def cases(domain: Domain, **options: Any) -> st.SearchStrategy[Case]:
    if isinstance(domain, GateDomain):
        return gate.cases(domain, **options)
    if isinstance(domain, AlignDomain):
        return align.cases(domain, **options)
    return append.cases(domain, **options)


def for_all(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], examples: int = 50) -> None:
    settings(QUICK, max_examples=examples)(given(strategy)(check))()


def drawn(strategy: st.SearchStrategy[Case], examples: int = 100) -> list[Case]:
    found: list[Case] = []
    for_all(strategy, lambda case: found.append(case), examples)  # Hypothesis takes functions alone
    return found


@pytest.mark.parametrize("name", DOMAINS)
def test_cases_lie_inside_build_and_survive_json(name: str) -> None:
    domain = DOMAINS[name]

    def check(case: Case) -> None:
        assert why_outside(case, domain) is None
        assert Case.loads(case.dumps()) == case
        assert all(labels(case).values())
        views, _ = case.build("cpu")
        for tensor, spec in case.tensors.items():
            assert views[tensor].shape == spec.shape
            if "broadcast" not in layouts_of(spec):
                torch.testing.assert_close(views[tensor], spec.contents("cpu"), rtol=0, atol=0, equal_nan=True)

    for_all(cases(domain, max_elements=1 << 12), check)


@pytest.mark.parametrize("name", DOMAINS)
def test_outsiders_lie_outside_for_the_reason_given(name: str) -> None:
    domain = DOMAINS[name]

    def check(drawn: tuple[Case, str]) -> None:
        case, reason = drawn
        assert why_outside(case, domain) == reason
        assert "; allowed: " in reason
        assert Case.loads(case.dumps()).dumps() == case.dumps()
        case.build("cpu")

    for_all(cases_outside(domain), check)


def test_outsiders_break_every_argument() -> None:
    subjects = set()
    for domain in DOMAINS.values():
        for case in drawn(cases(domain, max_elements=1 << 12), 10):
            for outsider in steps_outside(case, domain):
                reason = why_outside(outsider, domain)
                assert reason is not None, outsider.dumps()
                subjects.add(reason.split(" is ")[0])
    assert subjects >= {
        "topk",
        "num_expert_group",
        "topk_group",
        "num_fused_shared_experts",
        "routed_scaling_factor",
        "scoring",
        "renormalize",
        "logits.dtype",
        "logits.shape",
        "bias.shape",
        "bias.dtype",
        "expert_map.shape",
        "num_token_non_padded",
        "the number of experts",
        "the number of tokens",
        "num_experts",
        "block_size",
        "topk_ids.dtype",
        "topk_weights.shape",
        "shared_weights.shape",
    }


def test_no_nan_or_infinity_where_the_domain_has_none() -> None:
    for case in drawn(gate.cases(NARROW_GATE, max_elements=1 << 12)):
        assert all(t.isfinite().all() for t in case.build("cpu")[0].values())


def test_no_invalid_id_where_the_domain_has_none() -> None:
    for case in drawn(cases(DOMAINS["align narrow"], max_elements=1 << 12)):
        ids = case.build("cpu")[0]["topk_ids"]
        assert ids.min() >= 0
        assert ids.max() < case.params["num_experts"]


@pytest.mark.parametrize("budget", [64, 5000])
def test_sizes_stay_in_the_budget(budget: int) -> None:
    for case in drawn(gate.cases(GateDomain(), max_elements=budget)):
        tokens, experts = case.tensors["logits"].shape
        assert tokens * experts <= budget
    for case in drawn(align.cases(AlignDomain(), max_elements=budget)):
        count = case.tensors["topk_ids"].shape[0] * case.tensors["topk_ids"].shape[1]
        experts, block = int(case.params["num_experts"]), int(case.params["block_size"])
        assert count <= budget
        assert count + min(count, experts + 1) * (block - 1) <= 4 * budget


def test_gate_maps_are_injective_and_align_maps_stay_in_range() -> None:
    for case in drawn(gate.cases(GateDomain(), max_elements=1 << 12), 200):
        if "expert_map" in case.tensors:
            values = case.build("cpu")[0]["expert_map"].tolist()
            assert len(set(values)) == len(values)
            assert min(values) >= 0
    seen = set()
    for case in drawn(align.cases(AlignDomain(), max_elements=1 << 12), 200):
        if "expert_map" in case.tensors:
            values = case.build("cpu")[0]["expert_map"]
            assert -1 <= values.min() <= values.max() < case.params["num_experts"]
            seen.add(bool((values == -1).any()))
    assert seen == {True, False}


def routed_tie(case: Case) -> bool:
    """Return whether some row of logits has an exact tie across the last routed place."""
    logits = case.build("cpu")[0]["logits"].float()
    routed = int(case.params["topk"]) - int(case.params["num_fused_shared_experts"])
    if routed >= logits.shape[1]:
        return False
    ordered = logits.sort(dim=1, descending=True).values
    return bool((ordered[:, routed - 1] == ordered[:, routed]).any())


def misaligned(case: Case) -> bool:
    return "offset" in layouts_of(case.tensors["logits"]) and case.tensors["logits"].offset % 4 != 0


QUARRY: dict[str, Callable[[Case], bool]] = {
    "a tie across the last place": routed_tie,
    "no tokens": lambda c: c.tensors["logits"].shape[0] == 0,
    "one expert": lambda c: c.tensors["logits"].shape[1] == 1,
    "E one past a power of two": lambda c: c.tensors["logits"].shape[1] in (33, 65, 129, 257, 513, 1025, 2049),
    "E = 4096": lambda c: c.tensors["logits"].shape[1] == 4096,
    "NaN": lambda c: bool(c.build("cpu")[0]["logits"].isnan().any()),
    "groups": lambda c: 1 < int(c.params["topk_group"]) < int(c.params["num_expert_group"]),
    "padding, map and shared": lambda c: len(c.tensors) >= 3 and int(c.params["num_fused_shared_experts"]) > 0,
    "a misaligned start": misaligned,
    "k = E": lambda c: c.params["topk"] == c.tensors["logits"].shape[1] > 1,
}


@pytest.mark.parametrize("name", QUARRY)
def test_found_within_500_examples(name: str) -> None:
    found: list[Case] = []
    explore(gate.cases(GateDomain(), max_elements=1 << 13), found.append, start=0, count=500)
    assert any(QUARRY[name](case) for case in found)


def shrunk(domain: Domain, condition: Callable[[Case], bool]) -> Case:
    hunt = settings(QUICK, max_examples=3000, phases=[Phase.generate, Phase.shrink])
    return find(cases(domain, max_elements=1 << 12), condition, settings=hunt)


def test_a_tie_shrinks_to_one_row_of_two_experts() -> None:
    case = shrunk(GateDomain(), routed_tie)
    assert case.tensors["logits"].shape == (1, 2)
    assert case.params["topk"] == 1
    assert literal(case.build("cpu")[0]["logits"]) == ((0.0, 0.0),)
    assert list(case.tensors) == ["logits"]
    assert layouts_of(case.tensors["logits"]) == frozenset()


def test_a_width_shrinks_to_the_smallest_that_fails() -> None:
    case = shrunk(GateDomain(), lambda c: c.tensors["logits"].shape[1] > 32 and c.tensors["logits"].shape[0] > 2)
    assert case.tensors["logits"].shape == (3, 33)
    assert case.params["num_expert_group"] == 1
    assert case.params["num_fused_shared_experts"] == 0


def test_an_id_shrinks_to_one_token() -> None:
    case = shrunk(AlignDomain(), lambda c: bool((c.build("cpu")[0]["topk_ids"] == -1).any()))
    assert case.tensors["topk_ids"].shape == (1, 1)
    assert case.params == {"num_experts": 1, "block_size": 1}


def test_presets_are_drawn_and_can_be_asked_for() -> None:
    models = {(p.experts, p.topk, p.groups, p.scale) for p in PRESETS}
    found = 0
    for case in drawn(gate.cases(GateDomain(), max_elements=1 << 14), 300):
        p, experts = case.params, case.tensors["logits"].shape[1]
        routed = int(p["topk"]) - int(p["num_fused_shared_experts"])
        found += (experts, routed, p["num_expert_group"], p["routed_scaling_factor"]) in models
    assert 30 < found < 150
    for case in drawn(gate.cases(GateDomain(), preset="deepseek-v3", presets=False), 20):
        assert case.tensors["logits"].shape[1] == 256
        assert (case.params["num_expert_group"], case.params["topk_group"]) == (8, 4)
        assert case.params["topk"] in (8, 9)
    for case in drawn(align.cases(AlignDomain(), preset="kimi-k2"), 20):
        assert (case.params["num_experts"], case.tensors["topk_ids"].shape[1]) == (384, 8)
    for case in drawn(append.cases(AppendDomain(), preset="kimi-vl"), 20):
        assert case.params == {"num_experts": 64, "num_fused_shared_experts": 2}


def test_presets_know_their_domain() -> None:
    assert [p.name for p in presets_in(NARROW_GATE, "fused_gate")] == ["kimi-vl", *_sigmoid_up_to_256()]
    assert presets_in(GateDomain(), "fused_gate") == list(PRESETS)
    assert len({p.name for p in PRESETS}) == len(PRESETS)
    assert all(p.source for p in PRESETS)
    with pytest.raises(ValueError, match="preset is 'gpt-9'; allowed: kimi-vl, "):
        preset_named("gpt-9")
    with pytest.raises(ValueError, match="outside the domain"):
        gate.cases(NARROW_GATE, preset="kimi-k2")
    with pytest.raises(ValueError, match="op is 'fused_gate'"):
        presets_in(AlignDomain(), "fused_gate")


def _sigmoid_up_to_256() -> list[str]:
    return ["glm-4.5-air", "glm-5", "mimo-v2-flash"]


def test_empty_domains_are_refused() -> None:
    with pytest.raises(ValueError, match="no E of"):
        gate.cases(GateDomain(experts=(7, 11), groups=((2, 1),)))
    with pytest.raises(ValueError, match="topk allows no value"):
        align.cases(AlignDomain(topk=range(1, 1)))


def test_thresholds_are_drawn() -> None:
    domain = GateDomain(thresholds={"tokens": (777,), "experts": (1234,)})
    shapes = [c.tensors["logits"].shape for c in drawn(gate.cases(domain, max_elements=1 << 20), 700)]
    assert {776, 777, 778} & {t for t, _ in shapes}
    assert {1233, 1234, 1235} & {e for _, e in shapes}


def test_interesting_sizes() -> None:
    assert interesting(0, 5) == [0, 1, 2, 3, 4, 5]
    assert {31, 32, 33, 95, 96, 97, 999, 1000} <= set(interesting(0, 1000))
    assert Choices((4, 2, 8)).within(5, 8)
    assert not Choices((4, 2, 8)).within(5, 7)


def test_labels_name_what_matters() -> None:
    seen: dict[str, set[str]] = {}
    for case in drawn(gate.cases(GateDomain(), max_elements=1 << 12), 500):
        for name, value in labels(case).items():
            seen.setdefault(name, set()).update(value.split("+"))
    assert seen["ties"] == {"boundary", "exact", "near", "rare"}
    assert seen["layout"] == {"contiguous", "offset", "row_stride", "transposed", "broadcast"}
    assert {"bias", "padding", "map", "shared", "scale", "on_output", "softmax"} <= seen["flags"]
    assert [size_class(n) for n in (0, 4, 31, 32, 33, 100)] == ["0", "4", "2^5-1", "2^5", "2^5+1", "2^6..2^7"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_a_dtype_makes_infinite_counts_as_an_infinity(dtype: str) -> None:
    most = torch.finfo(DTYPES[dtype]).max
    for value in (most, math.nextafter(most, math.inf), most * (1 + 2.0**-12), most * (1 + 2.0**-7), 2.0**128, 1e300):
        for signed in (value, -value):
            spec = TensorSpec(dtype, (1, 2), rows=((0.0, signed),))
            held = spec.contents("cpu")[0, 1].item()
            assert holds_inf(spec) == math.isinf(held), signed
            assert (list(marked_values(spec))[1] == held) == (abs(signed) == most or math.isinf(held))


def test_every_score_pattern_is_drawn() -> None:
    names: set[str] = set()
    for case in drawn(gate.cases(GateDomain(), max_elements=1 << 12), 1200):
        names |= {n.partition("(")[0] for n in patterns_of(case.tensors["logits"])}
    assert len(names) == 17  # 16 patterns and "edited"


LITERAL = Case(
    "fused_gate",
    {"topk": 2},
    {
        "logits": TensorSpec("float32", (3, 4), rows=((0.0, 1.0, 2.0, 3.0),)),
        "bias": TensorSpec("float32", (4,), rows=(0.0,)),
    },
)
IDS = Case(
    "moe_align_block_size",
    {"num_experts": 4, "block_size": 2},
    {"topk_ids": TensorSpec("int32", (2, 2), rows=((0, 3),))},
)


def row_of(*values: float) -> TensorSpec:
    return TensorSpec("float32", (1, len(values)), rows=(values,))


OUTSIDE: dict[str, tuple[Case, Domain, str]] = {
    "experts": (LITERAL, GateDomain(experts=(8, 16)), "the number of experts is 4; allowed: 8, 16"),
    "topk": (LITERAL, GateDomain(topk=range(3, 9)), "topk is 2; allowed: 3 to 8"),
    "bool": (LITERAL.but(topk=True), GateDomain(), "topk is True; allowed: 1 to 32"),
    "flag": (LITERAL.but(renormalize=1), GateDomain(), "renormalize is 1; allowed: True, False"),
    "bias": (LITERAL, GateDomain(bias="none"), "bias is given; allowed: none"),
    "no bias": (LITERAL.but(bias=None), GateDomain(bias="required"), "bias is missing; allowed: a tensor"),
    "pairs": (
        LITERAL,
        GateDomain(groups=((2, 1), (4, 2))),
        "(num_expert_group, topk_group) is (1, 1); allowed: (2, 1), (4, 2)",
    ),
    "groups": (
        LITERAL.but(num_expert_group=4),
        GateDomain(),
        "topk_group is 1, which keeps 1 experts; allowed: at least 2 experts",
    ),
    "NaN": (
        LITERAL.but(logits=row_of(0, 1, 2, float("nan"))),
        GateDomain(nan=False),
        "logits holds NaN; allowed: numbers",
    ),
    "infinity": (
        LITERAL.but(bias=TensorSpec("float32", (4,), rows=(float("-inf"),))),
        GateDomain(inf=False),
        "bias holds an infinity; allowed: finite numbers",
    ),
    "stray tensor": (
        LITERAL.but(weights=row_of(1.0)),
        GateDomain(),
        "weights is given; allowed: logits, bias, num_token_non_padded, expert_map",
    ),
    "extra": (LITERAL, GateDomain(extra=lambda case: "T is 3; allowed: even T"), "T is 3; allowed: even T"),
    "id": (
        IDS.but(topk_ids=TensorSpec("int32", (2, 2), rows=((0, 4),))),
        AlignDomain(out_of_range=False),
        "topk_ids holds 4; allowed: -1 to 3",
    ),
    "minus one": (
        IDS.but(topk_ids=TensorSpec("int32", (1, 2), rows=((0, -1),))),
        AlignDomain(minus_one=False),
        "topk_ids holds -1; allowed: 0 to 3",
    ),
    "recipe of more experts": (
        IDS.but(
            topk_ids=TensorSpec(
                "int32",
                (1, 2),
                recipe={
                    "kind": "ids",
                    "seed": 0,
                    "num_experts": 5,
                    "blocks": [{"pattern": "uniform"}],
                    "edits": [],
                },
            )
        ),
        AlignDomain(out_of_range=False),
        "topk_ids holds ids of 5 experts; allowed: -1 to 3",
    ),
    "mapped value": (
        IDS.but(expert_map=TensorSpec("int32", (4,), rows=(0, 1, 2, 4))),
        AlignDomain(),
        "expert_map holds 4; allowed: -1 to 3",
    ),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_why_outside_names_argument_value_and_what_is_allowed(name: str) -> None:
    case, domain, reason = OUTSIDE[name]
    assert why_outside(case, domain) == reason


def test_why_outside_accepts_and_refuses_domains() -> None:
    assert why_outside(LITERAL, GateDomain()) is None
    assert why_outside(IDS, AlignDomain()) is None
    with pytest.raises(ValueError, match="domain is a AlignDomain; allowed: the domain of fused_gate"):
        why_outside(LITERAL, AlignDomain())
