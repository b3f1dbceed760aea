"""What the adapter of vllm declares for `grouped_topk`, and that its listed findings lie inside what it declares."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from moeproof.strategies.case import Case, TensorSpec
from moeproof.strategies.domain_check import why_outside
from moeproof.verify import corpus
from moeproof.verify.libraries import vllm

FINDINGS = Path(__file__).parents[1] / "docs" / "findings"
SUBJECTS = {subject.name: subject for subject in vllm.subjects()}
GROUPED = SUBJECTS["vllm:fused_gate@grouped_topk"]


def case(
    tokens: int = 1,
    experts: int = 4,
    topk: int = 1,
    groups: int = 1,
    kept: int = 1,
    *,
    dtype: str = "float32",
    logit: float = 0.0,
    bias: float = 0.0,
) -> Case:
    """Return a case whose first bias and, in each row, first logit are given; the others are 0."""
    tensors = {
        "logits": TensorSpec(dtype, (tokens, experts), rows=((logit, *[0.0] * (experts - 1)),)),
        "bias": TensorSpec("float32", (experts,), rows=(bias, *[0.0] * (experts - 1))),
    }
    params = {"topk": topk, "scoring": "sigmoid", "num_expert_group": groups, "topk_group": kept}
    return Case("fused_gate", params, tensors)


@pytest.mark.parametrize(
    ("shape", "path"),
    [
        ((1, 128, 8), "one group, E<=128, k<=8, a warp a token"),
        ((1, 255, 8), "one group, E<=256, k<=8, a warp a token"),
        ((1024, 256, 8), "one group, E<=256, k<=8, a block a token"),
        ((1025, 256, 8), "one group, E<=256, k<=8, a warp a token"),
        ((1, 384, 8), "one group, E<=384, k<=8, a block a token"),
        ((1, 128, 9), "one group, E<=512, k<=22, a warp a token"),
        ((1, 513, 8), "one group, E<=768, k<=16, a block a token"),
        ((1025, 896, 16), "one group, E<=896, k<=16, a block a token"),
        ((1025, 1024, 16), "one group, E<=1024, k<=16, a block a token"),
        ((1, 1025, 8), "general"),
        ((1, 513, 17), "general"),
        ((1, 23, 23), "general"),
        ((1, 256, 8, 8, 4), "groups"),
        ((1, 64, 8, 16, 4), "groups"),
        ((1, 256, 8, 8, 5), "general"),
        ((1, 512, 8, 8, 4), "general"),
    ],
)
def test_the_path_of_a_shape(shape: tuple[int, ...], path: str) -> None:
    made = case(*shape)
    assert why_outside(made, GROUPED.domain) is None
    assert GROUPED.path is not None
    assert GROUPED.path(made) == path


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["logit", "bias"])
def test_what_is_not_finite_is_judged_in_the_kernel_for_groups_only(name: str, value: float) -> None:
    held = {"logit": "logits", "bias": "bias"}[name]
    for shape in ((1, 4), (1, 256, 8), (1, 23, 23), (1, 512, 8, 8, 4)):
        assert f"{held} holds NaN or an infinity" in str(why_outside(case(*shape, **{name: value}), GROUPED.domain))
    why = why_outside(case(1, 4, 2, 2, 1, **{name: value}), GROUPED.domain)
    assert why == (f"{held} holds NaN; allowed for a shape that takes this kernel: numbers" if value != value else None)


@pytest.mark.parametrize(
    ("bias", "words"),
    [
        ((math.inf, -math.inf, 0.0, 0.0), "bias holds infinities of both signs"),
        ((math.inf, math.inf, 0.0, 0.0), "None"),
        ((-math.inf,) * 4, "None"),
    ],
)
def test_infinities_of_one_sign_are_judged_where_groups_are_ranked(bias: tuple[float, ...], words: str) -> None:
    made = case(1, 4, 1, 2, 1).but(bias=TensorSpec("float32", (4,), rows=bias))
    assert words in str(why_outside(made, GROUPED.domain))


def test_a_finite_bias_that_rules_an_expert_out_is_judged() -> None:
    assert why_outside(case(1, 1, bias=torch.finfo(torch.float32).min), GROUPED.domain) is None


def test_a_group_has_at_least_two_experts() -> None:
    assert "at least 2 in a group" in str(why_outside(case(1, 2, 1, 2, 1), GROUPED.domain))
    assert why_outside(case(1, 4, 1, 2, 1), GROUPED.domain) is None
    assert why_outside(case(1, 1), GROUPED.domain) is None


def test_half_precision_is_judged_where_scores_are_float32() -> None:
    assert why_outside(case(1, 1024, 16, dtype="bfloat16"), GROUPED.domain) is None
    assert why_outside(case(1, 256, 8, 8, 4, dtype="bfloat16"), GROUPED.domain) is None
    assert "general kernel: float32" in str(why_outside(case(1, 1025, dtype="bfloat16"), GROUPED.domain))


def test_topk_softplus_sqrt_lacks_a_kernel_that_topk_softmax_has() -> None:
    path = SUBJECTS["vllm:fused_gate@topk_softmax"].path
    assert path is not None
    assert path(case(1, 352)) == "one kernel"
    domain = SUBJECTS["vllm:fused_gate@topk_softplus_sqrt"].domain
    assert 352 not in domain.experts  # type: ignore[union-attr]


def test_listed_findings_lie_inside_the_domain() -> None:
    seen = 0
    for path in sorted(FINDINGS.glob("*/finding.json")):
        subject = SUBJECTS.get(json.loads(path.read_text(encoding="utf-8"))["subject"])
        if subject is not None:
            assert why_outside(corpus.read_case(path.with_name("case.json")), subject.domain) is None, path.parent.name
            seen += 1
    assert seen
