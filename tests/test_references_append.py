"""Hand-computed examples of every rule of `append_shared_experts`, for each family of references.

Run with NUMBA_ENABLE_CUDASIM=1 they include the Numba references in Numba's simulator.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
SIMULATED = [("numba_ref", "cpu")] if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else []
FAMILIES = [
    *(pytest.param(p, id="-".join(p)) for p in [("gold", "cpu"), ("torch_ref", "cpu"), *SIMULATED]),
    *(pytest.param((f, "cuda"), id=f"{f}-cuda", marks=GPU) for f in ("gold", "torch_ref", "numba_ref")),
]
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
INF = float("inf")
Append = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def placed(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """Return the tensor on `device` with its strides and offset (`Tensor.to` may make it contiguous)."""
    storage = tensor.new_empty(0).set_(tensor.untyped_storage()).to(device)
    return storage.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


@pytest.fixture(params=FAMILIES)
def append(request: pytest.FixtureRequest) -> Append:
    family, device = request.param
    function = importlib.import_module(f"moeproof.references.{family}").append_shared_experts

    def call(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        moved = [placed(a, device) if isinstance(a, torch.Tensor) else a for a in args]
        named = {n: v.to(device) for n, v in kwargs.items()}
        ids, weights = function(*moved, **named)
        assert (ids.dtype, weights.dtype) == (args[0].dtype, args[1].dtype)
        assert ids.device.type == weights.device.type == device
        return ids.cpu(), weights.cpu()

    return call


@pytest.mark.parametrize("ids_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    ("shared", "appended"),
    [
        (torch.tensor([[1.5, 2.5], [3.5, 4.5]]), [[1.5, 2.5], [3.5, 4.5]]),
        (torch.tensor([1.5, 2.5]), [[1.5, 1.5], [2.5, 2.5]]),
        (torch.tensor(0.25), [[0.25, 0.25], [0.25, 0.25]]),
        (torch.tensor([[1.5, 9.0, 2.5], [3.5, 9.0, 4.5]])[:, ::2], [[1.5, 2.5], [3.5, 4.5]]),
    ],
    ids=["matrix", "vector", "scalar", "strided"],
)
def test_forms(append: Append, shared: torch.Tensor, appended: list[list[float]], ids_dtype: torch.dtype) -> None:
    ids, weights = append(
        torch.tensor([[3, -1], [0, 9]], dtype=ids_dtype), torch.tensor([[0.5, 1.0], [2.0, 3.0]]), shared, 4, 2
    )
    assert ids.tolist() == [[3, -1, 4, 5], [0, 9, 4, 5]]
    assert weights.tolist() == [[0.5, 1.0, *appended[0]], [2.0, 3.0, *appended[1]]]


@pytest.mark.parametrize(
    ("dtype", "word", "patterns"),
    [
        # A signalling NaN, a negative NaN with a payload, -0, the smallest denormal.
        (F32, torch.int32, [0x7F800001, -0x3FEDCC, -(2**31), 1]),
        (BF16, torch.int16, [0x7F81, -0x3D, -(2**15), 1]),
        (F16, torch.int16, [0x7C01, -0x3D, -(2**15), 1]),
    ],
    ids=["float32", "bfloat16", "float16"],
)
def test_routed_weights_are_copied_bit_for_bit(
    append: Append, dtype: torch.dtype, word: torch.dtype, patterns: list[int]
) -> None:
    routed = torch.tensor([patterns], dtype=word).view(dtype)
    _, weights = append(torch.zeros(1, 4, dtype=torch.int32), routed, torch.ones(1, dtype=F32), 4)
    assert weights.view(word).tolist()[0][:4] == patterns
    assert weights[0, 4].item() == 1.0


# (from, to, values, rounded): ties go to even, each value is rounded once.
ROUNDINGS = [
    (F32, BF16, [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8 - 2**-20], [1.0, 1 + 2**-6, -1 - 2**-7]),
    (F32, BF16, [3.4e38, -3.4e38, 3.39e38], [INF, -INF, 255 * 2.0**120]),
    (F32, BF16, [2.0**-133, 1.5 * 2.0**-133, 2.0**-134], [2.0**-133, 2.0**-132, 0.0]),
    (F32, BF16, [INF, -INF, 0.1], [INF, -INF, 0.10009765625]),
    (F32, F16, [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-11 + 2**-20], [1.0, 1 + 2**-9, 1 + 2**-10]),
    (F32, F16, [65519.0, 65520.0, -1e30], [65504.0, INF, -INF]),
    (F32, F16, [2.0**-25, 2.0**-25 + 2.0**-40, -(2.0**-24) * 1.5], [0.0, 2.0**-24, -(2.0**-23)]),
    (F32, F16, [2.0**-14 - 2.0**-26, 2.0**-14, 5 * 2.0**-25], [2.0**-14, 2.0**-14, 2 * 2.0**-24]),
    (F32, F16, [INF, -INF, 0.1], [INF, -INF, 0.0999755859375]),
    (BF16, F16, [2.0**-30, 1.0078125, -70000.0], [0.0, 1.0078125, -INF]),
    (F16, BF16, [1 + 2**-8, 65504.0, 2.0**-24], [1.0, 65536.0, 2.0**-24]),
    (BF16, F32, [0.10009765625, 2.0**-133, -3.0], [0.10009765625, 2.0**-133, -3.0]),
    (F16, F32, [0.0999755859375, 2.0**-24, -3.0], [0.0999755859375, 2.0**-24, -3.0]),
    (F32, F32, [0.1, 2.0**-149, -3.0], [0.10000000149011612, 2.0**-149, -3.0]),
]


@pytest.mark.parametrize(("source", "target", "values", "rounded"), ROUNDINGS)
def test_shared_weights_are_rounded_once(
    append: Append, source: torch.dtype, target: torch.dtype, values: list[float], rounded: list[float]
) -> None:
    shared = torch.tensor([values], dtype=torch.float64).to(source)
    _, weights = append(torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1, dtype=target), shared, 8, 3)
    assert weights.double().tolist() == [[1.0, *rounded]]


@pytest.mark.parametrize("target", [F32, BF16, F16])
@pytest.mark.parametrize("source", [F32, BF16, F16])
def test_special_shared_weights(append: Append, source: torch.dtype, target: torch.dtype) -> None:
    shared = torch.tensor([[float("nan"), -0.0]], dtype=source)
    _, weights = append(torch.zeros(1, 1, dtype=torch.int32), torch.ones(1, 1, dtype=target), shared, 8, 2)
    assert weights[0, 1].isnan()
    assert weights[0, 2] == 0
    assert weights[0, 2].signbit()


@pytest.mark.parametrize(("start", "rows"), [(0, 0), (1, 1), (2, 2), (7, 2), (-1, 0)])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_padding(append: Append, start: int, rows: int, shape: tuple[int, ...]) -> None:
    ids, weights = append(
        torch.tensor([[3], [5]]),
        torch.tensor([[0.5], [float("nan")]], dtype=BF16),
        torch.tensor([1.0, 2.0]),
        8,
        num_token_non_padded=torch.full(shape, start, dtype=torch.int32),
    )
    assert ids.tolist() == [[3, 8], [5, 8]][:rows] + [[-1, -1]] * (2 - rows)
    assert weights[rows:].tolist() == [[0.0, 0.0]] * (2 - rows)
    assert weights[:rows, 1].tolist() == [1.0, 2.0][:rows]


def test_ids_past_32_bits(append: Append) -> None:
    ids, _ = append(torch.tensor([[2**40, -1]]), torch.ones(1, 2), torch.tensor(1.0), 2**33)
    assert ids.tolist() == [[2**40, -1, 2**33]]


def test_strided_inputs_and_untouched(append: Append) -> None:
    ids = torch.tensor([[1, 2], [3, 4]]).t()
    weights = torch.tensor([[0.5, 9.0, 1.5], [2.5, 9.0, 3.5]], dtype=BF16)[:, ::2]
    kept = ids.clone(), weights.clone()
    got_ids, got_weights = append(ids, weights, torch.tensor(1.0), 5)
    assert got_ids.tolist() == [[1, 3, 5], [2, 4, 5]]
    assert got_weights.tolist() == [[0.5, 1.5, 1.0], [2.5, 3.5, 1.0]]
    assert torch.equal(ids, kept[0])
    assert torch.equal(weights, kept[1])


def test_zero_tokens(append: Append) -> None:
    ids, weights = append(torch.empty(0, 4, dtype=torch.int64), torch.empty(0, 4), torch.empty(0, 2), 8, 2)
    assert ids.shape == weights.shape == (0, 6)
