"""What own host code plans for on the executor: devices so small that small inputs take every path of the kernels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Protocol

from moeproof.kernels import align_plan, tuning


@dataclass(frozen=True)
class Device:
    """A device, as far as plans know it.

    Attributes
    ----------
    sm_count : int
        Its multiprocessors.
    align : mapping of str to int
        Numbers of `align_plan` that differ: a kernel has to work with any, so that what a plan chooses for millions
        of ids can be had with a thousand.
    gate : GateTuning, optional
        Numbers that the gate's plans take in place of the table's.
    """

    sm_count: int
    align: Mapping[str, int] = field(default_factory=dict)
    gate: tuning.GateTuning | None = None


PLAIN = Device(2)
_FEW = tuning.GateTuning(single_rows_per_sm=3, few_rows_per_sm=((4, 4), (8, 1), (12, 4), (16, 1), (32, 4)))
GATE_TOKENS = tuple(PLAIN.sm_count * rows for rows in _FEW.rows_per_sm)
"""Numbers of rows at which the gate's plan changes on its device: 2, 6 and 8. A warp has two from the third row on, or
from the ninth, by experts a lane: kept cases have few rows."""
DEVICES: dict[str, tuple[Device, ...]] = {
    "fused_gate": (Device(PLAIN.sm_count, gate=_FEW),),
    "moe_align_block_size": (
        Device(PLAIN.sm_count, {"FEW_CHUNKS": 1}),
        # A thread of align_few counts several ids, and a block places several chunks.
        Device(24),
        # Rounds in which most warps rank nothing.
        Device(2, {"FEW_CHUNKS": 1, "WARPS": 3, "CHUNKS": 2, "MANY_TILES": 2}),
        # Rounds in which the one warp that ranks fills all its chunks.
        Device(2, {"FEW_CHUNKS": 1, "WARPS": 1, "MANY_TILES": 3}),
        # More tiles than scan_tiles keeps the counts of in registers.
        Device(256, {"FEW_CHUNKS": 1, "OWN": 2, "TILES": 200, "MIN_TILE": 6}),
    ),
}
"""By op; odd numbers of them, since most sizes of real models are even."""


class Planned(Protocol):
    """What `launcher.use_executor` takes, as far as devices are concerned."""

    sm_count: int


def device_of(op: str, arguments: Mapping[str, Any]) -> Device:
    """Return the device of a call: E and B decide, so that it stays while a failing case's ids are reduced."""
    devices = DEVICES[op]
    numbers = (int(arguments.get(name, 0)) for name in ("num_experts", "block_size"))
    return devices[sum(numbers) % len(devices)]


@contextlib.contextmanager
def standing_in(executor: Planned, op: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Have host code plan for the device of a call, in the whole process."""
    device = device_of(op, arguments)
    executor.sm_count = device.sm_count
    numbers: list[tuple[ModuleType, str, Any]] = [(align_plan, name, value) for name, value in device.align.items()]
    if device.gate is not None:
        numbers.append((tuning, "GATE", (("", device.gate),)))
    usual = [(module, name, getattr(module, name)) for module, name, _ in numbers]
    try:
        for module, name, value in numbers:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in usual:
            setattr(module, name, value)
