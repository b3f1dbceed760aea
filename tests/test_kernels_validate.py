"""Bad arguments are refused before a device is looked for, by name, value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from moeproof.kernels.align_block_size import moe_align_block_size
from moeproof.kernels.append_shared_experts import append_shared_experts
from moeproof.kernels.fused_gate import fused_gate

LOGITS = torch.zeros(3, 8)
IDS = torch.zeros(3, 2, dtype=torch.int32)


def gate(**changes: Any) -> Any:
    return fused_gate(**{"logits": LOGITS, "topk": 2, **changes})


def align(**changes: Any) -> Any:
    return moe_align_block_size(**{"topk_ids": IDS, "num_experts": 8, "block_size": 4, **changes})


def append(**changes: Any) -> Any:
    base = {
        "topk_ids": IDS,
        "topk_weights": torch.ones(3, 2),
        "shared_weights": torch.ones(3),
        "num_experts": 8,
    }
    return append_shared_experts(**{**base, **changes})


def ints(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int32)


GATE = [
    ({"logits": [[1.0]]}, TypeError, "logits is list; allowed: a tensor of float32, bfloat16, float16"),
    ({"logits": LOGITS.double()}, TypeError, "logits has dtype float64"),
    ({"logits": LOGITS[0]}, ValueError, r"logits has shape \(8,\); allowed: 2 dimensions"),
    ({"logits": torch.zeros(3, 4097)}, ValueError, "logits has 4097 experts; allowed: 1 to 4096"),
    ({"logits": torch.zeros(3, 0)}, ValueError, "logits has 0 experts"),
    ({"logits": LOGITS.to_sparse()}, TypeError, "logits has layout torch.sparse_coo"),
    ({"bias": torch.zeros(7)}, ValueError, r"bias has shape \(7,\); allowed: \(8,\)"),
    ({"bias": ints(8)}, TypeError, "bias has dtype int32"),
    ({"bias": 0.5}, TypeError, "bias is float"),
    ({"bias": torch.zeros(8, device="meta")}, ValueError, "bias is on meta; allowed: cpu"),
    ({"topk": 0}, ValueError, "topk is 0; allowed: an int from 1 to 32"),
    ({"topk": 33}, ValueError, "topk is 33"),
    ({"topk": 9}, ValueError, "topk is 9 with 0 shared; allowed: 8 routed places"),
    ({"topk": 2.0}, TypeError, "topk is 2.0"),
    ({"topk": True}, TypeError, "topk is True"),
    (
        {"num_fused_shared_experts": 2},
        ValueError,
        "num_fused_shared_experts is 2; allowed: an int from 0 to 1",
    ),
    ({"num_fused_shared_experts": -1}, ValueError, "num_fused_shared_experts is -1"),
    ({"scoring": "tanh"}, ValueError, "scoring is 'tanh'; allowed: sigmoid, softmax, sqrtsoftplus"),
    ({"scoring": ["sigmoid"]}, TypeError, "scoring is"),
    ({"num_expert_group": 3}, ValueError, "num_expert_group is 3; allowed: a divisor of 8"),
    ({"num_expert_group": 0}, ValueError, "num_expert_group is 0"),
    ({"num_expert_group": 4, "topk_group": 5}, ValueError, "topk_group is 5; allowed: an int from 1 to 4"),
    ({"num_expert_group": 8, "topk_group": 1}, ValueError, "topk_group is 1; allowed: groups of 1 experts"),
    ({"renormalize": 1}, TypeError, "renormalize is 1; allowed: True or False"),
    (
        {"apply_routed_scaling_factor_on_output": None},
        TypeError,
        "apply_routed_scaling_factor_on_output is None",
    ),
    ({"routed_scaling_factor": 0.0}, ValueError, "routed_scaling_factor is 0.0"),
    ({"routed_scaling_factor": float("nan")}, ValueError, "routed_scaling_factor is nan"),
    ({"routed_scaling_factor": float("inf")}, ValueError, "routed_scaling_factor is inf"),
    ({"routed_scaling_factor": "2"}, TypeError, "routed_scaling_factor is '2'"),
    ({"num_token_non_padded": 3}, TypeError, "num_token_non_padded is int; allowed: a tensor of int32"),
    ({"num_token_non_padded": torch.tensor(3)}, TypeError, "num_token_non_padded has dtype int64"),
    ({"num_token_non_padded": ints(2)}, ValueError, r"num_token_non_padded has shape \(2,\)"),
    ({"expert_map": ints(7)}, ValueError, r"expert_map has shape \(7,\); allowed: \(8,\)"),
    ({"expert_map": torch.zeros(8)}, TypeError, "expert_map has dtype float32"),
    ({"out": torch.zeros(3, 2)}, TypeError, "out is Tensor; allowed: a tuple of 2 tensors: weights, indices"),
    ({"out": (torch.zeros(3, 3), ints(3, 2))}, ValueError, r"out\[0\] \(weights\) has shape \(3, 3\)"),
    ({"out": (torch.zeros(3, 2), torch.zeros(3, 2))}, TypeError, r"out\[1\] \(indices\) has dtype float32"),
    ({"out": (torch.zeros(2, 3).t(), ints(3, 2))}, ValueError, r"out\[0\] \(weights\) has strides \(1, 3\)"),
    ({}, ValueError, "logits is on cpu; allowed: a CUDA device"),
]
ALIGN = [
    ({"topk_ids": None}, TypeError, "topk_ids is NoneType"),
    ({"topk_ids": IDS.short()}, TypeError, "topk_ids has dtype int16; allowed: int32, int64"),
    ({"topk_ids": IDS[0]}, ValueError, r"topk_ids has shape \(2,\)"),
    ({"num_experts": 0}, ValueError, "num_experts is 0; allowed: an int from 1 to 4096"),
    ({"num_experts": 4097}, ValueError, "num_experts is 4097"),
    ({"num_experts": 8.0}, TypeError, "num_experts is 8.0"),
    ({"block_size": 0}, ValueError, "block_size is 0; allowed: an int >= 1"),
    ({"block_size": 2**30}, ValueError, "block_size is 1073741824, giving"),
    ({"expert_map": ints(9)}, ValueError, r"expert_map has shape \(9,\); allowed: \(8,\)"),
    ({"expert_map": ints(8).long()}, TypeError, "expert_map has dtype int64"),
    ({"out": (ints(24), ints(6))}, TypeError, "out is tuple; allowed: a tuple of 3"),
    ({"out": (ints(25), ints(6), ints(1))}, ValueError, r"out\[0\] \(sorted_token_ids\) has shape \(25,\)"),
    ({}, ValueError, "topk_ids is on cpu; allowed: a CUDA device"),
]
APPEND = [
    ({"topk_ids": torch.zeros(3, 2)}, TypeError, "topk_ids has dtype float32"),
    ({"topk_ids": ints(3, 0), "topk_weights": torch.ones(3, 0)}, ValueError, "topk_ids has shape"),
    ({"topk_weights": torch.ones(3, 3)}, ValueError, r"topk_weights has shape \(3, 3\); allowed: \(3, 2\)"),
    ({"topk_weights": torch.ones(3, 2).double()}, TypeError, "topk_weights has dtype float64"),
    ({"shared_weights": 1.0}, TypeError, "shared_weights is float"),
    ({"shared_weights": torch.ones(4)}, ValueError, r"shared_weights has shape \(4,\); allowed: \(3,\)"),
    (
        {"shared_weights": torch.ones(3, 2)},
        ValueError,
        r"shared_weights has shape \(3, 2\); allowed: \(3, 1\)",
    ),
    ({"num_experts": -1}, ValueError, "num_experts is -1"),
    ({"num_experts": 2**31 - 1}, ValueError, "num_experts is 2147483647"),
    ({"num_fused_shared_experts": 0}, ValueError, "num_fused_shared_experts is 0; allowed: an int >= 1"),
    ({"num_token_non_padded": ints(1).long()}, TypeError, "num_token_non_padded has dtype int64"),
    ({"out": (ints(3, 3), torch.ones(3, 2))}, ValueError, r"out\[1\] \(weights\) has shape \(3, 2\)"),
    ({}, ValueError, "topk_ids is on cpu; allowed: a CUDA device"),
]


@pytest.mark.parametrize(
    ("call", "changes", "error", "message"),
    [
        *((gate, *row) for row in GATE),
        *((align, *row) for row in ALIGN),
        *((append, *row) for row in APPEND),
    ],
)
def test_bad_argument_is_named(
    call: Callable[..., Any],
    changes: dict[str, Any],
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(error, match=message):
        call(**changes)


def test_routed_factor_as_an_int_is_fine() -> None:
    with pytest.raises(ValueError, match="logits is on cpu"):
        gate(routed_scaling_factor=2)
