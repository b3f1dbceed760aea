"""Floors measured beside the subjects: an empty kernel, and one that only moves the bytes. CUDA only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import c_void_p
from pathlib import Path

import torch

from moeproof.kernels.launcher import Params, load_kernel, sm_count

from .graph import GraphTimer

_params = Params(2, "2q")  # FloorParams of floor.cu
_FILE = str(Path(__file__).with_name("floor.cu"))
_WORD = 16
_GRIDS = ((2, 512), (4, 512), (8, 256), (0, 256), (0, 512))
"""Launch shapes to choose from: blocks a multiprocessor (0: as many as groups of 64 bytes need) and threads."""
_SHORT = 3
"""Samples of each launch shape before one is chosen."""


class _Launch:
    """A launch of a kernel of floor.cu; keeps its memory alive."""

    def __init__(
        self,
        launch: Callable[[int, int, c_void_p], None],
        grid: int,
        threads: int,
        memory: tuple[torch.Tensor, torch.Tensor],
        words: tuple[int, int],
    ) -> None:
        self._launch, self._grid, self._threads = launch, grid, threads
        self._memory = memory
        self._words = _params.freeze(*words)

    def __call__(self) -> None:
        """Launch on the current stream."""
        addresses = [tensor.data_ptr() for tensor in self._memory]
        self._launch(self._grid, self._threads, _params.pack(self._words, *addresses))


def empty_timer() -> GraphTimer:
    """Return a timer of an empty kernel: what a launch in a graph costs."""
    kernel = load_kernel(_FILE, "nothing", torch.cuda.current_device())
    memory = torch.empty(_WORD, dtype=torch.uint8, device="cuda")
    return GraphTimer([_Launch(kernel.launch, 1, 32, (memory, memory), (0, 0))])


def floor_timer(inputs: Sequence[torch.Tensor], write_bytes: int) -> GraphTimer:
    """Return a timer of the fastest of a few kernels that read the inputs and write as many bytes as the op.

    Parameters
    ----------
    inputs : sequence of Tensor
        Flat memory of each set of inputs.
    write_bytes : int
        Bytes of the outputs of one call.
    """
    device = torch.cuda.current_device()
    kernel = load_kernel(_FILE, "move_bytes", device)
    reads, writes = inputs[0].numel() // _WORD, max(1, write_bytes // _WORD)
    outputs = [torch.empty(writes * _WORD, dtype=torch.uint8, device=x.device) for x in inputs]
    groups = -(-max(reads, writes) // 4)
    shapes = set()
    for blocks, threads in _GRIDS:
        needed = max(1, -(-groups // threads))
        shapes.add((min(blocks * sm_count(device), needed) if blocks else needed, threads))
    timers = []
    for grid, threads in sorted(shapes):
        pairs = zip(inputs, outputs, strict=True)
        timers.append(GraphTimer([_Launch(kernel.launch, grid, threads, pair, (reads, writes)) for pair in pairs]))
    return min(timers, key=lambda timer: min(timer.sample() for _ in range(_SHORT)))
