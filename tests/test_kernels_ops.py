"""The registered ops: fake implementations anywhere, opcheck on a GPU."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from moeproof.kernels import ops
from moeproof.kernels.align_block_size import capacity, moe_align_block_size
from moeproof.kernels.append_shared_experts import append_shared_experts
from moeproof.kernels.fused_gate import fused_gate

DEVICE = "cuda"


def described(outputs: tuple[torch.Tensor, ...]) -> list[tuple[tuple[int, ...], torch.dtype, str]]:
    return [(tuple(t.shape), t.dtype, t.device.type) for t in outputs]


@pytest.mark.parametrize("kind", ["fake", "meta"])
def test_public_functions_trace(kind: str) -> None:
    device = "cuda" if kind == "fake" else "meta"
    with FakeTensorMode() if kind == "fake" else torch.device("meta"):
        logits = torch.empty(5, 64, dtype=torch.bfloat16, device=device)
        ids = torch.empty(5, 4, dtype=torch.int64, device=device)
        weights = torch.empty(5, 4, dtype=torch.float16, device=device)
        shared = torch.empty(5, dtype=torch.float16, device=device)
        gate = described(fused_gate(logits, topk=4))
        align = described(moe_align_block_size(ids, 64, 16))
        append = described(append_shared_experts(ids, weights, shared, 64, 2))
    places = capacity(20, 64, 16)
    assert gate == [((5, 4), torch.float32, device), ((5, 4), torch.int32, device)]
    assert align == [((n,), torch.int32, device) for n in (places, places // 16, 1)]
    assert append == [((5, 6), torch.int64, device), ((5, 6), torch.float16, device)]


def test_traced_call_refuses_out() -> None:
    logits = torch.empty(5, 64, device="meta")
    with pytest.raises(TypeError, match="out is given for a traced or wrapped call"):
        fused_gate(logits, topk=4, out=(logits, logits))


def test_fake_align_follows_a_symbolic_size() -> None:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        ids = mode.from_tensor(torch.zeros(7, 3, dtype=torch.int32, device="cpu"), static_shapes=False)
        places, blocks, _ = torch.ops.moeproof.moe_align_block_size(ids, 64, 16)
        assert int(places.shape[0]) == capacity(21, 64, 16)
        assert int(blocks.shape[0]) == capacity(21, 64, 16) // 16


def test_registered_ops_have_the_defaults_of_the_public_functions() -> None:
    public = {"fused_gate": fused_gate, "moe_align_block_size": moe_align_block_size}
    public["append_shared_experts"] = append_shared_experts
    for name, function in public.items():
        parameters = dict(inspect.signature(function).parameters)
        del parameters["out"]
        registered = getattr(ops, name)._schema.arguments
        assert [a.name for a in registered] == list(parameters)
        for argument in registered:
            wanted = parameters[argument.name]
            assert argument.kwarg_only == (wanted.kind is wanted.KEYWORD_ONLY)
            assert argument.has_default_value() == (wanted.default is not wanted.empty)
            if argument.has_default_value():
                assert argument.default_value == wanted.default


def test_implementations_take_what_the_dispatcher_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPU tensors the kernels refuse the device, after every argument has arrived."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    logits, ids = torch.zeros(3, 16), torch.zeros(3, 8, dtype=torch.int32)
    with torch.library._scoped_library("moeproof", "IMPL") as library:
        for name, function in (
            ("fused_gate", ops._gate),
            ("moe_align_block_size", ops._align),
            ("append_shared_experts", ops._append),
        ):
            library.impl(name, function, "CPU")
        registered = torch.ops.moeproof
        with pytest.raises(ValueError, match="logits is on cpu"):
            registered.fused_gate(logits, topk=8)
        with pytest.raises(ValueError, match="topk is 17"):
            registered.fused_gate(logits, None, topk=17, expert_map=ids[0])
        with pytest.raises(ValueError, match="topk_ids is on cpu"):
            registered.moe_align_block_size(ids, 16, 4)
        with pytest.raises(ValueError, match="topk_ids is on cpu"):
            registered.append_shared_experts(ids, logits[:, :8], logits[:, 0], 16)


def arguments(op: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 64, generator=generator).to(DEVICE)
    bias = torch.randn(64, generator=generator).to(DEVICE)
    ids = torch.randint(-1, 64, (9, 4), generator=generator).to(DEVICE)
    weights = torch.rand(9, 4, generator=generator).to(DEVICE)
    limit = torch.tensor([5], dtype=torch.int32, device=DEVICE)
    mapping = torch.randperm(64, generator=generator).int().to(DEVICE)
    grouped = {"num_expert_group": 8, "topk_group": 4, "num_fused_shared_experts": 1}
    return {
        "fused_gate": [
            ((logits,), {"topk": 4, "scoring": "softmax"}),
            ((logits, bias.bfloat16()), {"topk": 5, "num_token_non_padded": limit, **grouped}),
            ((logits.half(), bias), {"topk": 4, "expert_map": mapping}),
        ],
        "moe_align_block_size": [((ids, 64, 16), {}), ((ids.int(), 64, 4), {"expert_map": mapping})],
        "append_shared_experts": [
            ((ids, weights, weights[:, :2], 64, 2), {}),
            ((ids, weights, weights[:, 0], 64), {"num_token_non_padded": limit}),
        ],
    }[op]


@pytest.mark.gpu
@pytest.mark.parametrize("op", ["fused_gate", "moe_align_block_size", "append_shared_experts"])
def test_opcheck(op: str) -> None:
    for args, kwargs in arguments(op):
        torch.library.opcheck(getattr(ops, op), args, kwargs)


@pytest.mark.gpu
def test_compiled_graph_gives_the_eager_result() -> None:
    logits = torch.randn(9, 64, device=DEVICE)

    def route(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weights, indices = fused_gate(x * 2, topk=4)
        return weights, *moe_align_block_size(indices, 64, 16)

    for got, want in zip(torch.compile(route, fullgraph=True)(logits), route(logits), strict=True):
        assert torch.equal(got, want)
