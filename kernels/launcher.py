"""Loads cubins and launches kernels through the CUDA driver, with as little Python a launch as possible.

Every kernel takes one parameter, a struct by value, so the array of parameter pointers never changes: a
launch packs the struct and calls the driver once.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch

from .compiler import Cubin, compile_cubin, load_source
from .delays import with_delays

MIN_CAPABILITY = (8, 0)
"""Oldest compute capability with warp-wide integer reductions."""
OVERLAP_CAPABILITY = (9, 0)
"""Oldest compute capability on which a launch can overlap the kernel before it."""
_INVALID_CONTEXT = 201
_CAPTURE_RELAXED = 2
_MAX_SHARED, _CARVEOUT = 8, 9
"""Function attributes: most dynamic shared memory, share of the L1 that is shared memory in percent."""
_OVERLAP = 6
"""Launch attribute: programmatic stream serialisation."""
_lock = threading.RLock()


class LaunchError(RuntimeError):
    """The CUDA driver refused a call; names the call and the driver's error."""


@functools.cache
def _driver() -> Any:
    """Return the driver library, initialised. Never called without a CUDA device."""
    cuda = ctypes.CDLL("libcuda.so.1")
    # cuLaunchKernelEx gets no argtypes: converting by them costs more than the call itself. It is passed c_void_p.
    pointer = ctypes.c_void_p
    cuda.cuModuleLoadData.argtypes = [pointer, ctypes.c_char_p]
    cuda.cuModuleGetFunction.argtypes = [pointer, pointer, ctypes.c_char_p]
    cuda.cuDevicePrimaryCtxRetain.argtypes = [pointer, ctypes.c_int]
    cuda.cuGetErrorName.argtypes = [ctypes.c_int, pointer]
    cuda.cuFuncSetAttribute.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
    for name in (
        "cuCtxPushCurrent_v2",
        "cuCtxPopCurrent_v2",
        "cuCtxSetCurrent",
        "cuThreadExchangeStreamCaptureMode",
    ):
        getattr(cuda, name).argtypes = [pointer]
    if status := cuda.cuInit(0):
        raise LaunchError(f"cuInit: CUDA error {status}")
    return cuda


def _check(status: int, call: str) -> None:
    if status:
        name = ctypes.c_char_p()
        _driver().cuGetErrorName(status, ctypes.byref(name))
        raise LaunchError(f"{call}: {name.value.decode() if name.value else 'CUDA error'} ({status})")


class Launchable(Protocol):
    """What `load_kernel` returns: a kernel that can be launched."""

    def launch(self, grid: int, block: int, params: ctypes.c_void_p, shared: int = 0, overlap: bool = False) -> None:
        """Launch `grid` blocks of `block` threads with what `Params.pack` returned; see `Kernel.launch`."""
        ...


class Executor(Protocol):
    """Runs kernels on CPU tensors in place of a CUDA device."""

    sm_count: int

    def load(self, file: str, name: str) -> Launchable:
        """Return a kernel of a source file of this folder, by its name expression."""
        ...


_executor: Executor | None = None


@contextlib.contextmanager
def use_executor(executor: Executor) -> Iterator[None]:
    """Have CPU tensors admitted, and their kernels loaded and launched by `executor`, in the whole process."""
    global _executor
    previous, _executor = _executor, executor
    try:
        yield
    finally:
        _executor = previous


def runs_on_cpu() -> bool:
    """Say whether an executor takes CPU tensors."""
    return _executor is not None


class Params(threading.local):
    """A kernel's parameter struct, one a thread: the driver copies it while the GIL is released.

    Parameters
    ----------
    pointers : int
        Number of pointers, which the struct starts with.
    values : str
        The fields behind them, in the letters of the struct module.
    separate : bool
        Each pointer and each value, all of 8 bytes, is a parameter of its own, as Triton's kernels have them.
    """

    def __init__(self, pointers: int, values: str, separate: bool = False) -> None:
        self._values = struct.Struct(f"<{values}")
        self.pointers = pointers
        self.size = 8 * pointers + self._values.size
        self._offsets = range(0, self.size, 8) if separate else (0,)
        buffer = bytearray(self.size)
        self._struct = (ctypes.c_char * self.size).from_buffer(buffer)
        self._pointers = self.array(ctypes.addressof(self._struct))
        array = ctypes.c_void_p(ctypes.addressof(self._pointers))
        # One attribute, since looking one up in a thread's local storage is slow.
        self._slot = (struct.Struct(f"<{pointers}Q").pack_into, buffer, slice(8 * pointers, None), array)

    def array(self, address: int) -> ctypes.Array[ctypes.c_void_p]:
        """Return the parameter array of a struct at an address."""
        return (ctypes.c_void_p * len(self._offsets))(*(address + offset for offset in self._offsets))

    def freeze(self, *values: int | float) -> bytes:
        """Return the fields behind the pointers as bytes."""
        return self._values.pack(*values)

    def pack(self, frozen: bytes, *pointers: int) -> ctypes.c_void_p:
        """Fill the struct; return its parameter array, good until this thread's next call."""
        pack_into, buffer, behind, array = self._slot
        pack_into(buffer, 0, *pointers)
        buffer[behind] = frozen
        return array


