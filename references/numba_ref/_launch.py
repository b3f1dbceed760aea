"""Launching a Numba kernel on torch tensors, on torch's current stream, or in the simulator."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch

BLOCK = 64


def available() -> str | None:
    """Return None if the Numba references can run in this process, else the reason why they can't."""
    try:
        from ._cuda import config, cuda
    except Exception as error:  # broken installations fail in many ways
        return f"numba-cuda can't be imported: {type(error).__name__}: {error}"
    if config.ENABLE_CUDASIM:
        return None
    if not torch.cuda.is_available():
        return "no CUDA device; NUMBA_ENABLE_CUDASIM=1, set before Numba is imported, runs Numba's simulator"
    if not cuda.is_available():
        return "Numba finds no CUDA driver or toolkit"
    return None


def launch(kernel: Any, threads: int, *arguments: Any) -> None:
    """Launch `kernel` with at least `threads` threads; tensors are passed as views of their own memory.

    Parameters
    ----------
    kernel : Numba CUDA kernel
        Compares its thread index to a length of its own.
    threads : int
        0 launches nothing.
    *arguments
        Tensors, all on one device, and scalars.

    Raises
    ------
    ValueError
        If the tensors are not where the kernel runs.
    """
    if threads == 0:
        return
    device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
    block = min(threads, BLOCK)
    grid = -(-threads // block)
    if _simulated():
        if device.type != "cpu":
            raise ValueError(f"device is {device}; allowed in Numba's simulator: cpu")
        _simulate(kernel, grid, block, arguments)
        return
    if device.type != "cuda":
        raise ValueError(f"device is {device}; allowed: cuda (or cpu in Numba's simulator)")
    from ._cuda import cuda

    with cuda.gpus[device.index]:
        views = [cuda.as_cuda_array(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        stream = cuda.external_stream(torch.cuda.current_stream(device).cuda_stream)
        kernel[grid, block, stream](*views)


@functools.cache
def _simulated() -> bool:
    from ._cuda import config

    return bool(config.ENABLE_CUDASIM)


def _simulate(kernel: Any, grid: int, block: int, arguments: tuple[Any, ...]) -> None:
    from ._cuda import cuda

    # Handed a plain NumPy array the simulator copies it in and out, and refuses most strides.
    fake = cuda.devicearray.FakeCUDAArray
    views = [fake(a.numpy()) if isinstance(a, torch.Tensor) else a for a in arguments]
    with warnings.catch_warnings():
        # NumPy warns where inf - inf gives the NaN that the contract asks for.
        warnings.simplefilter("ignore", RuntimeWarning)
        kernel[grid, block](*views)


def absent(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return what a kernel is handed in place of an optional 1-d tensor; it never reads it."""
    return torch.empty(1, dtype=dtype, device=device)
