"""Refusals of bad arguments, and the way of tensors into NumPy and back, for the gold references."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
IDS = (torch.int32, torch.int64)


def refuse(name: str, value: object, allowed: str) -> ValueError:
    """Return the error for an argument that the contract does not allow."""
    return ValueError(f"{name} is {value!r}; allowed: {allowed}")


def check_tensor(name: str, value: Any, dtypes: tuple[torch.dtype, ...], *shapes: tuple[int | None, ...]) -> None:
    """Raise ValueError unless `value` is a tensor of one of the dtypes and shapes; None is any length."""
    kinds = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
    if not isinstance(value, torch.Tensor):
        raise refuse(name, value, f"a tensor of {kinds}")
    if value.dtype not in dtypes:
        raise refuse(f"{name}.dtype", value.dtype, kinds)
    actual = tuple(value.shape)
    if not any(
        len(actual) == len(shape) and all(s in (None, n) for n, s in zip(actual, shape, strict=True))
        for shape in shapes
    ):
        allowed = " or ".join("[" + ", ".join("any" if s is None else str(s) for s in sh) + "]" for sh in shapes)
        raise refuse(f"{name}.shape", list(actual), allowed)


def check_int(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise ValueError unless `value` is an int in [low, high]."""
    if type(value) is not int or value < low or (high is not None and value > high):
        raise refuse(name, value, f"an int >= {low}" + ("" if high is None else f" and <= {high}"))


def check_bool(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a bool."""
    if type(value) is not bool:
        raise refuse(name, value, "True or False")


def check_positive(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a finite number > 0."""
    if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:
        raise refuse(name, value, "a finite number > 0")


def padding_start(num_token_non_padded: torch.Tensor | None, tokens: int) -> int:
    """Return the first padding row, `tokens` where there is none."""
    if num_token_non_padded is None:
        return tokens
    check_tensor("num_token_non_padded", num_token_non_padded, (torch.int32,), (), (1,))
    return min(max(int(num_token_non_padded), 0), tokens)


def integers(tensor: torch.Tensor) -> np.ndarray:
    """Return an integer tensor's values as int64."""
    return tensor.detach().cpu().numpy().astype(np.int64)


def doubles(tensor: torch.Tensor) -> np.ndarray:
    """Return a float tensor's exact values as float64, in C order.

    The order in which NumPy sums a row follows the strides, and a row's result is to depend on its values alone.
    """
    return tensor.detach().cpu().to(torch.float64).contiguous().numpy()
