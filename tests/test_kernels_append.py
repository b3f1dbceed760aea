"""append_shared_experts: on CPU tensors through Triton's interpreter, and compiled for an absent GPU."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import SimpleNamespace
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


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("few", [False, True])
def test_every_variant_of_the_kernel(wide: bool, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEW_TOKENS", 70 if few else 69)
    monkeypatch.setattr(module.validate, "INT32_MAX", 100 if wide else 2**31 - 1)
    ids = torch.arange(70 * 18).reshape(70, 18)[:, ::2] + 2**40
    weights, shared = payloads(70, 9, torch.float16), torch.rand(70, 4)[:, :3]
    experts = 2**62 if wide else 500
    for valid in (-1, 0, 37, 70, 10**6):
        limit = torch.tensor([valid], dtype=torch.int32)
        got = module.append_shared_experts(ids, weights, shared, experts, 3, num_token_non_padded=limit)
        want = expected(ids, weights, shared, experts, 3, max(valid, 0))
        assert torch.equal(got[0], want[0])
        assert torch.equal(bits(got[1]), bits(want[1]))


def test_offsets_past_32_bits_are_seen() -> None:
    """An element at 2^31 needs more than 32 bits, one before it does not; shapes and strides say so, no memory."""
    for last, wide in ((2**31 - 1, False), (2**31, True)):
        tensor = torch.empty_strided((3, 2), ((last - 1) // 2, (last - 1) % 2 + 1), device="meta")
        assert module._reach(tensor) == last
        assert (module._reach(tensor) > module.validate.INT32_MAX) == wide
    assert module._reach(torch.empty((), device="meta")) == 0


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reload_kernel()
    module._loaded.cache_clear()
    yield
    module._loaded.cache_clear()


def pointers(ids: str, weights: str, shared: str) -> dict[str, str]:
    word = "*i32" if weights == "float32" else "*i16"
    types = {"topk_ids": ids, "ids": ids, "topk_weight_bits": word, "weight_bits": word}
    return types | {"shared_weights": shared, "num_valid_rows": "*i32"}


def build(capability: int = 90, **changed: Any) -> Any:
    """Compile the kernel for an absent GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel: Any = importlib.import_module("moeproof.kernels.append_kernel").append_rows
    constants = {"DTYPE": "float32", "ROWS": module.ROWS, "PLACES": module.PLACES, "ONE_PASS": True, "WIDE": False}
    constants |= {"OVERLAP": capability >= 90, **changed}
    types = pointers("*i64", constants["DTYPE"], "*bf16")
    signature = {n: "constexpr" if n in constants else types.get(n, "i64") for n in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32))


@pytest.mark.usefixtures("compiled")
def test_one_variant_for_each_combination_of_dtypes() -> None:
    """A value or an alignment that the kernel were specialized on would compile it anew for many a shape."""
    kernel: Any = importlib.import_module("moeproof.kernels.append_kernel").append_rows
    for parameter in kernel.params:
        pointer = parameter.name in POINTERS
        assert parameter.is_constexpr or parameter.do_not_specialize
        assert parameter.is_constexpr or pointer or parameter.annotation_type == "i64"


@pytest.mark.usefixtures("compiled")
def test_parameters_are_in_the_order_that_the_host_packs() -> None:
    kernel = importlib.import_module("moeproof.kernels.append_kernel")
    names = kernel.POINTERS + kernel.VALUES
    assert tuple(kernel.append_rows.arg_names[: len(names)]) == names
    assert names[:6] == POINTERS
    assert module._params.size == 8 * (len(names) + 2)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("changed", [{"DTYPE": "bfloat16", "ONE_PASS": False}, {"DTYPE": "float16"}, {"WIDE": True}])
def test_compiles_for_a_gpu(changed: dict[str, Any]) -> None:
    from moeproof.kernels.triton_loader import is_launchable

    made = build(**changed)
    assert made.asm["cubin"]
    assert is_launchable(made, 17)


@pytest.mark.usefixtures("compiled")
def test_memory_is_touched_after_the_kernel_before_has_ended() -> None:
    """Only where launches overlap; older devices do not know the instruction."""
    text = build(ROWS=module.FEW_ROWS).asm["ptx"]
    assert text.index("griddepcontrol.launch_dependents") < text.index("griddepcontrol.wait")
    assert text.index("griddepcontrol.wait") < text.index("ld.global")
    assert "griddepcontrol" not in build(80, ROWS=module.FEW_ROWS).asm["ptx"]


