"""The oracle of fused_gate accepts float32 evaluations of the formula and rejects planted wrong results."""

from __future__ import annotations

import math

import pytest
import torch
from oracle_kit import DOMAIN, INF, NAN, Args, checks_of_ids, evaluate, f32, failed, i32
from zoo import RIGHT
from zoo.right import Gate32

from moeproof.strategies.case import Case
from moeproof.verify.explore import derived, explore, inside
from moeproof.verify.oracle.gate import (
    GateParams,
    GateRules,
    gold_groups,
    gold_ids,
    score_rows,
    unmap,
    weight_bounds,
)
from moeproof.verify.oracle.gate_rows import is_gold, kept_key
from moeproof.verify.oracle.scores import TINY, ULP, U, exp_error, score_error, scores

# -- what has to be accepted ---------------------------------------------------------------------------------


class NoisyExp(Gate32):
    """An exponential that is off by up to the documented bound, up or down by a hash of its input."""

    share = 0.98

    def exp(self, x: torch.Tensor) -> torch.Tensor:
        # -0 is +0: equal values have equal errors.
        bits = (x + 0.0).contiguous().view(torch.int32).long() * 2654435761 >> 7
        sign = (bits % 3 - 1).double()
        wide = x.double()
        # Past 110 the result is 0 or inf whatever the error.
        size = wide.abs().clamp(max=110).nan_to_num(0)
        return (wide.exp() * (1 + sign * self.share * (2 + 1.173 * size) * ULP)).float()


class Flushing(NoisyExp):
    """Results below the smallest normal number are flushed to zero, on top."""

    def exp(self, x: torch.Tensor) -> torch.Tensor:
        value = super().exp(x)
        return torch.where(value < TINY, 0.0, value)

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        value = super().scores(x)
        return torch.where(value.abs() < TINY, 0.0, value)

    def biased(self, s: torch.Tensor) -> torch.Tensor:
        value = super().biased(s)
        return torch.where(value.abs() < TINY, 0.0, value)


class GroupsReversed(Gate32):
    """A group's score is the sum of its best two, smaller first."""

    def group_scores(self, c: torch.Tensor) -> torch.Tensor:
        two = c.masked_fill(c.isnan(), -INF).topk(min(2, c.shape[-1]), dim=-1).values.flip(-1)
        score = two[..., 0] + two[..., 1] if two.shape[-1] == 2 else two[..., 0]
        return score.masked_fill((~c.isnan()).sum(-1) < min(2, c.shape[-1]), NAN)


