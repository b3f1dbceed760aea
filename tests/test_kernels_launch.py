"""Bound launches, guards and allocation: what an eager call does on the host. A stub stands in for the driver."""

from __future__ import annotations

import contextlib
import ctypes
import struct
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from moeproof.kernels import eager, launcher

STREAM = 0x7F00_1234_5678
FUNCTION, CONTEXT = 0x7F11_0000_0010, 0x7F22_0000_0020
CONFIG = struct.Struct("<7I4x2QI4x")
POINTERS = (0x7F33_0000_0000, 2, 3, 2**63)
Call = Callable[[int, int, int, Any], int]


class Launched(NamedTuple):
    """What the driver got."""

    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    stream: int
    overlap: bool
    function: int
    array: int


class Driver:
    """Stands in for the driver library: answers with `statuses`, and does `during` in a call."""

    def __init__(self) -> None:
        self.seen: list[Launched] = []
        self.structs: list[bytes] = []
        self.statuses: list[int] = []
        self.during: Callable[[], None] = lambda: None
        self.context: int | None = None
        self.size = 0
        pointer = ctypes.c_void_p
        self.cuLaunchKernelEx = ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer, pointer, pointer)(self._launch)

    def _launch(self, config: int, function: int, array: int, extra: int | None) -> int:
        self.during()
        *sizes, stream, attributes, count = CONFIG.unpack(ctypes.string_at(config, CONFIG.size))
        overlap = count and struct.unpack("<i4xi", ctypes.string_at(attributes, 12)) == (6, 1)
        assert extra is None
        assert count == 0 or overlap
        self.seen.append(
            Launched(tuple(sizes[:3]), tuple(sizes[3:6]), sizes[6], stream, bool(overlap), function, array)
        )
        self.structs.append(ctypes.string_at(ctypes.c_uint64.from_address(array).value, self.size))
        return self.statuses.pop(0) if self.statuses else 0

    def cuCtxSetCurrent(self, context: int) -> int:  # noqa: N802
        self.context = context
        return 0

    def cuGetErrorName(self, status: int, name: Any) -> int:  # noqa: N802
        name._obj.value = b"CUDA_ERROR_PLANTED"
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    stub = Driver()
    monkeypatch.setattr(launcher, "_driver", lambda: stub)
    monkeypatch.setattr(launcher, "capability", lambda device: (9, 0))
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: STREAM + device, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    return stub


def kernel(device: int = 0) -> launcher.Kernel:
    return launcher.Kernel(device, CONTEXT, FUNCTION)


def struct_of(params: launcher.Params, constants: bytes, pointers: tuple[int, ...]) -> bytes:
    return struct.pack(f"<{len(pointers)}Q", *pointers) + constants


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
def test_bound_launch_passes_everything(
    driver: Driver, overlap: bool, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "capability", lambda device: capability)
    params = launcher.Params(4, "qif")
    constants = params.freeze(-5, 7, 2.5)
    driver.size = params.size
    launch = launcher.bind(kernel(1), params, constants, 3, 128, 4096, overlap)
    for pointers in (POINTERS, POINTERS[::-1]):
        launch(*pointers)
        expected = Launched((3, 1, 1), (128, 1, 1), 4096, STREAM + 1, overlap and capability >= (9, 0), FUNCTION, 0)
        assert driver.seen[-1]._replace(array=0) == expected
        assert driver.structs[-1] == struct_of(params, constants, pointers)


def test_bound_launch_is_that_of_the_kernel(driver: Driver) -> None:
    params = launcher.Params(4, "2q")
    constants = params.freeze(1, 2)
    driver.size = params.size
    one = kernel()
    launcher.bind(one, params, constants, 5, 64, 16, True)(*POINTERS)
    one.launch(5, 64, params.pack(constants, *POINTERS), 16, True)
    assert driver.seen[0]._replace(array=0) == driver.seen[1]._replace(array=0)
    assert driver.structs[0] == driver.structs[1]


def test_separate_parameters_are_pointed_to_one_by_one(driver: Driver) -> None:
    params = launcher.Params(4, "3q", separate=True)
    read: list[list[int]] = []

    def keep(config: int, function: int, array: int, extra: Any) -> int:
        addresses = (ctypes.c_uint64 * 7).from_address(array)
        read.append([ctypes.c_int64.from_address(address).value for address in addresses])
        return 0

    pointer = ctypes.c_void_p
    driver.cuLaunchKernelEx = ctypes.CFUNCTYPE(ctypes.c_int, pointer, pointer, pointer, pointer)(keep)
    launch = launcher.bind(kernel(), params, params.freeze(-1, 2, 3), 1, 32)
    launch(10, 20, 30, 40)
    assert read == [[10, 20, 30, 40, -1, 2, 3]]


def test_the_current_stream_is_asked_for_at_each_launch(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = [11, 12]
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: streams.pop(0))
    launch = launcher.bind(kernel(), launcher.Params(1, "q"), bytes(8), 1, 32)
    launch(1)
    launch(1)
    assert [seen.stream for seen in driver.seen] == [11, 12]


def test_threads_do_not_share_a_buffer_that_the_driver_reads(driver: Driver) -> None:
    """The first launch is held up in the driver until a second one, of another thread, is through."""
    params = launcher.Params(1, "q")
    driver.size = params.size
    launch = launcher.bind(kernel(), params, params.freeze(5), 1, 32)
    launch(0)  # leaves a buffer, which one of the two can use
    inside, through = threading.Event(), threading.Event()

    def hold() -> None:
        driver.during = lambda: None
        inside.set()
        assert through.wait(20)

    driver.during = hold
    first = threading.Thread(target=launch, args=(1,))
    first.start()
    assert inside.wait(20)
    launch(2)
    through.set()
    first.join()
    assert driver.structs == [struct.pack("<Qq", pointer, 5) for pointer in (0, 2, 1)]
    launch(3)
    assert driver.seen[-1].array in {seen.array for seen in driver.seen[:3]}, "buffers are used again"


