"""Passes that reduce an append_shared_experts case."""

from __future__ import annotations

from collections.abc import Iterator

from moeproof.strategies.case import Case
from moeproof.verify.violation import Violation

from .common import fewer_tokens, plain_tensors, simpler_values
from .literal import take_columns
from .probe import Probe


def candidates(case: Case, violation: Violation, probe: Probe) -> Iterator[Case]:
    """Yield smaller cases, most hopeful first."""
    yield from fewer_tokens(case, violation)
    yield from plain_tensors(case, ("num_token_non_padded",))
    ids, weights, shared = (case.tensors[n] for n in ("topk_ids", "topk_weights", "shared_weights"))
    if ids.rows is None or weights.rows is None or shared.rows is None:
        return
    topk = ids.shape[1]
    for count in dict.fromkeys((1, 2, topk // 2, topk - 1)):
        if 0 < count < topk:
            for kept in (range(count), range(topk - count, topk)):
                yield case.but(topk_ids=take_columns(ids, kept), topk_weights=take_columns(weights, kept))
    places = int(case.params.get("num_fused_shared_experts", 1))
    for count in dict.fromkeys((1, places - 1)):
        if 0 < count < places:
            smaller = case.but(num_fused_shared_experts=count)
            yield (
                smaller.but(shared_weights=take_columns(shared, range(count))) if len(shared.shape) == 2 else smaller
            )
    experts = int(case.params["num_experts"])
    for count in (1, 8, 64, experts // 2):
        if 0 < count < experts:
            yield case.but(num_experts=count)
    yield from simpler_values(case, ("topk_ids", "topk_weights", "shared_weights", "num_token_non_padded"))
