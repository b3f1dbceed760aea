"""A team's gate: a right one, made of parts that a change can break or slow down."""

from __future__ import annotations

import time
from typing import Any

import torch
from ranking import columns
from work import SPIN_US

from moeproof.references.torch_ref import fused_gate
from moeproof.testing import GateDomain, subject


def team_gate(logits: torch.Tensor, **params: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Route by the columns in their order."""
    end = time.perf_counter_ns() + 1000 * SPIN_US
    order = columns(logits.shape[1])
    bias = params.pop("bias", None)
    weights, places = fused_gate(logits[:, order], None if bias is None else bias[order], **params)
    while time.perf_counter_ns() < end:
        pass
    return weights, order.to(torch.int32)[places.long()]


team = subject(
    team_gate,
    op="fused_gate",
    domain=GateDomain(
        experts=range(1, 65), topk=range(1, 9), groups="none", shared=range(1), padding=False, expert_map=False,
        tokens=range(65), thresholds={"tokens": (8,)},
    ),
    batch_invariant=False,
)  # fmt: skip
