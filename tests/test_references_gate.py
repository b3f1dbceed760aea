"""Hand-computed examples of every rule of `fused_gate`, for each family of references.

Run with NUMBA_ENABLE_CUDASIM=1 they include the Numba references in Numba's simulator.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from moeproof.references import gold

GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
SIMULATED = [("numba_ref", "cpu")] if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else []
FAMILIES = [
    *(pytest.param(p, id="-".join(p)) for p in [("gold", "cpu"), ("torch_ref", "cpu"), *SIMULATED]),
    *(pytest.param((f, "cuda"), id=f"{f}-cuda", marks=GPU) for f in ("gold", "torch_ref", "numba_ref")),
]
NAN, INF = float("nan"), float("inf")
LN3 = 1.0986123
"""sigmoid(LN3) is 3/4, sigmoid(-LN3) is 1/4."""
Gate = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def placed(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """Return the tensor on `device` with its strides and offset (`Tensor.to` may make it contiguous)."""
    storage = tensor.new_empty(0).set_(tensor.untyped_storage()).to(device)
    return storage.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


@pytest.fixture(params=FAMILIES)
def gate(request: pytest.FixtureRequest) -> Gate:
    """Return the family's function for CPU tensors, run on its device, checking that inputs are untouched."""
    family, device = request.param
    function = importlib.import_module(f"moeproof.references.{family}").fused_gate

    def call(logits: torch.Tensor, bias: torch.Tensor | None = None, **kwargs: Any) -> Any:
        given = {"logits": logits, "bias": bias, **kwargs}
        given = {n: placed(v, device) if isinstance(v, torch.Tensor) else v for n, v in given.items()}
        tensors = {n: v for n, v in given.items() if isinstance(v, torch.Tensor)}
        before = {n: v.clone() for n, v in tensors.items()}
        weights, indices = function(given.pop("logits"), given.pop("bias"), **given)
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True, msg=name)
        assert weights.device.type == device
        assert (weights.dtype, indices.dtype) == (torch.float32, torch.int32)
        return weights.cpu(), indices.cpu()

    return call


def check(result: tuple[torch.Tensor, torch.Tensor], weights: list[list[float]], indices: list[list[int]]) -> None:
    assert result[1].tolist() == indices
    torch.testing.assert_close(result[0], torch.tensor(weights, dtype=torch.float32), rtol=1e-6, atol=0.0)


