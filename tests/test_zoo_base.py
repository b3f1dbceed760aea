"""The zoo's base gives hand-made answers, its right subjects agree with it, its wrong ones don't."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from moeproof.strategies.domain import GateDomain
from moeproof.verify.subject import Subject, find
from moeproof.verify.violation import CHECKS

sys.path.append(str(Path(__file__).resolve().parent))

from zoo import RIGHT, WRONG, Entry

NAN, INF = math.nan, math.inf
POISON = 0x5A
ZONE = 64
"""Bytes before and after each output."""
Args = dict[str, Any]


def f32(*rows: Any) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def i32(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def gate(logits: torch.Tensor, topk: int, **params: Any) -> Args:
    return {"logits": logits, "topk": topk, **params}


def align(ids: torch.Tensor, num_experts: int, block_size: int, **params: Any) -> Args:
    return {"topk_ids": ids, "num_experts": num_experts, "block_size": block_size, **params}


def append(ids: torch.Tensor, weights: torch.Tensor, shared: torch.Tensor, **params: Any) -> Args:
    return {"topk_ids": ids, "topk_weights": weights, "shared_weights": shared, "num_experts": 8, **params}


def output_specs(subject: Subject, args: Args) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    if subject.op == "fused_gate":
        shape = (len(args["logits"]), args["topk"])
        return {"weights": (shape, torch.float32), "indices": (shape, torch.int32)}
    T, k = args["topk_ids"].shape
    if subject.op == "append_shared_experts":
        shape = (T, k + args.get("num_fused_shared_experts", 1))
        return {"ids": (shape, args["topk_ids"].dtype), "weights": (shape, args["topk_weights"].dtype)}
    B, buckets = args["block_size"], args["num_experts"] + (subject.minus_one == "sentinel_blocks")
    blocks = (T * k + min(T * k, buckets) * (B - 1)) // B
    return {
        "sorted_token_ids": ((blocks * B,), torch.int32),
        "expert_ids": ((blocks,), torch.int32),
        "num_tokens_post_pad": ((1,), torch.int32),
    }


def run(subject: Subject, args: Args) -> tuple[dict[str, torch.Tensor], bytes]:
    """Run a subject on copies of the arguments; return its outputs and all bytes it could have written."""
    copies = {}
    for name, value in args.items():
        if isinstance(value, torch.Tensor):
            storage = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage()).clone()
            value = storage.as_strided(value.shape, value.stride(), value.storage_offset())
        copies[name] = value
    outputs, buffers = {}, []
    for name, (shape, dtype) in output_specs(subject, args).items():
        size = math.prod(shape) * dtype.itemsize
        buffer = torch.full((ZONE + size + ZONE,), POISON, dtype=torch.uint8)
        outputs[name] = buffer[ZONE : ZONE + size].view(dtype).view(shape)
        buffers.append(buffer)
    assert subject.load()(copies, outputs) is None
    tensors = [v for v in copies.values() if isinstance(v, torch.Tensor)]
    storages = [torch.empty(0, dtype=torch.uint8).set_(t.untyped_storage()) for t in tensors]
    return outputs, b"".join(bytes(t.tolist()) for t in [*buffers, *storages])


def subject_named(slug: str) -> Subject:
    return next(s for s in [*RIGHT, *(e.subject for e in WRONG)] if s.name == f"zoo:{slug}")


def listed(slug: str, args: Args) -> tuple[Any, ...]:
    return tuple(value.tolist() for value in run(subject_named(slug), args)[0].values())


STEP = torch.arange(1, 10).float()[None]
"""Nine logits, ascending."""
FULL: Args = {"routed_scaling_factor": 2.5, "num_fused_shared_experts": 1}
SPREAD = (torch.arange(64).reshape(16, 4) * 37 % 64).float() / 16 - 2

GATE_PROBES = [
    gate(torch.zeros(3, 4), 2),
    gate(torch.zeros(1, 40), 2),
    gate(torch.zeros(1, 64), 4),
    gate(f32([1, 1, 2, -3]), 1, num_expert_group=2),
    gate(torch.zeros(1, 4), 1, num_expert_group=2),
    gate(f32([0, 0, 3, 3]), 1, num_expert_group=2),
    gate(f32([2, 0, 0, 0]), 1, num_expert_group=2, bias=torch.full((4,), -3.0)),
    gate(f32([NAN, 2, 2, 0, 0, 0]), 1, num_expert_group=2),
    gate(f32([1, 1, 0, 0]), 2, num_expert_group=2, bias=f32(0, -INF, 0, -INF)),
    gate(f32([0, 1]), 1, bias=f32(2, 0), renormalize=False),
    gate(f32([3, 4]), 1, bias=f32(0.3, 0)),
    gate(f32([1, 1.0078125]).bfloat16(), 1, bias=f32(4, 4)),
    gate(f32([0, 1, 2]), 2),
    gate(f32([2, 1, 0]), 1),
    gate(torch.arange(192).float()[None] / 50, 6),
    gate(f32([NAN, 0, 1]), 3),
    gate(f32([NAN, 0]), 2, bias=f32(0, -INF)),
    gate(torch.zeros(1, 2), 2, bias=f32(0, -INF)),
    gate(f32([1, 2]), 1, renormalize=False, **FULL | {"num_fused_shared_experts": 0}),
    gate(STEP, 3, apply_routed_scaling_factor_on_output=True, **FULL),
    gate(STEP, 3, renormalize=False, apply_routed_scaling_factor_on_output=True, **FULL),
    gate(STEP, 3, **FULL),
    gate(STEP[:, :3].expand(3, 3), 2, expert_map=i32(4, 0, 1, 7), num_token_non_padded=i32(1), **FULL),
    gate(STEP[:, :3], 2, expert_map=i32(1, 2, 0), renormalize=False),
    gate(STEP, 9),
    gate(f32([-INF]), 1),
    gate(f32([-50]), 1),
    gate(f32([-15, -16]), 2),
    gate(f32([100, 0]), 1, scoring="softmax"),
    gate(f32([100, -20]), 2, scoring="sqrtsoftplus"),
    gate(STEP[0].as_strided((1, 3), (3, 1), 2), 2),
    gate(STEP[0].as_strided((2, 3), (5, 1), 0), 2),
    gate(STEP[0].as_strided((2, 3), (6, 1), 0), 2),
    gate(SPREAD, 3),
    gate((torch.arange(513) % 3 * torch.arange(4)[:, None]).float().T.contiguous() - 1, 1),
]
BLOCKS = i32([0, 2], [2, 2], [-1, 5], [1, 0])
ALIGN_PROBES = [
    align(BLOCKS, 3, 4),
    align(BLOCKS, 3, 3),
    align(i32([1], [1], [1]), 2, 1),
    align(i32([-1]), 2, 2),
    align(i32([0, 2, 2]), 3, 4, expert_map=i32(1, 0, -1)),
    align(torch.zeros((0, 2), dtype=torch.int32), 3, 4),
    align(torch.tensor([[1 << 32, 1]]), 3, 4),
    align(torch.zeros((150, 2), dtype=torch.int32), 1, 4),
    align(i32(0, 1, 2, 0, 1, 2).as_strided((2, 2), (3, 1)), 3, 2),
]
IDS, WEIGHTS = i32([3, 5], [1, 0], [2, 4]), f32([0.5, -0.0], [NAN, 0.25], [1, 2])
THIRDS = f32([1, 2], [4, 5], [7, 8]) / 3
APPEND_PROBES = [
    append(IDS, WEIGHTS, THIRDS, num_fused_shared_experts=2),
    append(IDS, WEIGHTS.bfloat16(), THIRDS, num_fused_shared_experts=2),
    append(IDS, WEIGHTS, THIRDS, num_fused_shared_experts=2, num_token_non_padded=torch.tensor(1).int()),
    append(IDS, WEIGHTS, THIRDS[:, 0].contiguous(), num_fused_shared_experts=2),
    append(IDS.long() + (1 << 33), WEIGHTS, torch.tensor(0.3)),
    append(IDS[:2], torch.arange(6.0).as_strided((2, 2), (3, 1)), torch.tensor(0.3)),
]
PROBES = {
    "fused_gate": GATE_PROBES,
    "moe_align_block_size": ALIGN_PROBES,
    "append_shared_experts": APPEND_PROBES,
}
BASES = {
    "fused_gate": "right-gate",
    "moe_align_block_size": "right-align",
    "append_shared_experts": "right-append",
}


def differs(entry: Entry) -> bool:
    """Say whether a wrong subject does anything else than the base on some probe."""
    base = BASES[entry.subject.op] + ("-sentinel" if entry.subject.minus_one == "sentinel_blocks" else "")
    for args in PROBES[entry.subject.op]:
        expected = run(subject_named(base), args)[1]
        for _ in range(21 if "flaky" in entry.subject.name else 1):
            try:
                got = run(entry.subject, args)[1]
            except (ValueError, TypeError) as error:
                if "domain" in entry.check and "fewer than the experts" in str(error):
                    return True
                break
            if got != expected:
                return True
    return False


NOT_PLAIN = ("zoo:gate-hangs", "zoo:gate-segfaults", "zoo:gate-exits", "zoo:gate-accepts-outside")


PLAIN = [entry for entry in WRONG if entry.subject.name not in NOT_PLAIN]


@pytest.mark.parametrize("entry", PLAIN, ids=[entry.subject.name for entry in PLAIN])
def test_wrong_differs_from_base(entry: Entry) -> None:
    assert differs(entry), entry.why


@pytest.mark.parametrize(
    ("slug", "module", "function", "logits"),
    [
        ("gate-hangs", time, "sleep", torch.zeros(1, 13)),
        ("gate-segfaults", os, "kill", torch.zeros(7, 2)),
        ("gate-exits", os, "_exit", torch.zeros(5, 2)),
    ],
)
def test_hang_and_death_have_their_sizes(
    slug: str, module: Any, function: str, logits: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, function, stop)
    assert run(subject_named(slug), gate(torch.zeros(1, 2), 1))[0]["indices"].tolist() == [[0]]
    with pytest.raises(KeyboardInterrupt):
        run(subject_named(slug), gate(logits, 1))


def test_accepts_outside_its_domain() -> None:
    subject = subject_named("gate-accepts-outside")
    assert isinstance(subject.domain, GateDomain)
    assert 33 not in subject.domain.experts
    assert listed("gate-accepts-outside", gate(torch.zeros(1, 33), 1)) == ([[1.0]], [[0]])


@pytest.mark.parametrize("subject", RIGHT, ids=lambda s: s.name)
def test_right_agrees_with_base(subject: Subject) -> None:
    base = subject_named(BASES[subject.op] + ("-sentinel" if subject.minus_one == "sentinel_blocks" else ""))
    for args in PROBES[subject.op]:
        expected, got = run(base, args)[0], run(subject, args)[0]
        for name in expected:
            if subject.order == "any" and name == "sorted_token_ids":
                assert sorted(got[name].tolist()) == sorted(expected[name].tolist())
            else:
                torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-30, equal_nan=True)


def test_entries_are_well_formed() -> None:
    subjects = [*RIGHT, *(e.subject for e in WRONG)]
    assert len({s.name for s in subjects}) == len(subjects)
    for entry in WRONG:
        assert entry.check
        assert set(entry.check) <= set(CHECKS), entry.subject.name
        assert entry.why.endswith("."), entry.subject.name
    sources = find(s.source for s in subjects)
    assert [s.name for s in sources] == [s.name for s in subjects]


def test_gate_orders_renormalises_and_scales() -> None:
    # sigmoid(0) = 1/2, sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4
    args = gate(f32([0, math.log(3), -math.log(3)]), 2, routed_scaling_factor=2.0)
    weights, ids = listed("right-gate", args | {"apply_routed_scaling_factor_on_output": True})
    assert (weights, ids) == ([pytest.approx([1.2, 0.8])], [[1, 0]])
    weights, ids = listed("right-gate", args | {"renormalize": False, "bias": f32(0, 0, 1)})
    assert (weights, ids) == ([pytest.approx([0.25, 0.75])], [[2, 1]])


def test_gate_shared_map_and_padding() -> None:
    args = gate(torch.zeros(2, 2), 2, routed_scaling_factor=4.0, num_fused_shared_experts=1)
    args |= {"expert_map": i32(7, 8, 9), "num_token_non_padded": i32(1)}
    assert listed("right-gate", args) == ([[1.0, 0.25], [0.0, 0.0]], [[7, 9], [-1, -1]])
    args["apply_routed_scaling_factor_on_output"] = True
    assert listed("right-gate", args) == ([[4.0, 1.0], [0.0, 0.0]], [[7, 9], [-1, -1]])


def test_gate_groups() -> None:
    # Two equal maxima both count: 2 * 0.731 > 0.881 + 0.047. Equal groups: the lower.
    assert listed("right-gate", gate(f32([1, 1, 2, -3]), 1, num_expert_group=2)) == ([[1.0]], [[0]])
    assert listed("right-gate", gate(torch.zeros(1, 6), 1, num_expert_group=3)) == ([[1.0]], [[0]])
    # A group of one number and one NaN scores NaN; the dropped expert counts as -inf and outranks NaN.
    args = gate(f32([9, NAN, 0, NAN, 0, 0]), 2, num_expert_group=3)
    assert listed("right-gate", args) == ([[0.5, 0.5]], [[4, 5]])
    args = gate(f32([NAN, NAN, NAN, NAN]), 2, num_expert_group=2)
    assert listed("right-gate", args) == ([[0.0, 0.0]], [[2, 3]])


def test_gate_nan_and_infinities() -> None:
    args = gate(f32([NAN, 0, 1, NAN]), 4, bias=f32(0, -INF, 0, 0), renormalize=False)
    weights, ids = listed("right-gate", args)
    assert ids == [[2, 1, 0, 3]]
    assert weights == [pytest.approx([1 / (1 + math.exp(-1)), 0.5, 0, 0])]
    assert listed("right-gate", gate(f32([-INF, -INF]), 2)) == ([[0.0, 0.0]], [[0, 1]])
    assert listed("right-gate", gate(f32([0, INF]), 2, scoring="softmax")) == ([[0.0, 0.0]], [[0, 1]])


def test_gate_scorings() -> None:
    args = gate(f32([0, math.log(3)]), 2, renormalize=False)
    assert listed("right-gate", args | {"scoring": "softmax"})[0] == [pytest.approx([0.75, 0.25])]
    want = [math.sqrt(math.log(4)), math.sqrt(math.log(2))]
    assert listed("right-gate", args | {"scoring": "sqrtsoftplus"})[0] == [pytest.approx(want)]
    assert listed("right-gate", gate(torch.zeros(0, 3), 2)) == ([], [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"topk": 4}, "topk is 4"),
        ({"num_expert_group": 2}, "num_expert_group is 2"),
        ({"routed_scaling_factor": 0.0}, "routed_scaling_factor is 0.0"),
        ({"bias": f32(0, 0)}, r"bias.shape is \(2,\)"),
        ({"expert_map": i32(0, 1)}, "expert_map.shape"),
        ({"num_fused_shared_experts": 2}, "num_fused_shared_experts is 2"),
        ({"logits": f32([0, 0, 0]).double()}, "logits has dtype float64"),
        ({"scoring": "relu"}, "scoring is 'relu'"),
    ],
)
def test_gate_refuses(change: Args, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        run(subject_named("right-gate"), gate(f32([0, 0, 0]), 2) | change)


def test_align_by_hand() -> None:
    # n = 8; expert 0 has 0 and 7, expert 1 has 6, expert 2 has 1, 2, 3; index 4 is -1, index 5 out of range.
    places = [0, 7, 8, 8, 6, 8, 8, 8, 1, 2, 3, 8, 8, 8, 8, 8]
    assert listed("right-align", align(BLOCKS, 3, 4)) == (places, [0, 1, 2, -1], [12])
    sentinel = [4, 8, 8, 8, *places]
    assert listed("right-align-sentinel", align(BLOCKS, 3, 4)) == (sentinel, [-1, 0, 1, 2, -1], [16])
    mapped = align(i32([0, 2, 2]), 3, 2, expert_map=i32(1, 0, -1))
    assert listed("right-align", mapped) == ([0, 3, 3, 3, 3, 3], [1, -1, -1], [2])
    assert listed("right-align", align(torch.zeros((0, 2), dtype=torch.int32), 3, 4)) == ([], [], [0])


def test_append_by_hand() -> None:
    args = append(i32([3, 5], [1, 0]), f32([0.5, 2], [1, 4]), f32(0.25, 0.75), num_fused_shared_experts=2)
    ids, weights = listed("right-append", args)
    assert ids == [[3, 5, 8, 9], [1, 0, 8, 9]]
    assert weights == [[0.5, 2, 0.25, 0.25], [1, 4, 0.75, 0.75]]
    ids, weights = listed("right-append", args | {"num_token_non_padded": i32(1)})
    assert (ids[1], weights[1]) == ([-1] * 4, [0] * 4)
