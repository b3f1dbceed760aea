"""The oracle of moe_align_block_size: hand-made answers, orders that are free, planted wrong results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moeproof.verify.oracle.align import AlignRules, capacity, expected_align, judge_align

DROP, SENTINEL = AlignRules(), AlignRules("stable", "sentinel_blocks")
ANY, ANY_SENTINEL = AlignRules("any"), AlignRules("any", "sentinel_blocks")
IDS = torch.tensor([[0, 2], [2, 2], [-1, 5], [1, 0]], dtype=torch.int32)
"""n = 8: expert 0 has 0 and 7, expert 1 has 6, expert 2 has 1, 2, 3; index 4 is −1, index 5 out of range."""
PLACES = [0, 7, 8, 8, 6, 8, 8, 8, 1, 2, 3, 8, 8, 8, 8, 8]
Outputs = dict[str, torch.Tensor]


def args(ids: torch.Tensor = IDS, experts: int = 3, block: int = 4, **more: Any) -> dict[str, Any]:
    return {"topk_ids": ids, "num_experts": experts, "block_size": block, **more}


def listed(arguments: dict[str, Any], rules: AlignRules = DROP) -> tuple[list[int], ...]:
    return tuple(value.tolist() for value in expected_align(arguments, rules).values())


def test_by_hand() -> None:
    assert listed(args()) == (PLACES, [0, 1, 2, -1], [12])
    assert listed(args(IDS.long()), SENTINEL) == ([4, 8, 8, 8, *PLACES], [-1, 0, 1, 2, -1], [16])
    assert listed(args(block=1)) == ([0, 7, 6, 1, 2, 3, 8, 8], [0, 0, 1, 2, 2, 2, -1, -1], [6])
    assert listed(args(torch.zeros((0, 2), dtype=torch.int32))) == ([], [], [0])
    assert listed(args(torch.tensor([[-1, 7]]), block=2)) == ([2] * 4, [-1, -1], [0])
    mapped = args(torch.tensor([[0, 2, 2, -1, 3]]), block=2, expert_map=torch.tensor([1, 0, -1], dtype=torch.int32))
    assert listed(mapped) == ([0, 5, 5, 5, 5, 5, 5, 5], [1, -1, -1, -1], [2])
    # Sent elsewhere and none are one bucket; out of range stays dropped.
    assert listed(mapped, SENTINEL) == ([1, 2, 3, 5, 0, 5, 5, 5], [-1, -1, 1, -1], [6])
    assert listed(args(torch.tensor([[1 << 32, 1]]), block=1)) == ([1, 2], [1, -1], [1])


@pytest.mark.parametrize(
    ("numel", "experts", "block", "policy", "size"),
    [
        (0, 4, 8, "drop", 0),
        (1, 4, 8, "drop", 8),
        (8, 3, 4, "drop", 16),
        (8, 3, 4, "sentinel_blocks", 20),
        (3, 100, 2, "drop", 6),
    ],
)
def test_capacity(numel: int, experts: int, block: int, policy: str, size: int) -> None:
    assert capacity(numel, experts, block, policy) == size


@pytest.mark.parametrize("rules", [DROP, SENTINEL, ANY, ANY_SENTINEL], ids=str)
@pytest.mark.parametrize("block", [1, 2, 3, 7, 16])
def test_accepts_its_own_answer_and_orders_that_are_free(rules: AlignRules, block: int) -> None:
    torch.manual_seed(block)
    for experts in (1, 2, 9, 40):
        given = args(torch.randint(-2, experts + 1, (13, 5)), experts, block)
        outputs = expected_align(given, rules)
        assert judge_align(given, outputs, rules) == []
        other = {name: value.clone() for name, value in outputs.items()}
        changed = False
        owners = outputs["expert_ids"].repeat_interleave(block)[: int(outputs["num_tokens_post_pad"])]
        for owner in owners.unique():
            places = (owners == owner).nonzero().flatten()
            valid = places[outputs["sorted_token_ids"][places] < given["topk_ids"].numel()]
            other["sorted_token_ids"][valid] = outputs["sorted_token_ids"][valid.flip(0)]
            changed |= len(valid) > 1
        assert changed
        assert bool(judge_align(given, other, rules)) == (rules.order == "stable")


def change(name: str, place: int, value: int) -> Callable[[Outputs], None]:
    def apply(out: Outputs) -> None:
        assert int(out[name][place]) != value
        out[name][place] = value

    return apply


def swap(a: int, b: int) -> Callable[[Outputs], None]:
    def apply(out: Outputs) -> None:
        places = out["sorted_token_ids"]
        places[[a, b]] = places[[b, a]]

    return apply


PLANTED = {
    "duplicate": change("sorted_token_ids", 9, 1),
    "lost": change("sorted_token_ids", 10, 8),
    "padding is -1": change("sorted_token_ids", 2, -1),
    "padding is valid": change("sorted_token_ids", 2, 0),
    "dropped id appears": change("sorted_token_ids", 2, 4),
    "out of range appears": change("sorted_token_ids", 5, 5),
    "tail of 0": change("sorted_token_ids", 15, 0),
    "other expert's block": swap(0, 4),
    "in the tail": swap(10, 12),
    "wrong expert": change("expert_ids", 1, 2),
    "expert tail": change("expert_ids", 3, 0),
    "total": change("num_tokens_post_pad", 0, 6),
    "total one block more": change("num_tokens_post_pad", 0, 16),
    "garbage": change("sorted_token_ids", 0, -1515870811),
}


@pytest.mark.parametrize("rules", [DROP, ANY], ids=str)
@pytest.mark.parametrize("name", PLANTED)
def test_rejects_planted(name: str, rules: AlignRules) -> None:
    outputs = expected_align(args(), rules)
    PLANTED[name](outputs)
    (violation,) = judge_align(args(), outputs, rules)
    assert violation.check == "align_layout"
    assert violation.count >= 1


def test_order_is_judged_where_it_is_promised() -> None:
    outputs = expected_align(args(), DROP)
    swap(8, 10)(outputs)
    assert judge_align(args(), outputs, ANY) == []
    (violation,) = judge_align(args(), outputs, DROP)
    assert "sorted_token_ids[8] is 3, expected 1 (in block 2, of expert 2; padding is 8)" in violation.message


def test_policies_are_told_apart() -> None:
    assert judge_align(args(), expected_align(args(), SENTINEL) | {}, SENTINEL) == []
    outputs = expected_align(args(), SENTINEL)
    outputs["expert_ids"][0] = 0
    assert judge_align(args(), outputs, SENTINEL)


def test_blocks_of_minus_one_have_no_order_in_common_with_the_tail() -> None:
    given = args(torch.tensor([[-1, 7, 7]]), experts=2, block=2)
    outputs = expected_align(given, ANY_SENTINEL)
    assert outputs["sorted_token_ids"].tolist() == [0, 3, 3, 3, 3, 3]
    swap(0, 3)(outputs)
    assert judge_align(given, outputs, ANY_SENTINEL)