# name: (logits row, bias or None, arguments, weights, indices); not renormalized unless it says so.
ROWS: dict[str, tuple[list[float], list[float] | None, dict[str, Any], list[float], list[int]]] = {
    "best first": ([-LN3, 0, LN3], None, {"topk": 2}, [0.75, 0.5], [2, 1]),
    "ties by id": ([0, LN3, 0, LN3, 0], None, {"topk": 4}, [0.75, 0.75, 0.5, 0.5], [1, 3, 0, 2]),
    "signed zeros tie": ([0.0, -0.0, 0.0], None, {"topk": 3}, [0.5] * 3, [0, 1, 2]),
    "signed zeros tie, other way": ([-0.0, 0.0], None, {"topk": 2}, [0.5] * 2, [0, 1]),
    "bias ranks, weighs not": ([0, 0, LN3], [1, 0, -1], {"topk": 2}, [0.5, 0.5], [0, 1]),
    "one expert": ([0], None, {"topk": 1}, [0.5], [0]),
    "renormalize": ([0, LN3, -LN3], None, {"topk": 2, "renormalize": True}, [0.6, 0.4], [1, 0]),
    "factor without flag": ([0, LN3], None, {"topk": 2, "routed_scaling_factor": 2.0}, [0.75, 0.5], [1, 0]),
    "factor on output": (
        [0, LN3],
        None,
        {"topk": 2, "routed_scaling_factor": 2.0, "apply_routed_scaling_factor_on_output": True},
        [1.5, 1.0],
        [1, 0],
    ),
    "factor on renormalized output": (
        [0, LN3],
        None,
        {
            "topk": 2,
            "routed_scaling_factor": 2.0,
            "apply_routed_scaling_factor_on_output": True,
            "renormalize": True,
        },
        [1.2, 0.8],
        [1, 0],
    ),
    "shared": (
        [0, LN3, 0],
        None,
        {"topk": 4, "num_fused_shared_experts": 2, "routed_scaling_factor": 4.0, "renormalize": True},
        [0.6, 0.4, 0.25, 0.25],
        [1, 0, 3, 4],
    ),
    "shared, factor on output": (
        [0, LN3, 0],
        None,
        {
            "topk": 3,
            "num_fused_shared_experts": 1,
            "routed_scaling_factor": 4.0,
            "apply_routed_scaling_factor_on_output": True,
        },
        [3.0, 2.0, 1.0],
        [1, 0, 3],
    ),
    "more places than experts": (
        [0, LN3],
        None,
        {"topk": 5, "num_fused_shared_experts": 3},
        [0.75, 0.5, 1.0, 1.0, 1.0],
        [1, 0, 2, 3, 4],
    ),
    "map": (
        [0, LN3, 0],
        None,
        {
            "topk": 3,
            "num_fused_shared_experts": 1,
            "expert_map": torch.tensor([7, 0, 9, 4], dtype=torch.int32),
        },
        [0.75, 0.5, 1.0],
        [0, 7, 4],
    ),
    "softmax": (
        [0, 0.6931472, 1.3862944],
        None,
        {"topk": 3, "scoring": "softmax"},
        [4 / 7, 2 / 7, 1 / 7],
        [2, 1, 0],
    ),
    "softmax far": ([-900, 900, 900], None, {"topk": 3, "scoring": "softmax"}, [0.5, 0.5, 0.0], [1, 2, 0]),
    "softmax of NaN": ([5, NAN, 1], None, {"topk": 2, "scoring": "softmax"}, [0, 0], [0, 1]),
    "softmax of +inf": ([5, 1000, INF], None, {"topk": 2, "scoring": "softmax"}, [0, 0], [0, 1]),
    "softmax of -inf": (
        [-INF, -INF, -INF],
        [1, 2, 3],
        {"topk": 2, "scoring": "softmax", "renormalize": True},
        [0, 0],
        [0, 1],
    ),
    "softmax with -inf": ([-INF, 3, -INF], None, {"topk": 2, "scoring": "softmax"}, [1, 0], [1, 0]),
    "sqrtsoftplus": (
        [0, -100, 1e6, -INF, -19.5],
        None,
        {"topk": 5, "scoring": "sqrtsoftplus"},
        [1000.0, 0.83255461, 5.829466e-05, 1.92874985e-22, 0.0],
        [2, 0, 4, 1, 3],
    ),
    "sigmoid tails": ([-80, -INF, INF, 200], None, {"topk": 4}, [1, 1, 1.8048513e-35, 0], [2, 3, 0, 1]),
    "NaN last": ([NAN, 0, 0, LN3], [0, 0, -INF, 0], {"topk": 4}, [0.75, 0.5, 0.5, 0], [3, 1, 2, 0]),
    "NaNs by id": ([NAN, NAN, 0, NAN], None, {"topk": 4, "renormalize": True}, [1, 0, 0, 0], [2, 0, 1, 3]),
    "NaN bias": ([0, 0, 0], [0, NAN, 0], {"topk": 3}, [0.5, 0.5, 0.5], [0, 2, 1]),
    "sum of 0": ([-INF, -INF, -INF], None, {"topk": 2, "renormalize": True}, [0, 0], [0, 1]),
}
# The same with groups; all but NaN logits are 0, so c is the bias plus 1/2.
GROUPED: dict[str, tuple[list[float], list[float], int, int, int, list[float], list[int]]] = {
    # name: (logits, bias, G, g, k, weights, indices)
    "best groups": ([0] * 8, [3, 0, 2, 2, 1, 1, 4, -9], 4, 2, 3, [0.5] * 3, [0, 2, 3]),
    "every group": ([0] * 4, [0, 3, 2, 1], 2, 2, 4, [0.5] * 4, [1, 2, 3, 0]),
    "both maxima count": ([0] * 6, [2, 2, 0, 3, 0, 0], 2, 1, 2, [0.5] * 2, [0, 1]),
    "two only": ([0] * 6, [2, 2, -9, 1, 1, 1], 2, 1, 2, [0.5] * 2, [0, 1]),
    "equal groups": ([0] * 6, [0, 0, 1, 1, 1, 1], 3, 1, 2, [0.5] * 2, [2, 3]),
    "one expert a group": ([0] * 4, [1, 3, 2, 0], 4, 2, 2, [0.5] * 2, [1, 2]),
    "dropped fill up": ([0] * 4, [0, 0, 1, 1], 2, 1, 3, [0.5, 0.5, 0], [2, 3, 0]),
    "dropped tie with -inf": (
        [0] * 6,
        [0, 0, 0, 5, 5, -INF],
        2,
        1,
        6,
        [0.5, 0.5, 0, 0, 0, 0.5],
        [3, 4, 0, 1, 2, 5],
    ),
    "dropped NaN is -inf": (
        [NAN, 0, 0, 0, 0, NAN],
        [0, 0, 0, 5, 5, 0],
        2,
        1,
        6,
        [0.5, 0.5, 0, 0, 0, 0],
        [3, 4, 0, 1, 2, 5],
    ),
    "NaN group below -inf": (
        [NAN, 0, 0, 0, 0, 0],
        [0, 9, -INF, -INF, 0, 0],
        3,
        2,
        6,
        [0.5, 0.5, 0, 0, 0.5, 0.5],
        [4, 5, 0, 1, 2, 3],
    ),
    "NaN beside two numbers": ([NAN, 0, 0, 0, 0, 0], [0, 3, 3, 2, 2, 2], 2, 1, 2, [0.5] * 2, [1, 2]),
    "infinities cancel": ([0] * 4, [INF, -INF, 0, 0], 2, 1, 2, [0.5] * 2, [2, 3]),
    "NaN groups by id": ([NAN] * 4, [0] * 4, 2, 1, 3, [0, 0, 0], [2, 3, 0]),
}


