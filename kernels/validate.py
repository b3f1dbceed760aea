"""Argument checks that the ops share. Each error names the argument, its value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .launcher import runs_on_cpu

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int32, torch.int64)
MAX_EXPERTS = 4096
MAX_PLACES = 32
INT32_MAX = 2**31 - 1


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _listed(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(map(_short, dtypes))


def integer(name: str, value: Any, low: int, high: int | None, allowed: str = "") -> None:
    """Raise unless `value` is an int in [low, high]; None is no upper limit, `allowed` words the limits."""
    fits = isinstance(value, int) and not isinstance(value, bool)
    if fits and value >= low and (high is None or value <= high):
        return
    bounds = allowed or (f"an int from {low} to {high}" if high is not None else f"an int >= {low}")
    if not fits:
        raise TypeError(f"{name} is {value!r}; allowed: {bounds}")
    raise ValueError(f"{name} is {value}; allowed: {bounds}")


def boolean(name: str, value: Any) -> None:
    """Raise unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; allowed: True or False")


def choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise unless `value` is one of the allowed strings."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def scale(name: str, value: Any) -> None:
    """Raise unless `value` and its reciprocal are positive, finite and normal in float32."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}; allowed: a number > 0")
    if not math.isfinite(value) or not 2.0**-126 <= value <= 2.0**126:
        raise ValueError(f"{name} is {value!r}; allowed: a number from 2^-126 to 2^126")


def tensor(name: str, value: Any, dims: int | Sequence[int], dtypes: Sequence[torch.dtype]) -> None:
    """Raise unless `value` is a strided tensor of one of the dtypes and numbers of dimensions."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is {type(value).__name__}; allowed: a tensor of {_listed(dtypes)}")
    if value.layout is not torch.strided:
        raise TypeError(f"{name} has layout {value.layout}; allowed: a strided tensor")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {_short(value.dtype)}; allowed: {_listed(dtypes)}")
    wanted = (dims,) if isinstance(dims, int) else dims
    if value.dim() not in wanted:
        counts = " or ".join(map(str, wanted))
        raise ValueError(f"{name} has shape {tuple(value.shape)}; allowed: {counts} dimensions")


def shape(name: str, value: torch.Tensor, wanted: Sequence[int], why: str) -> None:
    """Raise unless a tensor has the wanted shape; `why` says where that comes from."""
    if tuple(value.shape) != tuple(wanted):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; allowed: {tuple(wanted)}, {why}")


def same_device(name: str, value: torch.Tensor, other: torch.Tensor, owner: str) -> None:
    """Raise unless two tensors are on the same device."""
    if value.device != other.device:
        raise ValueError(f"{name} is on {value.device}; allowed: {other.device}, the device of {owner}")


def row_limit(value: torch.Tensor | None, owner: torch.Tensor, name: str) -> None:
    """Check `num_token_non_padded`: an int32 scalar or [1], on the device of `owner`."""
    if value is None:
        return
    tensor("num_token_non_padded", value, (0, 1), (torch.int32,))
    if value.numel() != 1:
        raise ValueError(f"num_token_non_padded has shape {tuple(value.shape)}; allowed: () or (1,)")
    same_device("num_token_non_padded", value, owner, name)


def outputs(
    out: Any,
    names: Sequence[str],
    shapes: Sequence[Sequence[int]],
    dtypes: Sequence[torch.dtype],
    owner: torch.Tensor,
) -> None:
    """Check ``out=``: contiguous tensors of exactly these shapes and dtypes, on the device of `owner`."""
    if not isinstance(out, tuple | list) or len(out) != len(names):
        raise TypeError(f"out is {type(out).__name__}; allowed: a tuple of {len(names)} tensors: {', '.join(names)}")
    for i, (name, wanted, dtype) in enumerate(zip(names, shapes, dtypes, strict=True)):
        label = f"out[{i}] ({name})"
        tensor(label, out[i], len(wanted), (dtype,))
        shape(label, out[i], wanted, f"the shape of {name}")
        if not out[i].is_contiguous():
            raise ValueError(f"{label} has strides {out[i].stride()}; allowed: a contiguous tensor")
        if out[i].device != owner.device:
            raise ValueError(f"{label} is on {out[i].device}; allowed: {owner.device}, the device of the inputs")
        in_memory({label: out[i]})


def in_memory(tensors: Mapping[str, torch.Tensor | None]) -> None:
    """Raise unless elements are where shapes say: not in a wrapper, behind a freed storage's end, or negated."""
    for name, value in tensors.items():
        if value is None or 0 in value.shape:
            continue
        if value.is_neg():
            raise TypeError(f"{name} is a view that negates its elements; allowed: its resolve_neg()")
        try:
            storage = value.untyped_storage()
            size = storage.nbytes() if storage.data_ptr() else 0
        except RuntimeError as error:
            raise TypeError(f"{name} is a wrapper without memory; allowed: the tensor that it wraps") from error
        reach = sum((length - 1) * step for length, step in zip(value.shape, value.stride(), strict=True))
        needed = (int(value.storage_offset()) + reach + 1) * value.itemsize
        if size < needed:
            raise ValueError(f"{name} has {size} bytes of memory; allowed: at least {needed}")


def on_cuda(name: str, value: torch.Tensor) -> None:
    """Raise unless a tensor is on a CUDA device, or on the CPU where an executor stands in."""
    if value.device.type != "cuda" and not (runs_on_cpu() and value.device.type == "cpu"):
        raise ValueError(f"{name} is on {value.device}; allowed: a CUDA device")