_CONFIG = struct.Struct("<7I4x2QI4x")  # grid, block, dynamic shared memory, stream, attributes, their number
_STREAM_AT = 32
"""Where in it the stream is, which with the attributes is its end."""
# CUlaunchAttribute: programmatic stream serialisation is allowed.
_overlap = ctypes.create_string_buffer(struct.pack("<i4xi60x", _OVERLAP, 1), 72)
_OVERLAP_AT = ctypes.addressof(_overlap)

Bound = Callable[..., None]
"""Launches a kernel with the pointers that it is called with, in the order of the parameter struct."""


class _Config(threading.local):
    """A launch's shape and stream (CUlaunchConfig), one a thread as `Params` is."""

    def __init__(self) -> None:
        buffer = bytearray(_CONFIG.size)
        self._struct = (ctypes.c_char * _CONFIG.size).from_buffer(buffer)
        self.slot = (_CONFIG.pack_into, buffer, ctypes.c_void_p(ctypes.addressof(self._struct)))


_config = _Config()


class Kernel:
    """A kernel loaded on one device."""

    def __init__(self, device: int, context: int, function: int) -> None:
        self.device = device
        self._context = context
        self._function = ctypes.c_void_p(function)
        self._overlaps = capability(device) >= OVERLAP_CAPABILITY
        self._launch = _driver().cuLaunchKernelEx

    def launch(self, grid: int, block: int, params: ctypes.c_void_p, shared: int = 0, overlap: bool = False) -> None:
        """Launch on torch's current stream of this kernel's device.

        Parameters
        ----------
        grid, block : int
            Blocks, and threads a block.
        params : c_void_p
            What `Params.pack` returned.
        shared : int
            Bytes of dynamic shared memory a block; past 48 KiB only for kernels loaded with as many.
        overlap : bool
            May start before the kernel before it on the stream has ended (programmatic dependent launch): every
            thread calls `after_previous` of stream.cuh before it touches global memory.

        Raises
        ------
        LaunchError
            If the driver refuses the launch.
        """
        if torch._C._cuda_getDevice() != self.device:
            with torch.cuda.device(self.device):
                self._submit(grid, block, params, shared, overlap)
        else:
            self._submit(grid, block, params, shared, overlap)

    def bind(
        self, params: Params, constants: bytes, grid: int, block: int, shared: int = 0, overlap: bool = False
    ) -> Bound:
        """Return a function that launches with pointers, all else being fixed; see `bind`."""
        current_stream, submit, device, function = (
            torch._C._cuda_getCurrentRawStream,
            self._launch,
            self.device,
            self._function,
        )
        # Stream, attributes, their number, and behind this end of the configuration the parameters.
        pack_into = struct.Struct(f"<2QI4x{params.pointers}Q").pack_into
        head = _CONFIG.pack(grid, 1, 1, block, 1, 1, shared, 0, 0, 0)
        attributes = int(overlap and self._overlaps)
        # Buffers that no launch is using. Taking one and giving it back are atomic; a second one is made only if
        # another thread launches while the driver reads the first.
        spare: list[tuple[bytearray, tuple[Any, ...]]] = []

        def launch(*pointers: int) -> None:
            try:
                slot = spare.pop()
            except IndexError:
                buffer = bytearray(head + bytes(8 * params.pointers) + constants)
                address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))  # which a bytearray keeps while it lives
                config = ctypes.c_void_p(address)
                slot = buffer, (config, function, params.array(address + _CONFIG.size), None)
            buffer, arguments = slot
            pack_into(buffer, _STREAM_AT, current_stream(device), _OVERLAP_AT, attributes, *pointers)
            if status := submit(*arguments):
                self._retry(status, arguments)
            spare.append(slot)

        return launch

    def _submit(self, grid: int, block: int, params: ctypes.c_void_p, shared: int, overlap: bool) -> None:
        stream = torch._C._cuda_getCurrentRawStream(self.device)
        pack_into, buffer, config = _config.slot
        attributes = int(overlap and self._overlaps)
        pack_into(buffer, 0, grid, 1, 1, block, 1, 1, shared, stream, _OVERLAP_AT, attributes)
        arguments = (config, self._function, params, None)
        if status := self._launch(*arguments):
            self._retry(status, arguments)

    def _retry(self, status: int, arguments: tuple[Any, ...]) -> None:
        if status == _INVALID_CONTEXT:  # a thread that has made no CUDA call yet
            _check(_driver().cuCtxSetCurrent(self._context), "cuCtxSetCurrent")
            status = self._launch(*arguments)
        if status:
            _check(status, "cuLaunchKernelEx")


