"""append_shared_experts: on CPU tensors through Triton's interpreter, and compiled for an absent GPU."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from moeproof.kernels import append_shared_experts as module

pytest.importorskip("triton")
POINTERS = ("topk_ids", "topk_weight_bits", "shared_weights", "ids", "weight_bits", "num_valid_rows")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def reload_kernel() -> None:
    module._kernel.cache_clear()
    importlib.reload(importlib.import_module("moeproof.kernels.append_kernel"))


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    reload_kernel()
    yield
    monkeypatch.undo()
    reload_kernel()


def expected(
    ids: torch.Tensor, weights: torch.Tensor, shared: torch.Tensor, experts: int, count: int, valid: int
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = ids.shape[0]
    column = shared if shared.dim() == 2 else shared.reshape(-1, 1)
    more = column.expand(tokens, count).to(weights.dtype)
    new = torch.arange(experts, experts + count, dtype=ids.dtype).expand(tokens, count)
    all_ids, all_weights = torch.cat([ids, new], 1), torch.cat([weights, more], 1)
    all_ids[valid:] = -1
    all_weights[valid:] = 0
    return all_ids, all_weights


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.int32 if x.itemsize == 4 else torch.int16)


def payloads(tokens: int, topk: int, dtype: torch.dtype) -> torch.Tensor:
    """Weights with signalling NaNs of both signs, -0.0, infinities and denormals."""
    integer = torch.int32 if dtype.itemsize == 4 else torch.int16
    info = torch.iinfo(integer)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(info.min, info.max, (tokens, topk), generator=generator, dtype=integer).view(dtype)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shared_dtype", FLOATS)
@pytest.mark.parametrize("form", ["matrix", "vector", "scalar"])
def test_against_concatenation(dtype: torch.dtype, shared_dtype: torch.dtype, form: str) -> None:
    tokens, topk, count = 67, 3, 2
    shape = {"matrix": (tokens, count), "vector": (tokens,), "scalar": ()}[form]
    shared = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 9).to(shared_dtype)
    ids = torch.arange(tokens * topk).reshape(tokens, topk) - 5
    weights = payloads(tokens, topk, dtype)
    valid = 60
    limit = torch.tensor(valid, dtype=torch.int32)
    out = module.append_shared_experts(ids, weights, shared, 500, count, num_token_non_padded=limit)
    for got, want in zip(out, expected(ids, weights, shared, 500, count, valid), strict=True):
        assert got.dtype == want.dtype
        assert torch.equal(
            bits(got) if got.is_floating_point() else got, bits(want) if want.is_floating_point() else want
        )


@pytest.mark.usefixtures("interpreted")
def test_shared_weight_is_rounded_once_to_nearest_even() -> None:
    ids = torch.zeros(4, 1, dtype=torch.int32)
    shared = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -0.0])
    for dtype in (torch.bfloat16, torch.float16):
        _, weights = module.append_shared_experts(ids, torch.ones(4, 1, dtype=dtype), shared, 8)
        assert torch.equal(bits(weights[:, 1]), bits(shared.to(dtype)))


@pytest.mark.usefixtures("interpreted")
def test_strides_and_out() -> None:
    ids = torch.arange(40, dtype=torch.int32).reshape(5, 8)[:, 1:8:3]
    weights = torch.arange(15.0).reshape(3, 5).t()
    out = (torch.full((5, 4), 77, dtype=torch.int32), torch.full((5, 4), 77.0))
    got = module.append_shared_experts(ids, weights, torch.tensor(0.5), 40, out=out)
    assert got[0] is out[0]
    want = expected(ids, weights, torch.tensor(0.5), 40, 1, 5)
    assert torch.equal(out[0], want[0])
    assert torch.equal(out[1], want[1])


@pytest.mark.usefixtures("interpreted")
def test_no_tokens() -> None:
    ids, weights = module.append_shared_experts(
        torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 2), torch.zeros(0), 8, 3
    )
    assert ids.shape == weights.shape == (0, 5)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(("topk", "count"), [(1, 1), (8, 1), (15, 1), (16, 1), (16, 3), (20, 16), (33, 17)])
def test_any_number_of_places(topk: int, count: int) -> None:
    ids = torch.arange(5 * topk, dtype=torch.int32).reshape(5, topk)
    weights, shared = torch.rand(5, topk), torch.rand(5, count)
    got = module.append_shared_experts(ids, weights, shared, 700, count)
    for have, want in zip(got, expected(ids, weights, shared, 700, count, 5), strict=True):
        assert torch.equal(have, want)


def test_one_variant_for_each_combination_of_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value or an alignment that the kernel were specialized on would compile it anew for many a shape."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reload_kernel()
    kernel: Any = importlib.import_module("moeproof.kernels.append_kernel").append_rows
    for parameter in kernel.params:
        pointer = parameter.name in POINTERS
        assert parameter.is_constexpr or parameter.do_not_specialize
        assert parameter.is_constexpr or pointer or parameter.annotation_type == "i64"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_compiles_for_a_gpu(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel: Any = importlib.import_module("moeproof.kernels.append_kernel").append_rows
    constants = {"DTYPE": dtype, "ROWS": module.ROWS, "PLACES": module.PLACES}
    word = "*i32" if dtype == "float32" else "*i16"
    pointers = {"topk_ids": "*i64", "ids": "*i64", "topk_weight_bits": word, "weight_bits": word}
    pointers |= {"shared_weights": "*bf16", "num_valid_rows": "*i32"}
    signature = {n: "constexpr" if n in constants else pointers.get(n, "i64") for n in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    assert triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]
