"""Launches kernels on the runtime: modules by source, sessions over buffers, one fault at most."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from .buffers import Buffers
from .fields import pointer_fields
from .module import Module, load, runtime
from .report import RawReport, SimtError, describe
from .schedule import POLICIES, Schedule

LAUNCH_SECONDS = 5.0
"""How long a launch may take of this thread's processor time."""
_LAUNCH = struct.Struct("<QQ3I3IQQdiiii")
"""Launch of runtime/machine.h."""


class Session:
    """Launches on one set of buffers: what one launch leaves unwritten, the next must not read.

    Entered, it is the session in which kernels of this process are launched.

    Parameters
    ----------
    inputs : mapping of str to Tensor
        Tensors that kernels may read.
    outputs : mapping of str to Tensor
        Tensors that kernels may write, and read once written.
    updated : mapping of str to Tensor
        Tensors that kernels may both read and write.
    schedule : Schedule
        The order of threads.
    """

    current: Session | None = None

    def __init__(
        self,
        inputs: Mapping[str, torch.Tensor] | None = None,
        outputs: Mapping[str, torch.Tensor] | None = None,
        *,
        updated: Mapping[str, torch.Tensor] | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.schedule = schedule or Schedule()
        self._tensors = (dict(inputs or {}), dict(outputs or {}), dict(updated or {}))
        self._modules: set[Path] = set()
        self._outer: Session | None = None
        self.buffers: Buffers

    def __enter__(self) -> Session:
        if Session.current is not None:
            raise RuntimeError("a session is open already; allowed: one at a time")
        self.buffers = Buffers()
        inputs, outputs, updated = self._tensors
        for name, tensor in inputs.items():
            self.buffers.add(name, tensor, initialised=True, read_only=True)
        for name, tensor in outputs.items():
            self.buffers.add(name, tensor, initialised=False, read_only=False)
        for name, tensor in updated.items():
            self.buffers.add(name, tensor, initialised=True, read_only=False)
        self.buffers.__enter__()
        Session.current = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        Session.current = None
        self.buffers.__exit__(kind, error, trace)

    def launch(
        self,
        module: Module,
        name: str,
        grid: Sequence[int],
        block: Sequence[int],
        arguments: int,
        shared_bytes: int = 0,
        fields: Callable[[], dict[int, str]] = dict,
        overlap: bool = False,
    ) -> None:
        """Launch a kernel.

        Parameters
        ----------
        module, name : Module, str
            The kernel.
        grid, block : sequence of int
            Blocks and threads, up to three numbers each.
        arguments : int
            Address of the array of pointers to its arguments.
        shared_bytes : int
            Dynamic shared memory.
        fields : callable
            Returns names of addresses that are among the arguments; called for a report.
        overlap : bool
            It may start while the launch before it runs: nothing of that is there until a thread has waited for it
            (``cudaGridDependencySynchronize``).

        Raises
        ------
        SimtError
            If it breaks a rule.
        """
        if module.path not in self._modules:
            self._modules.add(module.path)
            for variable in module.globals:
                ctypes.memmove(variable.address, variable.initial, variable.size)
                self.buffers.add_memory(variable.address, variable.size)
        what = _LAUNCH.pack(
            module.entries[name],
            arguments,
            *_three(grid),
            *_three(block),
            self.schedule.seed,
            shared_bytes,
            LAUNCH_SECONDS,
            POLICIES.index(self.schedule.policy),
            module.number,
            module.clusters.get(name, 1),
            int(overlap),
        )
        if not runtime().simt_launch(what):
            raw = RawReport.from_address(runtime().simt_report())
            raise SimtError(describe(raw, module, name, self.buffers, fields(), self.schedule))


def _three(sizes: Sequence[int]) -> tuple[int, int, int]:
    padded = (*sizes, 1, 1, 1)
    return padded[0], padded[1], padded[2]


@dataclass
class _Loaded:
    """A kernel with one struct for its parameters, as the own host code launches it."""

    module: Module
    name: str
    file: Path

    def launch(self, grid: int, block: int, params: ctypes.c_void_p, shared: int = 0, overlap: bool = False) -> None:
        session = Session.current
        if session is None:
            raise RuntimeError(f"{self.name} is launched outside a session")
        array = params.value or 0
        session.launch(
            self.module, self.name, (grid,), (block,), array, shared, partial(self._pointers, array), overlap
        )

    def _pointers(self, array: int) -> dict[int, str]:
        """Return the names of the addresses in the struct that the first argument is."""
        fields = pointer_fields(self.file, self.name)
        struct_at = ctypes.c_uint64.from_address(array).value
        words = (ctypes.c_uint64 * len(fields)).from_address(struct_at)
        return {int(word): field for word, field in zip(words, fields, strict=True) if word}


@dataclass
class Executor:
    """Stands in for a CUDA device: `moeproof.kernels.launcher.use_executor` takes it.

    Attributes
    ----------
    sources : Path
        Folder of the ``.cu`` and ``.cuh`` files.
    sm_count : int
        Multiprocessors that host code plans for. Few, so that small inputs reach what plans do with large ones.
    """

    sources: Path
    sm_count: int = 2
    _kernels: dict[tuple[str, str], _Loaded] = field(default_factory=dict, repr=False)

    def load(self, file: str, name: str) -> _Loaded:
        """Return a kernel, built and loaded on first use."""
        kernel = self._kernels.get((file, name))
        if kernel is None:
            source = self.sources / file
            kernel = self._kernels[file, name] = _Loaded(load(source, (name,)), name, source)
        return kernel


def tensors_of(values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors among arguments, by name."""
    return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