def bind(
    kernel: Launchable,
    params: Params,
    constants: bytes,
    grid: int,
    block: int,
    shared: int = 0,
    overlap: bool = False,
) -> Bound:
    """Return a function that launches a kernel with pointers, all else being fixed: what a prepared call keeps.

    The kernel's device has to be current when it is called: `Kernel.launch` sees to that, this does not.

    Parameters
    ----------
    kernel : Launchable
        What `load_kernel` returned.
    params : Params
        The kernel's parameters.
    constants : bytes
        What `Params.freeze` returned.
    grid, block, shared, overlap
        As `Kernel.launch` takes them.
    """
    if isinstance(kernel, Kernel):
        return kernel.bind(params, constants, grid, block, shared, overlap)
    return lambda *pointers: kernel.launch(grid, block, params.pack(constants, *pointers), shared, overlap)


def sm_count(device: int | None) -> int:
    """Return the number of multiprocessors of a CUDA device; None is the executor that takes CPU tensors."""
    return _sm_count(device) if _executor is None or device is not None else _executor.sm_count


@functools.cache
def _sm_count(device: int | None) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def device_name(device: int | None) -> str:
    """Return a CUDA device's name; the executor that takes CPU tensors has none."""
    return "" if device is None else str(torch.cuda.get_device_properties(device).name)


@functools.cache
def capability(device: int | None) -> tuple[int, int]:
    """Return a CUDA device's compute capability; the executor that takes CPU tensors has the oldest that is allowed."""
    return MIN_CAPABILITY if device is None else torch.cuda.get_device_capability(device)


@functools.cache
def _arch(device: int) -> str:
    major, minor = capability(device)
    if (major, minor) < MIN_CAPABILITY:
        raise ValueError(f"device is cuda:{device} with capability {major}.{minor}; allowed: 8.0 or newer")
    return f"sm_{major}{minor}"


@functools.cache
def _cubin(file: str, name: str, arch: str, delays: int = 0) -> Cubin:
    source = load_source(file)
    return compile_cubin(with_delays(source, delays) if delays else source, (name,), arch)


@functools.cache
def _kernel(file: str, name: str, device: int, shared: int, delays: int) -> Kernel:
    cubin = _cubin(file, name, _arch(device), delays)
    return load_cubin(cubin.code, cubin.symbols[name], device, shared)


def load_cubin(code: bytes, symbol: str, device: int, shared: int = 0) -> Kernel:
    """Return a kernel of a cubin, loaded on a CUDA device; also while a graph is captured.

    Raises
    ------
    LaunchError
        If the driver refuses to load it.
    """
    cuda = _driver()
    context, previous = ctypes.c_void_p(), ctypes.c_void_p()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    _check(cuda.cuCtxPushCurrent_v2(context), "cuCtxPushCurrent")
    # Loading may allocate, which a capturing thread may do in relaxed mode only.
    mode = ctypes.c_int(_CAPTURE_RELAXED)
    _check(cuda.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)), "cuThreadExchangeStreamCaptureMode")
    try:
        _check(cuda.cuModuleLoadData(ctypes.byref(module), code), "cuModuleLoadData")
        _check(cuda.cuModuleGetFunction(ctypes.byref(function), module, symbol.encode()), "cuModuleGetFunction")
        if shared:
            for attribute, value in ((_MAX_SHARED, shared), (_CARVEOUT, 100)):
                _check(cuda.cuFuncSetAttribute(function, attribute, value), "cuFuncSetAttribute")
    finally:
        cuda.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
        cuda.cuCtxPopCurrent_v2(ctypes.byref(previous))
    return Kernel(device, int(context.value or 0), int(function.value or 0))


def load_kernel(file: str, name: str, device: int | None, shared: int = 0, *, delays: int = 0) -> Launchable:
    """Return a kernel, compiled and loaded on first use.

    Parameters
    ----------
    file : str
        Source file of this folder.
    name : str
        Name expression of the kernel.
    device : int, optional
        Index of a CUDA device; None is the executor that takes CPU tensors. What that one returns is for its own
        use only: it must not be kept for another.
    shared : int
        Most bytes of dynamic shared memory a block that it will be launched with. Any at all also gives the L1's
        whole memory to shared memory.
    delays : int
        Seed of delays at its synchronisation points (see `with_delays`); 0 for none.

    Raises
    ------
    CompileError
        If it can't be compiled.
    LaunchError
        If the driver refuses to load it.
    ValueError
        If the device is too old.
    """
    if device is None:
        assert _executor is not None, "validate.on_cuda admits no CPU tensor without one"
        return _executor.load(file, name)
    with _lock:
        return _kernel(file, name, device, shared, delays)
