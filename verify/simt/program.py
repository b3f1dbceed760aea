"""A CUDA source file of one's own: its kernels, launched by name with tensors and numbers."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .executor import Session
from .fields import parameters
from .module import DYNAMIC_BYTES, Module, load

_FLOATS = {4: "<f", 8: "<d"}
MAX_BLOCK = 1024


class LaunchError(ValueError):
    """A launch that can't be made as it is described; says which argument is wrong, and what is allowed."""


class Program:
    """Kernels of a ``.cu`` file.

    Parameters
    ----------
    file : str or Path
        The source.
    *kernels : str
        Name expressions to build together, such as ``"gate<64>"``. Others are built when first launched.
    defines : sequence of str
        Macros, such as ``"SIZE=4"``.
    """

    def __init__(self, file: str | Path, *kernels: str, defines: Sequence[str] = ()) -> None:
        self.file = Path(file).resolve()
        if not self.file.is_file():
            raise LaunchError(f"file is {str(file)!r}; allowed: an existing CUDA source")
        self._together = kernels
        self._defines = tuple(defines)

    def launch(
        self,
        kernel: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        *arguments: Any,
        shared: int = 0,
        overlap: bool = False,
    ) -> None:
        """Launch a kernel in the open session.

        Parameters
        ----------
        kernel : str
            Name expression.
        grid, block : int or sequence of int
            Blocks and threads, up to three numbers each.
        *arguments : Tensor, int, float, bool, bytes or None
            The kernel's arguments: a tensor or None for a pointer, bytes for a struct.
        shared : int
            Bytes of dynamic shared memory.
        overlap : bool
            It may start while the launch before it runs (programmatic dependent launch).

        Raises
        ------
        SimtError
            If the launch breaks a rule.
        LaunchError
            If it can't be made.
        """
        session = Session.current
        if session is None:
            raise LaunchError(f"{kernel} is launched outside a session; allowed: within `with Session(...)`")
        if not 0 <= shared <= DYNAMIC_BYTES:
            raise LaunchError(f"shared is {shared}; allowed: 0 to {DYNAMIC_BYTES} bytes")
        module = self._module(kernel)
        words = module.signatures[kernel].split()
        if len(arguments) != len(words):
            raise LaunchError(f"{kernel} is given {len(arguments)} arguments; allowed: {len(words)}")
        values = [_packed(kernel, i, word, arguments[i]) for i, word in enumerate(words)]
        held = [ctypes.create_string_buffer(value, len(value)) for value in values]
        array = (ctypes.c_void_p * max(1, len(held)))(*[ctypes.addressof(h) for h in held])

        def given() -> dict[int, str]:
            names = [name for _, name in self._parameters(kernel)]
            pairs = zip(arguments, names, strict=False)
            return {tensor.data_ptr(): name for tensor, name in pairs if isinstance(tensor, torch.Tensor)}

        sizes = (_sizes("grid", grid), _sizes("block", block))
        session.launch(module, kernel, *sizes, ctypes.addressof(array), shared, given, overlap)

    def _module(self, kernel: str) -> Module:
        return self._built(self._together if kernel in self._together else (kernel,))

    @functools.cache  # noqa: B019 - a program lives as long as its kernels are used
    def _built(self, kernels: tuple[str, ...]) -> Module:
        return load(self.file, kernels, self._defines)

    @functools.cache  # noqa: B019
    def _parameters(self, kernel: str) -> tuple[tuple[str, str], ...]:
        return parameters(self.file, kernel)


def _sizes(name: str, value: int | Sequence[int]) -> tuple[int, ...]:
    sizes = (value,) if isinstance(value, int) else tuple(value)
    if not 1 <= len(sizes) <= 3 or any(not isinstance(n, int) or n < 1 for n in sizes):
        raise LaunchError(f"{name} is {value!r}; allowed: one to three ints >= 1")
    return sizes


def _packed(kernel: str, index: int, word: str, value: Any) -> bytes:
    """Return an argument's bytes; `word` is its kind and size in the kernel's signature."""
    kind, size = word[0], int(word[1:])
    if kind == "p" and (value is None or isinstance(value, torch.Tensor)):
        return struct.pack("<Q", 0 if value is None else value.data_ptr())
    if kind == "f" and isinstance(value, int | float):
        return struct.pack(_FLOATS[size], value)
    if kind in "iu" and isinstance(value, int):
        try:
            return int(value).to_bytes(size, "little", signed=kind == "i")
        except OverflowError:
            pass
    if kind == "s" and isinstance(value, bytes) and len(value) == size:
        return value
    wanted = {
        "p": "a tensor or None",
        "f": "a number",
        "i": f"an int of {8 * size} bits",
        "u": f"an int >= 0 of {8 * size} bits",
        "s": f"{size} bytes",
    }[kind]
    raise LaunchError(f"argument {index} of {kernel} is {value!r:.80}; allowed: {wanted}")
