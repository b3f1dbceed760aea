"""Loads cubins and launches kernels through the CUDA driver, with as little Python a launch as possible.

Every kernel takes one parameter, a struct by value, so the array of parameter pointers never changes: a
launch packs the struct and calls the driver once.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import threading
from typing import Any

import torch

from .compiler import Cubin, compile_cubin, load_source

MIN_CAPABILITY = (8, 0)
"""Oldest compute capability with warp-wide integer reductions."""
_INVALID_CONTEXT = 201
_CAPTURE_RELAXED = 2
_lock = threading.RLock()


class LaunchError(RuntimeError):
    """The CUDA driver refused a call; names the call and the driver's error."""


@functools.cache
def _driver() -> Any:
    """Return the driver library, initialised. Never called without a CUDA device."""
    cuda = ctypes.CDLL("libcuda.so.1")
    # cuLaunchKernel gets no argtypes: converting eleven arguments by them costs more than the call itself.
    # Its pointers are passed as c_void_p instead, its numbers fit a C int.
    pointer = ctypes.c_void_p
    cuda.cuModuleLoadData.argtypes = [pointer, ctypes.c_char_p]
    cuda.cuModuleGetFunction.argtypes = [pointer, pointer, ctypes.c_char_p]
    cuda.cuDevicePrimaryCtxRetain.argtypes = [pointer, ctypes.c_int]
    cuda.cuGetErrorName.argtypes = [ctypes.c_int, pointer]
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


class Params(threading.local):
    """A kernel's parameter struct, one a thread: the driver copies it while the GIL is released.

    Parameters
    ----------
    pointers : int
        Number of pointers, which the struct starts with.
    values : str
        The fields behind them, in the letters of the struct module.
    """

    def __init__(self, pointers: int, values: str) -> None:
        self._values = struct.Struct(f"<{values}")
        self.size = 8 * pointers + self._values.size
        buffer = bytearray(self.size)
        self._struct = (ctypes.c_char * self.size).from_buffer(buffer)
        self._pointers = (ctypes.c_void_p * 1)(ctypes.addressof(self._struct))
        array = ctypes.c_void_p(ctypes.addressof(self._pointers))
        # One attribute, since looking one up in a thread's local storage is slow.
        self._slot = (struct.Struct(f"<{pointers}Q").pack_into, buffer, slice(8 * pointers, None), array)

    def freeze(self, *values: int | float) -> bytes:
        """Return the fields behind the pointers as bytes."""
        return self._values.pack(*values)

    def pack(self, frozen: bytes, *pointers: int) -> ctypes.c_void_p:
        """Fill the struct; return its parameter array, good until this thread's next call."""
        pack_into, buffer, behind, array = self._slot
        pack_into(buffer, 0, *pointers)
        buffer[behind] = frozen
        return array


class Kernel:
    """A kernel loaded on one device."""

    def __init__(self, device: int, context: int, function: int) -> None:
        self.device = device
        self._context = context
        self._function = ctypes.c_void_p(function)
        self._launch = _driver().cuLaunchKernel

    def launch(self, grid: int, block: int, params: ctypes.c_void_p) -> None:
        """Launch on torch's current stream of this kernel's device.

        Parameters
        ----------
        grid, block : int
            Blocks, and threads a block.
        params : c_void_p
            What `Params.pack` returned.

        Raises
        ------
        LaunchError
            If the driver refuses the launch.
        """
        if torch._C._cuda_getDevice() != self.device:
            with torch.cuda.device(self.device):
                self._submit(grid, block, params)
        else:
            self._submit(grid, block, params)

    def _submit(self, grid: int, block: int, params: ctypes.c_void_p) -> None:
        stream = ctypes.c_void_p(torch._C._cuda_getCurrentRawStream(self.device))
        status = self._launch(self._function, grid, 1, 1, block, 1, 1, 0, stream, params, None)
        if status == _INVALID_CONTEXT:  # a thread that has made no CUDA call yet
            _check(_driver().cuCtxSetCurrent(self._context), "cuCtxSetCurrent")
            status = self._launch(self._function, grid, 1, 1, block, 1, 1, 0, stream, params, None)
        if status:
            _check(status, "cuLaunchKernel")


@functools.cache
def sm_count(device: int) -> int:
    """Return the number of multiprocessors of a CUDA device."""
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.cache
def _arch(device: int) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < MIN_CAPABILITY:
        raise ValueError(f"device is cuda:{device} with capability {major}.{minor}; allowed: 8.0 or newer")
    return f"sm_{major}{minor}"


@functools.cache
def _cubin(file: str, name: str, arch: str) -> Cubin:
    return compile_cubin(load_source(file), (name,), arch)


@functools.cache
def _kernel(file: str, name: str, device: int) -> Kernel:
    cubin = _cubin(file, name, _arch(device))
    cuda = _driver()
    context, previous = ctypes.c_void_p(), ctypes.c_void_p()
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device), "cuDevicePrimaryCtxRetain")
    _check(cuda.cuCtxPushCurrent_v2(context), "cuCtxPushCurrent")
    # Loading may allocate, which a capturing thread may do in relaxed mode only.
    mode = ctypes.c_int(_CAPTURE_RELAXED)
    _check(cuda.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)), "cuThreadExchangeStreamCaptureMode")
    try:
        _check(cuda.cuModuleLoadData(ctypes.byref(module), cubin.code), "cuModuleLoadData")
        symbol = cubin.symbols[name].encode()
        _check(cuda.cuModuleGetFunction(ctypes.byref(function), module, symbol), "cuModuleGetFunction")
    finally:
        cuda.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
        cuda.cuCtxPopCurrent_v2(ctypes.byref(previous))
    return Kernel(device, int(context.value or 0), int(function.value or 0))


def load_kernel(file: str, name: str, device: int) -> Kernel:
    """Return a kernel, compiled and loaded on first use.

    Parameters
    ----------
    file : str
        Source file of this folder.
    name : str
        Name expression of the kernel.
    device : int
        Index of a CUDA device.

    Raises
    ------
    CompileError
        If it can't be compiled.
    LaunchError
        If the driver refuses to load it.
    ValueError
        If the device is too old.
    """
    with _lock:
        return _kernel(file, name, device)
