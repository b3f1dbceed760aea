"""What the host does in every eager call, at the least cost: torch's private entry points, where it has them.

Each has a public stand-in that does the same, slower.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

Empty = Callable[[Sequence[int], Sequence[int], torch.dtype], torch.Tensor]
"""Returns an uninitialised tensor of a shape, strides and dtype."""

is_compiling = torch.compiler.is_compiling
# Neither exists in a build of torch without CUDA or without Python's dispatch modes.
current_device: Callable[[], int | None] = getattr(torch._C, "_cuda_getDevice", lambda: None)
"""Returns the index of the current CUDA device; None where torch has no CUDA."""
dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
"""Returns how many modes, such as those that trace, see every call of torch: they must see a call of an op too."""


def _private_empty() -> Any:
    return getattr(torch._C._dynamo.guards, "_empty_strided_cuda", None)


@functools.cache
def _known_empty(index: int) -> Empty | None:
    """Return the allocator that compiled graphs use, if it does on a device what its name and arguments say."""
    empty, shape, strides = _private_empty(), (2, 3), (3, 1)
    if empty is None:
        return None
    try:
        with torch.cuda.device(index):
            made = empty(shape, strides, torch.int32)
    except (TypeError, RuntimeError):  # other arguments than known
        return None
    right = torch.empty_strided(shape, strides, dtype=torch.int32, device=torch.device("cuda", index))
    same = all(getattr(made, what) == getattr(right, what) for what in ("shape", "dtype", "device", "requires_grad"))
    return empty if same and made.stride() == strides else None


def empty_on(device: torch.device) -> Empty:
    """Return a function that allocates on a device; a CUDA device has to be current when it is called."""
    known = _known_empty(device.index) if device.type == "cuda" else None
    return known or (lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype, device=device))


def are_plain(
    tensors: Any,
    shapes: Sequence[Sequence[int]],
    dtypes: Sequence[torch.dtype],
    device: torch.device,
) -> bool:
    """Say whether `tensors` is a tuple of plain contiguous tensors of these shapes and dtypes on a device.

    False means only that `validate.outputs` has to look: it knows what else is allowed, and names what is not.
    """
    if type(tensors) is not tuple or len(tensors) != len(shapes):
        return False
    for tensor, shape, dtype in zip(tensors, shapes, dtypes, strict=True):
        if (
            type(tensor) is not torch.Tensor
            or tensor.shape != shape
            or tensor.dtype is not dtype
            or tensor.layout is not torch.strided
            or tensor.device != device
            or not tensor.is_contiguous()
        ):
            return False
    return True
