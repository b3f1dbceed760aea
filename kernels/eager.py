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

Guard = Callable[..., bool]
"""Says whether tensors are as those were that it was made of."""

is_compiling = torch.compiler.is_dynamo_compiling
"""Says whether torch.compile reads the code; what traces otherwise is a mode."""
# Neither exists in a build of torch without CUDA or without Python's dispatch modes.
current_device: Callable[[], int | None] = getattr(torch._C, "_cuda_getDevice", lambda: None)
"""Returns the index of the current CUDA device; None where torch has no CUDA."""
dispatch_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 0)
"""Returns how many modes, such as those that trace, see every call of torch: they must see a call of an op too."""
storage_of: Callable[[torch.Tensor], torch.UntypedStorage] = torch.Tensor.untyped_storage
"""Returns a tensor's storage, which is false if it is empty: freed, where the tensor is not."""


def is_kept(tensor: torch.Tensor) -> bool:
    """Say whether calls with a tensor are kept: on the CPU a kernel is one executor's own, or interpreted."""
    return tensor.is_cuda


@functools.cache
def _known_empty(index: int) -> Empty | None:
    """Return the allocator that compiled graphs use, if it does on a device what its name and arguments say."""
    shape, strides = (2, 3), (4, 1)
    try:
        empty: Any = vars(torch._C._dynamo.guards)["_empty_strided_cuda"]
        with torch.cuda.device(index):
            made = empty(shape, strides, torch.int32)
    except (AttributeError, KeyError, TypeError, RuntimeError):  # other names or arguments than known
        return None
    found = (tuple(made.shape), made.stride(), made.dtype, made.device, made.requires_grad)
    return empty if found == (shape, strides, torch.int32, torch.device("cuda", index), False) else None


def empty_on(device: torch.device) -> Empty:
    """Return a function that allocates on a device; a CUDA device has to be current when it is called."""
    known = _known_empty(device.index) if device.type == "cuda" else None
    return known or (lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype, device=device))


def never(*tensors: Any) -> bool:
    """Be a guard that no tensors pass."""
    return False


def always(*tensors: Any) -> bool:
    """Be a guard that all tensors pass."""
    return True


def guard(*tensors: torch.Tensor) -> Guard:
    """Return a function that says whether tensors are as these: type, dtype, device, shape, strides, requires_grad.

    It says no, too, where torch treats them otherwise than it did when the function was made: where a mode sees every
    call, and in or out of inference mode or autocast. A no means only that one has to look, and it is the only
    answer if torch has no such function. Neither contents nor addresses are looked at.
    """
    return _known_guard()(*tensors)


@functools.cache
def _known_guard() -> Callable[..., Guard]:
    """Return what makes the guards of compiled functions, if they tell apart what they have to."""

    def make(*tensors: torch.Tensor) -> Guard:
        return torch._C._dynamo.guards.TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check

    def tensor(shape: tuple[int, int] = (2, 3), strides: tuple[int, int] = (4, 1), **how: Any) -> torch.Tensor:
        return torch.empty_strided(shape, strides, **{"device": "cpu", **how})

    try:
        like = tensor()
        others = (
            tensor(shape=(3, 3)),
            tensor(strides=(5, 1)),
            tensor(dtype=torch.int32),
            tensor(device="meta"),
            tensor(requires_grad=True),
            torch.nn.Parameter(like, requires_grad=False),
            torch._neg_view(like),
            None,
        )
        same = make(like, like)
        right = same(like, tensor()) is True
        right = right and not any(same(like, other) or same(other, like) for other in others)
    except (AttributeError, TypeError, RuntimeError):  # other names or arguments than known
        right = False
    return make if right else lambda *tensors: never
