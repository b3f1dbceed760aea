"""Numbers that were tuned on a device: one table, keyed by the device, with a safe default for every other."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GateTuning:
    """When the gate trades throughput for latency. Only speed depends on it, never a result.

    Attributes
    ----------
    single_rows_per_sm : int
        Up to this many rows a multiprocessor a block holds one row.
    few_rows_per_sm : tuple of (int, int)
        Experts a lane of a warp that owns a row, and up to how many rows a multiprocessor one does. Then two a warp.
    few_split_rows_per_sm : int
        For rows that several warps can share: up to this many, as many warps as keep a lane's share small.
    row_blocks_per_sm : int
        Blocks a multiprocessor where a block owns a row.
    """

    single_rows_per_sm: int = 2
    few_rows_per_sm: tuple[tuple[int, int], ...] = ((4, 20), (8, 32), (12, 24), (16, 20), (32, 20))
    few_split_rows_per_sm: int = 1
    row_blocks_per_sm: int = 8

    @property
    def rows_per_sm(self) -> tuple[int, ...]:
        """Numbers of rows a multiprocessor past which the plan changes, ascending."""
        few = dict(self.few_rows_per_sm).values()
        return tuple(sorted({self.few_split_rows_per_sm, self.single_rows_per_sm, *few}))


GATE: tuple[tuple[str, GateTuning], ...] = (("H100", GateTuning()),)
"""By a part of the device's name; docs/benchmarks holds the sweeps behind each entry. Another table takes effect."""
DEFAULT_GATE = GateTuning()
"""For a device without an entry."""


def gate_tuning(device: str) -> tuple[GateTuning, str]:
    """Return a device's numbers, and where they come from.

    Parameters
    ----------
    device : str
        Name of a GPU; the case of letters does not matter.
    """
    for part, numbers in GATE:
        if part in device.upper():
            return numbers, f"kernels/tuning.py, tuned on {part}"
    return DEFAULT_GATE, "kernels/tuning.py, the default: this device has no entry"
