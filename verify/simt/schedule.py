"""Schedules: in which order the threads of a launch run."""

from __future__ import annotations

import ctypes
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st

POLICIES = ("round_robin", "random", "longest_first", "delay_warp", "delay_block")
"""Orders, simplest first. `longest_first` runs one warp as far as it gets before another starts; the delaying ones
hold back a warp of each block, or a block, for as long as anybody else can run."""

_HASHED, _POISON = 4096, 16
"""Bytes of an input, and of an output, that decide the schedule of a call."""


@dataclass(frozen=True)
class Schedule:
    """An order of threads. The same one gives the same run, to the last step.

    Attributes
    ----------
    policy : str
        One of `POLICIES`.
    seed : int
        Decides what the policy leaves open; below 2^64.
    """

    policy: str = "round_robin"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy is {self.policy!r}; allowed: {', '.join(POLICIES)}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed is {self.seed}; allowed: 0 to 2^64 - 1")

    def __str__(self) -> str:
        return f"{self.policy}, seed {self.seed}"


def schedules() -> st.SearchStrategy[Schedule]:
    """Return a Hypothesis strategy of schedules; it shrinks to the plainest one that still fails."""
    return st.builds(Schedule, st.sampled_from(POLICIES), st.integers(0, 2**32 - 1))


def derived(scalars: object, inputs: Iterable[torch.Tensor], outputs: Iterable[torch.Tensor]) -> Schedule:
    """Return the schedule of a call: a function of what it is called with, so that a case always replays the same way.

    What the outputs hold at first counts too: the runs of a case with different poisons have different schedules.
    """
    state = zlib.crc32(repr(scalars).encode())
    for tensor, most in (*((t, _HASHED) for t in inputs), *((t, _POISON) for t in outputs)):
        shape = repr((*tensor.shape, *tensor.stride()))
        held = ctypes.string_at(tensor.data_ptr(), min(extent(tensor), most))
        state = zlib.crc32(held, zlib.crc32(shape.encode(), state))
    return Schedule(POLICIES[state % len(POLICIES)], state)


def extent(tensor: torch.Tensor) -> int:
    """Return the bytes from a tensor's first element to the end of its last."""
    if tensor.is_contiguous():
        return tensor.nbytes
    if not tensor.numel():
        return 0
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.element_size()