def test_a_thread_without_a_context_gets_one(driver: Driver) -> None:
    driver.statuses = [201]
    launcher.bind(kernel(), launcher.Params(1, "q"), bytes(8), 1, 32)(1)
    assert ctypes.c_void_p(CONTEXT).value == driver.context
    assert len(driver.seen) == 2


def test_an_error_is_named_and_the_next_launch_works(driver: Driver) -> None:
    driver.statuses = [700]
    launch = launcher.bind(kernel(), launcher.Params(1, "q"), bytes(8), 1, 32)
    with pytest.raises(launcher.LaunchError, match=r"cuLaunchKernelEx: CUDA_ERROR_PLANTED \(700\)"):
        launch(1)
    launch(1)


def test_any_launchable_can_be_bound() -> None:
    params = launcher.Params(2, "q")
    seen: list[Any] = []

    def launch(grid: int, block: int, array: ctypes.c_void_p, shared: int, overlap: bool) -> None:
        at = ctypes.c_uint64.from_address(array.value or 0).value
        seen.append((grid, block, ctypes.string_at(at, params.size), shared, overlap))

    stand_in: Any = SimpleNamespace(launch=launch)
    launcher.bind(stand_in, params, params.freeze(9), 4, 32, 8, True)(1, 2)
    assert seen == [(4, 32, struct.pack("<2Qq", 1, 2, 9), 8, True)]


# -- guards and allocation -------------------------------------------------------------------------------------


class Seeing(TorchDispatchMode):
    """A mode that sees every call and changes nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fresh() -> Iterator[None]:
    eager._known_guard.cache_clear()
    yield
    eager._known_guard.cache_clear()


def test_guard_sees_what_a_call_depends_on() -> None:
    x, y = torch.zeros(4, 6), torch.zeros(6)
    same = eager.guard(x, y)
    assert same(torch.ones(4, 6), torch.ones(7)[1:])
    others = [torch.zeros(4, 5), torch.zeros(6, 4).t(), x.half(), x.to("meta"), x[:, :, None], None, 1.0]
    others += [torch.nn.Parameter(x), torch.zeros(4, 6, requires_grad=True), x.to_sparse()]
    others += [torch._neg_view(x), torch._to_functional_tensor(x), FakeTensorMode().from_tensor(x)]
    for other in others:
        assert not same(other, y), other
    with Seeing():
        assert not same(x, y)
    with torch.inference_mode():
        assert not same(x, y)
        assert eager.guard(x, y)(x, y)


def test_torch_has_the_private_function_that_guards_are() -> None:
    """If a torch loses it, calls cost more: a note here, not an error there."""
    assert eager._known_guard()(torch.zeros(1)) is not eager.never


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("how", ["missing", "other arguments", "always yes", "always no"])
def test_a_torch_with_another_guard_has_none(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def __init__(self, *tensors: Any, dynamic_dims_sizes: Any, dynamic_dims_strides: Any) -> None:
            self.check = lambda *given: how == "always yes"

    guards = torch._C._dynamo.guards
    if how == "missing":
        monkeypatch.delattr(guards, "TensorGuards")
    else:
        monkeypatch.setattr(guards, "TensorGuards", (lambda *_: None) if how == "other arguments" else Other)
    x = torch.zeros(3)
    assert not eager.guard(x)(x)


@pytest.mark.usefixtures("fresh")
def test_guard_is_found_where_another_device_is_the_default() -> None:
    with torch.device("meta"):
        eager._known_guard()
    x = torch.zeros(3)
    assert eager.guard(x)(x)


@pytest.mark.parametrize("how", ["right", "missing", "other arguments", "other result"])
def test_allocation_falls_back_to_the_public_function(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)

    def private(shape: Any, strides: Any, dtype: Any) -> Any:
        given = strides if how == "right" else shape
        return SimpleNamespace(shape=shape, stride=lambda: given, dtype=dtype, device=device, requires_grad=False)

    guards = torch._C._dynamo.guards
    if how == "missing":
        monkeypatch.delattr(guards, "_empty_strided_cuda")
    else:
        monkeypatch.setattr(guards, "_empty_strided_cuda", private if "other arg" not in how else lambda size: None)
    monkeypatch.setattr(torch.cuda, "device", lambda index: contextlib.nullcontext())
    asked: list[Any] = []
    monkeypatch.setattr(torch, "empty_strided", lambda *args, **how: asked.append((args, how)))
    eager._known_empty.cache_clear()
    try:
        made = eager.empty_on(device)((2, 3), (3, 1), torch.float32)
    finally:
        eager._known_empty.cache_clear()
    if how == "right":
        assert (made.shape, asked) == ((2, 3), [])
    else:
        assert asked == [(((2, 3), (3, 1)), {"dtype": torch.float32, "device": device})]


def test_allocation_on_the_cpu_is_seen_by_modes() -> None:
    """The SIMT executor watches what host code allocates."""
    seen: list[str] = []

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Watching():
        made = eager.empty_on(torch.device("cpu"))((2, 3), (3, 1), torch.int32)
    assert (made.shape, made.dtype, seen) == ((2, 3), torch.int32, ["empty_strided"])