@pytest.mark.parametrize("name", ROWS)
def test_row(gate: Gate, name: str) -> None:
    row, bias, arguments, weights, indices = ROWS[name]
    arguments = {"renormalize": False, **arguments}
    bias_tensor = None if bias is None else torch.tensor(bias, dtype=torch.float32)
    result = gate(torch.tensor([row, row], dtype=torch.float32), bias_tensor, **arguments)
    check(result, [weights] * 2, [indices] * 2)


@pytest.mark.parametrize("name", GROUPED)
def test_grouped_row(gate: Gate, name: str) -> None:
    row, bias, groups, kept, topk, weights, indices = GROUPED[name]
    result = gate(
        torch.tensor([row], dtype=torch.float32),
        torch.tensor(bias, dtype=torch.float32),
        topk=topk,
        num_expert_group=groups,
        topk_group=kept,
        renormalize=False,
    )
    check(result, [weights], [indices])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias_dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(gate: Gate, dtype: torch.dtype, bias_dtype: torch.dtype) -> None:
    logits = torch.tensor([[-1, 0, 1, 0]], dtype=dtype)
    bias = torch.tensor([8, 0, 0, 0.125], dtype=bias_dtype)
    check(gate(logits, bias, topk=3, renormalize=False), [[0.26894143, 0.7310586, 0.5]], [[0, 2, 3]])


@pytest.mark.parametrize(("start", "rows"), [(0, 0), (1, 1), (2, 2), (5, 2), (-3, 0)])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_padding(gate: Gate, start: int, rows: int, shape: tuple[int, ...]) -> None:
    result = gate(
        torch.tensor([[0.0, LN3], [NAN, 0.0]]),
        topk=2,
        num_fused_shared_experts=1,
        num_token_non_padded=torch.full(shape, start, dtype=torch.int32),
        expert_map=torch.tensor([5, 6, 7], dtype=torch.int32),
    )
    valid = [([1.0, 1.0], [6, 7]), ([1.0, 1.0], [6, 7])][:rows]
    expected = [*valid, *[([0.0, 0.0], [-1, -1])] * (2 - rows)]
    check(result, [w for w, _ in expected], [i for _, i in expected])


@pytest.mark.parametrize("groups", [1, 2])
def test_zero_tokens(gate: Gate, groups: int) -> None:
    weights, indices = gate(torch.empty(0, 4), topk=3, num_expert_group=groups, num_fused_shared_experts=1)
    assert weights.shape == indices.shape == (0, 3)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", ["transposed", "row_stride", "offset", "broadcast"])
def test_layouts(gate: Gate, layout: str, groups: int) -> None:
    rows = torch.tensor([[0.0, LN3, -LN3, 0.0], [LN3, 0.0, 0.0, 0.0]])
    expected = ([[0.75, 0.5], [0.75, 0.5]], [[1, 0], [0, 1]])
    if layout == "transposed":
        rows = rows.t().contiguous().t()
    elif layout == "row_stride":
        rows = torch.cat([rows, torch.full((2, 3), 99.0)], 1)[:, :4]
    elif layout == "offset":
        rows = torch.cat([torch.full((1,), 99.0), rows.reshape(-1)])[1:].view(2, 4)
    else:
        rows = rows[:1].expand(2, 4)
        expected = ([[0.75, 0.5]] * 2, [[1, 0]] * 2)
    check(gate(rows, topk=2, renormalize=False, num_expert_group=groups), *expected)


def test_equal_logits_tie_wherever_they_stand(gate: Gate) -> None:
    for experts in (3, 13):
        for scoring in ("sigmoid", "softmax", "sqrtsoftplus"):
            logits = torch.full((3, experts), 0.3719)
            assert gate(logits, topk=3, scoring=scoring)[1].tolist() == [[0, 1, 2]] * 3


def test_gold_keeps_a_rows_bits_in_every_batch_and_layout() -> None:
    """Softmax sums in which one large term meets many that vanish beside it alone, and not beside one another."""
    near_one = 1 - torch.arange(3, 801, 2, dtype=torch.float64) * 2.0**-25  # half way between two float32 numbers
    rows = torch.full((len(near_one), 512), -37.0)
    rows[:, 0] = 0.0
    rows[:, 1] = (1 / near_one - 1).log().float()

    def weights(logits: torch.Tensor) -> torch.Tensor:
        return gold.fused_gate(logits, topk=2, scoring="softmax", renormalize=False)[0]

    alone = torch.cat([weights(row[None]) for row in rows])
    sliced = torch.empty(len(rows), 1024)[:, ::2].copy_(rows)
    for name, batch in {"contiguous": rows, "transposed": rows.t().contiguous().t(), "sliced": sliced}.items():
        assert torch.equal(weights(batch), alone), name
