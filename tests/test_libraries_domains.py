"""What released gates claim of NaN and infinities: cases are judged inside that, and left out beyond."""

from __future__ import annotations

import math

import pytest
import torch

from moeproof.strategies.case import Case, TensorSpec
from moeproof.strategies.domain_check import why_outside
from moeproof.verify.contract import arguments, judge
from moeproof.verify.subject import find

Row = tuple[float, ...]
TWO, NAN, INF = (0.0, 0.0), (math.nan, 0.0), (math.inf, -math.inf)
EIGHT = TWO * 4


@pytest.mark.parametrize(
    ("name", "logits", "bias", "params", "words"),
    [
        # Its own check: topk_group * n_group must be >= topk.
        (
            "flashinfer:fused_gate@no_aux_tc",
            TWO,
            TWO,
            {"topk": 2},
            "2 routed places with 1 of 1 groups kept; allowed: up to 1",
        ),
        ("flashinfer:fused_gate@no_aux_tc", TWO, TWO, {"topk": 1}, None),
        ("flashinfer:fused_gate@no_aux_tc", TWO, TWO, {"topk": 2, "num_expert_group": 2, "topk_group": 2}, None),
        # Two infinities in a group, whose score is NaN.
        (
            "flashinfer:fused_gate@no_aux_tc",
            TWO * 2,
            INF * 2,
            {"topk": 1, "num_expert_group": 2},
            "bias holds infinities of both signs",
        ),
        ("flashinfer:fused_gate@no_aux_tc", TWO, INF, {"topk": 1}, None),
        ("flashinfer:fused_gate@no_aux_tc", INF * 2, TWO * 2, {"topk": 1, "num_expert_group": 2}, None),
        ("flashinfer:fused_gate@no_aux_tc", TWO, (-math.inf,) * 2, {"topk": 1, "num_expert_group": 2}, None),
        # A NaN that is passed on.
        ("flashinfer:fused_gate@no_aux_tc", NAN, TWO, {"topk": 1}, "logits holds NaN"),
        ("sglang:fused_gate@triton", NAN, TWO, {"topk": 1}, "logits holds NaN"),
        ("sglang:fused_gate@triton", TWO, NAN, {"topk": 1}, "bias holds NaN"),
        ("sglang:fused_gate@triton_softmax", NAN, None, {"topk": 1}, "logits holds NaN"),
        # Two infinities in a group.
        (
            "sglang:fused_gate@triton",
            EIGHT,
            INF + TWO * 3,
            {"topk": 1, "num_expert_group": 2},
            "bias holds inf with groups",
        ),
        ("sglang:fused_gate@triton", TWO, INF, {"topk": 1}, None),
        ("sglang:fused_gate@triton", INF + TWO * 3, EIGHT, {"topk": 1, "num_expert_group": 2}, None),
        ("sglang:fused_gate@triton", EIGHT, (0.0, -math.inf) * 4, {"topk": 1, "num_expert_group": 2}, None),
        # A group without a second best.
        ("sglang:fused_gate@triton", TWO, TWO, {"topk": 1, "num_expert_group": 2}, "at least 2 in a group"),
        ("sglang:fused_gate@triton", (0.0,), (0.0,), {"topk": 1, "num_expert_group": 1}, None),
        # A softmax that is NaN.
        ("sglang:fused_gate@triton_softmax", INF, None, {"topk": 1}, "logits holds inf"),
        ("sglang:fused_gate@triton_softmax", (-math.inf,) * 2, None, {"topk": 1}, "logits holds a row of -inf"),
        ("sglang:fused_gate@triton_softmax", (0.0, -math.inf), None, {"topk": 1}, None),
        # No candidate.
        ("sglang:fused_gate@kimi_k2", TWO * 128, (-math.inf, 0.0) * 128, {"topk": 1}, "bias holds -inf"),
        ("sglang:fused_gate@kimi_k2", TWO * 128, (math.inf, -3.4e38) * 128, {"topk": 1}, None),
        # A repeated id is wrong whatever the logits are.
        ("sglang:fused_gate@kimi_k2", NAN * 128, TWO * 128, {"topk": 2}, None),
    ],
)
def test_gates_are_judged_inside_what_they_claim(
    name: str, logits: Row, bias: Row | None, params: dict[str, int], words: str | None
) -> None:
    (subject,) = find([name])
    tensors = {"logits": TensorSpec("float32", (1, len(logits)), rows=(logits,))}
    if bias is not None:
        tensors["bias"] = TensorSpec("float32", (len(bias),), rows=bias)
    scoring = subject.domain.scorings[0]  # type: ignore[union-attr]
    why = why_outside(Case("fused_gate", {"scoring": scoring, **params}, tensors), subject.domain)
    assert (why is None) if words is None else words in str(why)


@pytest.mark.parametrize(
    ("logit", "bias", "ids", "weights", "checks"),
    [
        # No candidate is left for the second place; the domain leaves such a bias out.
        (0.0, (0.0, -math.inf), (0, 1), (0.5, 0.0), []),
        (0.0, (-math.inf, -math.inf), (0, 0), (0.0, 0.0), ["ids_invalid"]),
        (math.nan, TWO, (0, 1), (math.nan, math.nan), []),
        (math.nan, TWO, (0, 0), (math.nan, math.nan), ["ids_invalid"]),
        (0.0, TWO, (0, 1), (0.5, 0.0), ["weights"]),
        (0.0, TWO, (0, 1), (0.5, math.nan), ["nan_policy"]),
    ],
)
def test_of_kimi_k2_the_weights_of_what_it_cannot_rank_are_open(
    logit: float, bias: Row, ids: tuple[int, int], weights: Row, checks: list[str]
) -> None:
    (subject,) = find(["sglang:fused_gate@kimi_k2"])
    tensors = {
        "logits": TensorSpec("float32", (1, 256), rows=((logit,) * 256,)),
        "bias": TensorSpec("float32", (256,), rows=(*bias, *[-math.inf] * 254)),
    }
    case = Case("fused_gate", {"topk": 2, "scoring": "sigmoid", "renormalize": False}, tensors)
    args = arguments(case, case.build("cpu")[0])
    made = {"weights": torch.tensor([weights]), "indices": torch.tensor([ids], dtype=torch.int32)}
    assert [v.check for v in judge(case, subject, args, made)] == checks


def test_of_triton_softmax_only_small_logits_are_looked_through_for_rows_of_minus_inf() -> None:
    (subject,) = find(["sglang:fused_gate@triton_softmax"])
    block = {"pattern": "constant", "value": 0.0, "special": -math.inf, "where": "one", "every": 1}
    recipe = {"kind": "scores", "seed": 1, "blocks": [block], "edits": []}
    small, large = (
        Case(
            "fused_gate",
            {"topk": 1, "scoring": "softmax"},
            {"logits": TensorSpec("float32", (rows, 64), recipe=recipe)},
        )
        for rows in (1024, 1025)
    )
    assert why_outside(small, subject.domain) is None
    assert "more than 65536 elements" in str(why_outside(large, subject.domain))
