"""The oracle of append_shared_experts: one right answer, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from moeproof.verify.oracle.append import expected_append, judge_append

NAN_WITH_PAYLOAD = 0x7FC01234
Outputs = dict[str, torch.Tensor]


def arguments(dtype: torch.dtype = torch.float32, ids: torch.dtype = torch.int32, **more: Any) -> dict[str, Any]:
    weights = torch.tensor([[0.5, -0.0], [0.25, 1.0], [3.0, 1e-41]])
    weights[1, 1:].view(torch.int32).fill_(NAN_WITH_PAYLOAD)
    return {
        "topk_ids": torch.tensor([[3, 5], [1, 0], [2, 7]], dtype=ids),
        "topk_weights": weights.to(dtype),
        "shared_weights": torch.tensor([[1 / 3, 2.0], [0.1, math.nan], [1e-41, -0.0]]),
        "num_experts": 8,
        "num_fused_shared_experts": 2,
        **more,
    }


def right(args: dict[str, Any]) -> Outputs:
    """Return the right result, made element by element."""
    tokens, topk = args["topk_ids"].shape
    count = args["num_fused_shared_experts"]
    ids = torch.empty((tokens, topk + count), dtype=args["topk_ids"].dtype)
    weights = torch.empty((tokens, topk + count), dtype=args["topk_weights"].dtype)
    limit = args.get("num_token_non_padded")
    for row in range(tokens):
        shared = args["shared_weights"]
        shared = shared[row] if shared.dim() else shared
        for place in range(count):
            ids[row, topk + place] = 8 + place
            weights[row, topk + place] = shared[place] if shared.dim() else shared
        ids[row, :topk] = args["topk_ids"][row]
        weights[row, :topk] = args["topk_weights"][row]
        if limit is not None and row >= int(limit):
            ids[row], weights[row] = -1, 0
    return {"ids": ids, "weights": weights}


SHARED = {
    "matrix": arguments()["shared_weights"],
    "vector": torch.tensor([1 / 3, 0.7, -2.5]),
    "scalar": torch.tensor(1 / 3),
    "bfloat16": torch.tensor([1 / 3, 0.7, -2.5]).bfloat16(),
    "large": torch.tensor(1e30),
}


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("limit", [None, 0, 1, 3, 9])
def test_accepts_the_right_result(shared: str, dtype: torch.dtype, limit: int | None) -> None:
    args = arguments(dtype, torch.int64, shared_weights=SHARED[shared])
    if limit is not None:
        args["num_token_non_padded"] = torch.tensor([limit], dtype=torch.int32)
    assert judge_append(args, right(args)) == []


def test_by_hand() -> None:
    args = arguments(torch.bfloat16, num_token_non_padded=torch.tensor(2, dtype=torch.int32))
    expected = expected_append(args)
    assert expected["ids"].tolist() == [[3, 5, 8, 9], [1, 0, 8, 9], [-1, -1, -1, -1]]
    # 0.5, -0.0, 1/3 to nearest even (0x3EAAAAAB), 2.0
    assert expected["weights"][0].tolist() == [0x3F00, -0x8000, 0x3EAB, 0x4000]
    assert expected["weights"][2].tolist() == [0, 0, 0, 0]


def change(name: str, row: int, place: int, value: float) -> Callable[[Outputs], None]:
    def apply(out: Outputs) -> None:
        out[name][row, place] = value

    return apply


def other_nan(out: Outputs) -> None:
    out["weights"].view(torch.int32)[1, 1] = 0x7FC00000


def one_ulp(out: Outputs) -> None:
    out["weights"].view(torch.int32)[0, 2] += 1


def swap_rows(out: Outputs) -> None:
    out["weights"][[0, 2], 2] = out["weights"][[2, 0], 2]


PLANTED: dict[str, tuple[str, Callable[[Outputs], None]]] = {
    "shared id": ("ids_invalid", change("ids", 0, 2, 7)),
    "shared ids repeat": ("ids_invalid", change("ids", 1, 3, 8)),
    "routed id": ("ids_invalid", change("ids", 1, 0, 2)),
    "padded id": ("ids_invalid", change("ids", 2, 3, 9)),
    "padded weight": ("weights", change("weights", 2, 0, 3.0)),
    "padded -0": ("weights", change("weights", 2, 0, -0.0)),
    "sign of zero": ("weights", change("weights", 0, 1, 0.0)),
    "NaN payload": ("weights", other_nan),
    "NaN lost": ("weights", change("weights", 1, 3, 0.0)),
    "NaN made": ("weights", change("weights", 0, 3, math.nan)),
    "one ulp": ("weights", one_ulp),
    "other row's weight": ("weights", swap_rows),
}


@pytest.mark.parametrize("name", PLANTED)
def test_rejects_planted(name: str) -> None:
    args = arguments(num_token_non_padded=torch.tensor(2, dtype=torch.int32))
    outputs = right(args)
    check, apply = PLANTED[name]
    apply(outputs)
    (violation,) = judge_append(args, outputs)
    assert violation.check == check
    assert violation.message.startswith(f"row {violation.rows[0]}: ")


def test_cast_nan_may_have_any_bits() -> None:
    args = arguments()
    outputs = right(args)
    outputs["weights"].view(torch.int32)[1, 3] = 0x7FFFFFFF
    assert judge_append(args, outputs) == []


@pytest.mark.parametrize("wrong", ["truncated", "twice"])
def test_rounding_to_nearest_even_once(wrong: str) -> None:
    # 1 + 2^-8 + 2^-20 rounds up to bfloat16; cut, or rounded to float16 first, it doesn't.
    args = arguments(torch.bfloat16, shared_weights=torch.tensor(1 + 2.0**-8 + 2.0**-20))
    assert judge_append(args, right(args)) == []
    outputs = right(args)
    twice = args["shared_weights"].half().bfloat16()
    outputs["weights"][:, 2:] = twice if wrong == "twice" else 1.0
    assert [v.check for v in judge_append(args, outputs)] == ["weights"]


def test_no_rows() -> None:
    args = {k: v[:0] if isinstance(v, torch.Tensor) else v for k, v in arguments().items()}
    assert judge_append(args, right(args)) == []