@pytest.mark.parametrize("kind", [NoisyExp, Flushing, GroupsReversed], ids=lambda k: k.__name__)
def test_accepts_other_evaluations(kind: type[Gate32]) -> None:
    rows = 0

    def body(case: Case) -> None:
        nonlocal rows
        tensors, _ = case.build("cpu")
        args: Args = {**tensors, **case.params}
        if args["logits"].shape[0]:
            assert not failed(args, evaluate(kind, args)), case.dumps()
            rows += args["logits"].shape[0]

    explore(inside("fused_gate", DOMAIN, max_elements=1 << 12), body, start=derived(kind.__name__), count=200)
    assert rows > 3000


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax", "sqrtsoftplus"])
@pytest.mark.parametrize("kind", [NoisyExp, Flushing], ids=lambda k: k.__name__)
def test_accepts_near_ties_and_extremes(kind: type[Gate32], scoring: str) -> None:
    # Logits within a few ulp of each other, and over the whole range of exp: nearly every row is near a tie.
    step = torch.arange(512 * 64).reshape(512, 64)
    near = (1 + (step * 7919 % 97).float() * ULP) * torch.linspace(-90, 90, 512)[:, None]
    wide = torch.linspace(-110, 110, 512 * 64).reshape(512, 64)[:, torch.arange(64) * 37 % 64].contiguous()
    for logits in (near, wide):
        for groups, bias in (
            (1, None),
            (8, None),
            (8, torch.linspace(-1e-6, 1e-6, 64)),
            (1, f32(*[2.0] * 64)),
        ):
            args = {"logits": logits, "topk": 8, "scoring": scoring, "num_expert_group": groups, "bias": bias}
            for renormalize in (True, False):
                args |= {"topk_group": max(1, groups // 2), "renormalize": renormalize}
                assert not failed(args, evaluate(kind, args))


def test_accepts_overflow_of_a_group_score() -> None:
    # In float32 both groups' scores are inf: a tie, which goes to group 0.
    largest = 3.0e38
    bias = f32(largest, largest / 2, largest, largest)
    assert checks_of_ids(torch.zeros(1, 4), [0], bias=bias, num_expert_group=2) == set()
    assert checks_of_ids(torch.zeros(1, 4), [2], bias=bias, num_expert_group=2) == set()
    assert checks_of_ids(torch.zeros(1, 4), [0], bias=bias / 4, num_expert_group=2) == {"selection"}
    # And -inf, which doesn't outrank a true -inf.
    low = f32(-largest, -largest, 0, -INF)
    assert checks_of_ids(torch.zeros(1, 4), [0], bias=low, num_expert_group=2) == set()
    assert checks_of_ids(torch.zeros(1, 4), [2], bias=low, num_expert_group=2) == set()


def test_accepts_flushed_denormal_biases() -> None:
    logits = torch.full((1, 2), -INF)
    assert checks_of_ids(logits, [0, 1], bias=f32(1e-40, 2e-40)) == set()
    assert checks_of_ids(logits, [1, 0], bias=f32(1e-40, 2e-40)) == set()
    assert checks_of_ids(logits, [0, 1], bias=f32(1e-37, 2e-37)) == {"selection"}


def test_right_subjects_agree_within_the_bounds() -> None:
    """The zoo's right gates differ from each other in bits, or they would test nothing."""
    torch.manual_seed(0)
    args = {"logits": torch.randn(64, 48) * 8, "topk": 8, "scoring": "sigmoid"}
    seen = set()
    for subject in (s for s in RIGHT if s.op == "fused_gate"):
        outputs = {"weights": torch.empty(64, 8), "indices": torch.empty(64, 8, dtype=torch.int32)}
        subject.load()(dict(args), outputs)
        assert not failed(args, outputs)
        seen.add(outputs["weights"].numpy().tobytes())
    assert len(seen) >= 5


# -- bounds --------------------------------------------------------------------------------------------------


def test_bounds_by_hand() -> None:
    x = torch.tensor([[0.0, 2.0, -100.0, INF, -INF]], dtype=torch.float64)
    s = scores(x, "sigmoid")
    sigmoid = score_error(x, s, "sigmoid")[0].tolist()
    assert sigmoid[0] == pytest.approx(0.5 * (3 * ULP + 0.5 * 2 * ULP), rel=1e-12)
    s1 = 1 / (1 + math.exp(-2))
    assert sigmoid[1] == pytest.approx(s1 * (3 * ULP + (1 - s1) * 4.4 * ULP), rel=1e-12)
    assert sigmoid[2] >= TINY
    assert sigmoid[3:] == [0, 0]
    assert exp_error(torch.tensor(-10.0)).item() == pytest.approx(14 * ULP)

    x = torch.tensor([[0.0, -1.0]], dtype=torch.float64)
    s = scores(x, "softmax")
    top = x.amax(1, keepdim=True)
    own = [2 * ULP, (2 + 1.2) * ULP + U]
    error = score_error(x, s, "softmax", top=top)[0]
    torch.testing.assert_close(error, s[0] * (3 * ULP + torch.tensor(own)), rtol=1e-6, atol=0)

    x = torch.tensor([[0.0]], dtype=torch.float64)
    sp = math.log(2)
    root = score_error(x, scores(x, "sqrtsoftplus"), "sqrtsoftplus").item()
    assert root == pytest.approx(math.sqrt(sp) * (3 * ULP + 0.5 * 0.5 / sp * 2 * ULP), rel=1e-12)


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax", "sqrtsoftplus"])
@pytest.mark.parametrize("biased", [False, True])
def test_near_ties_at_the_bound(scoring: str, biased: bool) -> None:
    """The worse of two experts may come first while the intervals overlap, and no further."""
    params = GateParams(topk=2, scoring=scoring)
    bias = f32(0.25, 0.25) if biased else None
    verdicts = []
    for gap in range(400):
        logits = torch.tensor([[1.0, 1.0 + gap * ULP]])
        rows = score_rows(logits, bias, params)
        low, high = rows.interval(scoring)
        overlap = bool(low[0, 1] <= high[0, 0])
        got = checks_of_ids(logits, [0, 1], scoring=scoring, bias=bias)
        assert got == (set() if overlap else {"selection"}), gap
        assert checks_of_ids(logits, [1, 0], scoring=scoring, bias=bias) == ({"tie_order"} if gap == 0 else set())
        verdicts.append(overlap)
    assert verdicts.count(True) in range(4, 80)
    assert verdicts == sorted(verdicts, reverse=True)


def test_weight_bounds_are_tight() -> None:
    """No bound is wider than 64 ulp for moderate logits: a weight scaled by 1 + 1e-5 is outside."""
    torch.manual_seed(1)
    for scoring in ("sigmoid", "softmax", "sqrtsoftplus"):
        params = GateParams(topk=8, scoring=scoring)
        rows = score_rows(torch.randn(100, 256), None, params)
        low, high = weight_bounds(rows, None, gold_ids(rows, None, params), params, GateRules())
        assert float(((high - low) / high).max()) < 2 * 64 * ULP


@pytest.mark.parametrize(("logit", "wrong"), [(-84.6, set()), (-70.0, {"weights"})])
def test_a_quotient_may_be_flushed_before_it_is_scaled(logit: float, wrong: set[str]) -> None:
    args = {"logits": f32([20.0] * 15 + [logit]), "topk": 16, "routed_scaling_factor": 16.0}
    outputs = {"indices": i32(list(range(16))), "weights": f32([16 / 15] * 15 + [0.0])}
    assert failed(args | {"apply_routed_scaling_factor_on_output": True}, outputs) == wrong


# -- ties, NaN and infinities --------------------------------------------------------------------------------


def test_provable_ties_come_by_id() -> None:
    logits = f32([1, 2, 2, 2])
    assert checks_of_ids(logits, [1, 2]) == set()
    assert checks_of_ids(logits, [2, 1]) == {"tie_order"}
    assert checks_of_ids(logits, [1, 3]) == {"tie_order"}
    assert checks_of_ids(logits, [3, 0]) == {"selection"}
    assert checks_of_ids(logits, [2, 1], GateRules(tie_order="any")) == set()
    assert checks_of_ids(logits, [3, 0], GateRules(tie_order="any")) == {"selection"}
    assert checks_of_ids(f32([0.0, -0.0]), [1, 0]) == {"tie_order"}
    # Another bias makes the tie unprovable: 2 + 1 rounds as it may.
    near = f32(0.5, 0.5 + 2 * U, 0.5, 0.5)
    assert checks_of_ids(f32([2, 2, 2, 2]), [0, 1], bias=near) == set()
    assert checks_of_ids(f32([2, 2, 2, 2]), [1, 0], bias=near) == set()
    assert checks_of_ids(f32([2, 2, 2, 2]), [2, 0], bias=near) == {"tie_order"}


def test_what_nothing_ranks_may_be_declared_open() -> None:
    logits, rules = f32([NAN, NAN, 1.0, 1.0]), GateRules(unranked="any")
    assert checks_of_ids(logits, [2, 3, 1]) == {"tie_order"}
    assert checks_of_ids(logits, [2, 3, 1], rules) == set()
    assert checks_of_ids(logits, [3, 2], rules) == {"tie_order"}
    assert checks_of_ids(logits, [0, 2], rules) == {"nan_policy"}
    outputs = {"indices": i32([2, 3, 0]), "weights": f32([0.5, 0.5, NAN])}
    args = {"logits": logits, "topk": 3}
    assert failed(args, outputs) == {"nan_policy"}
    assert failed(args, outputs, rules) == set()


def test_saturated_scores_are_open() -> None:
    assert checks_of_ids(f32([40, 90]), [0, 1]) == checks_of_ids(f32([40, 90]), [1, 0]) == set()
    assert checks_of_ids(f32([-200, -300]), [1, 0]) == set()
    assert checks_of_ids(f32([40, 90]), [0, 1], scoring="sqrtsoftplus") == {"selection"}


def test_nan_ranks_below_minus_infinity() -> None:
    logits, bias = f32([NAN, 0, 1, NAN]), f32(0, -INF, 0, 0)
    assert checks_of_ids(logits, [2, 1, 0, 3], bias=bias) == set()
    assert checks_of_ids(logits, [2, 0, 1, 3], bias=bias) == {"nan_policy"}
    assert checks_of_ids(logits, [0, 2, 1, 3], bias=bias) == {"nan_policy"}
    assert checks_of_ids(logits, [2, 1, 3, 0], bias=bias) == {"tie_order"}
    assert checks_of_ids(logits, [2, 0], bias=bias) == {"nan_policy"}
    args = {"logits": f32([NAN, 0]), "topk": 2}
    assert failed(args, {"indices": i32([1, 0]), "weights": f32([1, 0])}) == set()
    assert failed(args, {"indices": i32([1, 0]), "weights": f32([1, NAN])}) == {"nan_policy"}
    assert failed(args, {"indices": i32([1, 0]), "weights": f32([NAN, NAN])}) == {"nan_policy"}


@pytest.mark.parametrize("row", [[NAN, 0, 1], [INF, 0, 1], [-INF, -INF, -INF]])
def test_softmax_of_an_undefined_row(row: list[float]) -> None:
    args = {"logits": f32(row), "topk": 2, "scoring": "softmax"}
    assert failed(args, {"indices": i32([0, 1]), "weights": f32([0, 0])}) == set()
    assert failed(args, {"indices": i32([1, 0]), "weights": f32([0, 0])}) == {"tie_order"}
    assert failed(args, {"indices": i32([0, 1]), "weights": f32([0.5, 0.5])}) == {"weights"}


def test_infinite_scores() -> None:
    args = {"logits": f32([INF, 4]), "topk": 2, "scoring": "sqrtsoftplus"}
    for weights in (f32([NAN, 0]), f32([1, 0]), f32([0, 0])):
        assert failed(args, {"indices": i32([0, 1]), "weights": weights}) == set()
    assert failed(args, {"indices": i32([1, 0]), "weights": f32([0, 0])}) == {"selection"}
    args["renormalize"] = False
    four = math.sqrt(math.log1p(math.exp(4)))
    assert failed(args, {"indices": i32([0, 1]), "weights": f32([INF, four])}) == set()
    assert failed(args, {"indices": i32([0, 1]), "weights": f32([1, four])}) == {"weights"}


def test_zero_sum_stays_zero() -> None:
    args = {"logits": f32([-INF, -INF]), "topk": 2}
    assert failed(args, {"indices": i32([0, 1]), "weights": f32([0, 0])}) == set()
    assert failed(args, {"indices": i32([0, 1]), "weights": f32([NAN, NAN])}) == {"nan_policy"}
    assert failed(args, {"indices": i32([0, 1]), "weights": f32([0.5, 0.5])}) == {"weights"}


@pytest.mark.parametrize("factor", [1e-30, 1e30, 1e300])
def test_extreme_scales(factor: float) -> None:
    args = {
        "logits": f32([3, 2, 1]),
        "topk": 3,
        "num_fused_shared_experts": 1,
        "routed_scaling_factor": factor,
    }
    for on_output in (True, False):
        args["apply_routed_scaling_factor_on_output"] = on_output
        assert failed(args, evaluate(Gate32, args)) == set()


# -- groups --------------------------------------------------------------------------------------------------


def test_ambiguous_groups_are_both_accepted_and_a_worse_one_is_not() -> None:
    # Groups 0 and 1 saturate; which one is kept depends on rounding. Group 2 is certainly worse.
    logits = f32([30, 31, 40, 41, 1, 2])
    shape: Args = {"num_expert_group": 3, "topk_group": 1}
    assert checks_of_ids(logits, [0, 1], **shape) == checks_of_ids(logits, [2, 3], **shape) == set()
    assert checks_of_ids(logits, [1, 0], **shape) == set()
    assert checks_of_ids(logits, [5, 4], **shape) == {"selection"}
    assert checks_of_ids(logits, [0, 2], **shape) == {"selection"}
    assert checks_of_ids(logits, [0, 2], num_expert_group=3, topk_group=2) == set()
    assert checks_of_ids(logits, [0, 5], num_expert_group=3, topk_group=2) == {"selection"}


def test_provably_tied_groups_come_by_id() -> None:
    # The same best two in another order: a + b = b + a.
    logits = f32([1, 2, -1, 2, 1, -3, 0, 0, 0])
    shape: Args = {"num_expert_group": 3, "topk_group": 1}
    assert checks_of_ids(logits, [1], **shape) == set()
    assert checks_of_ids(logits, [3], **shape) == {"tie_order"}
    assert checks_of_ids(logits, [3], GateRules(tie_order="any"), **shape) == set()
    assert checks_of_ids(logits, [6], **shape) == {"selection"}
    # The second best of group 1 is open between two experts: so is the tie.
    open_tie = f32([30, 31, -1, 30, 31, 32])
    assert checks_of_ids(open_tie, [3], num_expert_group=2, topk_group=1) == set()


def test_two_equal_maxima_both_count() -> None:
    logits = f32([1, 1, 2, -3])
    assert checks_of_ids(logits, [0], num_expert_group=2) == set()
    assert checks_of_ids(logits, [2], num_expert_group=2) == {"selection"}


def test_dropped_experts_fill_places_with_weight_zero() -> None:
    # Group 1 is kept: 2 certainly, then dropped 0 and 1 as -inf, then NaN.
    args = {
        "logits": f32([NAN, 0, 1, NAN, NAN, NAN, 5, 4]),
        "topk": 3,
        "num_expert_group": 4,
        "topk_group": 2,
    }
    right = {"indices": i32([6, 7, 0]), "weights": f32([1, 1, 0])}
    s6, s7 = (1 / (1 + math.exp(-x)) for x in (5, 4))
    right["weights"][0, :2] = f32([s6, s7])[0] / (s6 + s7)
    # Groups 0, 1 and 2 score NaN: group 0 is kept with group 3, and its 1 is finite.
    assert failed(args, right) == {"tie_order"}
    s1 = 0.5
    right["indices"][0, 2] = 1
    right["weights"] = f32([s6, s7, s1]) / (s6 + s7 + s1)
    assert failed(args, right) == set()
    # One group: two finite experts; the third place goes to the lowest dropped id, or to the lowest NaN of the group.
    args["topk_group"] = 1
    one = args | {"num_expert_group": 2, "logits": f32([0, 0, 0, 0, NAN, NAN, 5, 4]), "topk": 3}
    weights = f32([s6 / (s6 + s7), s7 / (s6 + s7), 0])
    assert failed(one, {"indices": i32([6, 7, 0]), "weights": weights}) == set()
    assert failed(one, {"indices": i32([6, 7, 1]), "weights": weights}) == {"tie_order"}
    assert failed(one, {"indices": i32([6, 7, 4]), "weights": weights}) == set()
    assert failed(one, {"indices": i32([6, 7, 5]), "weights": weights}) == {"tie_order"}
    spread = f32([s6, s7, 0.5])
    assert failed(one, {"indices": i32([6, 7, 0]), "weights": spread / spread.sum()}) == {"weights"}


def test_dropped_experts_count_as_minus_infinity_or_are_out() -> None:
    # Both groups score -inf, so group 0 is kept: 1, then 2 with -inf, then 0 and 3 with NaN. 4 to 7 are dropped.
    logits, bias = f32([NAN, 1, 0, NAN, 5, 0, 0, 0]), f32(0, 0, -INF, 0, 0, -INF, -INF, -INF)
    shape: Args = {"bias": bias, "num_expert_group": 2, "renormalize": False}
    assert checks_of_ids(logits, [1, 2, 4, 5], **shape) == set()
    assert checks_of_ids(logits, [1, 2, 0, 3], **shape) == set()
    assert checks_of_ids(logits, [4, 1, 2, 5], **shape) == {"tie_order"}
    assert checks_of_ids(logits, [1, 4, 5, 6], **shape) == {"tie_order"}
    assert checks_of_ids(logits, [1, 2, 5, 4], **shape) == {"tie_order"}
    assert checks_of_ids(logits, [1, 2, 3, 0], **shape) == {"tie_order"}
    assert checks_of_ids(logits, [1, 0, 2, 3], **shape) == {"nan_policy"}
    assert (
        checks_of_ids(logits, [1, 2, 0, 4], **shape) == checks_of_ids(logits, [1, 2, 4, 0], **shape) == {"nan_policy"}
    )
    # A row of NaN: the dropped experts, or those of the group that is kept.
    undefined: Args = {"num_expert_group": 2}
    row = torch.full((1, 8), NAN)
    assert checks_of_ids(row, [4, 5], **undefined) == checks_of_ids(row, [0, 1], **undefined) == set()
    assert checks_of_ids(row, [5, 4], **undefined) == checks_of_ids(row, [1, 0], **undefined) == {"tie_order"}
    assert checks_of_ids(row, [0, 4], **undefined) == checks_of_ids(row, [4, 0], **undefined) == {"nan_policy"}


def test_starved_where_the_groups_are_open() -> None:
    # Both groups saturate. If group 0 is kept only two of its experts are finite, and expert 4 fills a place.
    logits = f32([20, 20.5, NAN, NAN, 30, 30, 30, 30])
    args = {"logits": logits, "topk": 3, "num_expert_group": 2, "topk_group": 1}
    third = f32([1, 1, 1]) / 3
    assert failed(args, {"indices": i32([0, 1, 4]), "weights": f32([0.5, 0.5, 0])}) == set()
    assert failed(args, {"indices": i32([4, 5, 6]), "weights": third}) == set()
    assert failed(args, {"indices": i32([0, 1, 5]), "weights": f32([0.5, 0.5, 0])}) == {"tie_order"}
    assert failed(args, {"indices": i32([0, 1, 2]), "weights": f32([0.5, 0.5, 0])}) == set()
    assert failed(args, {"indices": i32([0, 1, 3]), "weights": f32([0.5, 0.5, 0])}) == {"tie_order"}
    assert failed(args, {"indices": i32([0, 4, 5]), "weights": third}) == {"selection"}
    assert failed(args, {"indices": i32([0, 1, 4]), "weights": f32([0.5, 0.5, NAN])}) == {"nan_policy"}
    assert failed(args, {"indices": i32([0, 1, 4]), "weights": f32([1.5, 0.5, 0])}) == {"weights"}


# -- small parts ---------------------------------------------------------------------------------------------


def test_is_gold_agrees_with_a_sort() -> None:
    torch.manual_seed(0)
    params = GateParams(topk=3, num_expert_group=2)
    logits = torch.randint(-1, 2, (500, 6)).float()
    logits[torch.rand(500, 6) < 0.2] = NAN
    rows = score_rows(logits, None, params)
    kept = gold_groups(rows, params)
    gold = gold_ids(rows, kept, params)
    assert bool(is_gold(kept_key(rows, kept), gold).all())
    other = torch.stack([torch.randperm(6)[:3] for _ in range(500)])
    torch.testing.assert_close(is_gold(kept_key(rows, kept), other), (other == gold).all(1))


def test_unmap() -> None:
    ids = torch.tensor([[7, 9, -1, 2**31 - 1, 8, -5]])
    assert unmap(ids, i32(9, 7, 2**31 - 1)).tolist() == [[1, 0, -1, 2, -1, -1]]
    assert unmap(ids, None) is ids