PTX = ".version 8\n.visible .entry f(\n\t.param .u64 .ptr f_0,\n\t.param .u64 f_1{}\n)\n{{ .param .b32 x; }}"


def look_alike(**changed: Any) -> Any:
    """Return something like a compiled kernel of one parameter and two pointers to scratch memory."""
    known = {"num_warps": 4, "num_ctas": 1, "shared": 0, "global_scratch_size": 0, "profile_scratch_size": 0}
    metadata = SimpleNamespace(**{**known, "launch_cooperative_grid": False, "name": "f", **changed})
    more = changed.get("more", ",\n\t.param .u64 .ptr f_2")
    return SimpleNamespace(metadata=metadata, asm={"ptx": PTX.format(more), "cubin": b"code"})


DIFFERENT: list[dict[str, Any]] = [
    {"more": ""},
    {"more": ", .param .u64 f_2, .param .u64 f_3"},
    {"more": ", .param .u32 f_2"},
    {"more": ", .param .align 64 .b8 f_2[128]"},
    {"num_warps": 8},
    {"num_ctas": 2},
    {"shared": 64 << 10},
    {"global_scratch_size": 8},
    {"profile_scratch_size": 8},
    {"launch_cooperative_grid": True},
]


@pytest.mark.parametrize("changed", [{}, *DIFFERENT])
def test_what_is_compiled_another_way_is_left_to_triton(changed: dict[str, Any]) -> None:
    from moeproof.kernels.triton_loader import is_launchable

    assert is_launchable(look_alike(**changed), 1) == (not changed)


@pytest.fixture
def on_a_device(compiled: None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Make as if the kernel were compiled and loaded for device 0; return the sources that are compiled."""
    from moeproof.kernels import triton_loader

    seen: list[Any] = []
    monkeypatch.setattr(triton_loader, "capability", lambda device: (9, 0))
    monkeypatch.setattr(module, "capability", lambda device: (9, 0))
    monkeypatch.setattr(triton_loader, "load_cubin", lambda code, name, device: (code, name, device))
    monkeypatch.setattr(triton_loader, "compile", lambda source, **how: seen.append(source) or look_alike())
    monkeypatch.setattr(triton_loader, "is_launchable", lambda compiled, parameters: parameters == 17)
    return seen


CONSTANTS = (("DTYPE", "float16"), ("ROWS", 8), ("PLACES", 16), ("ONE_PASS", True), ("WIDE", False))


def test_kernel_is_loaded_for_our_own_launcher(on_a_device: list[Any]) -> None:
    loaded: Any = module._loaded(0, torch.int64, torch.float16, torch.bfloat16, CONSTANTS)
    assert loaded == ((b"code", "f", 0), 128, 0)
    (source,) = on_a_device
    types = pointers("*i64", "float16", "*bf16")
    assert {name: kind for name, kind in source.signature.items() if kind.startswith("*")} == types
    assert len(source.constants) == 6
    assert module._loaded(0, torch.int64, torch.float16, torch.bfloat16, CONSTANTS) is loaded


@pytest.mark.parametrize("how", ["another shape", "another name", "other arguments"])
def test_an_unknown_triton_launches_by_itself(
    on_a_device: list[Any], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moeproof.kernels import triton_loader

    if how == "another shape":
        monkeypatch.setattr(triton_loader, "is_launchable", lambda compiled, parameters: False)
    elif how == "another name":
        nameless = SimpleNamespace(asm={}, metadata=SimpleNamespace())
        monkeypatch.setattr(triton_loader, "compile", lambda source, **how: nameless)
    else:
        monkeypatch.setattr(triton_loader, "ASTSource", lambda kernel: None)
    assert module._loaded(0, torch.int64, torch.float16, torch.bfloat16, CONSTANTS) is None


@pytest.mark.usefixtures("interpreted")
def test_an_interpreted_kernel_is_not_compiled() -> None:
    from moeproof.kernels.triton_loader import load_triton

    kernel = importlib.import_module("moeproof.kernels.append_kernel").append_rows
    assert load_triton(kernel, {}, {}, 0) is None
