"""What a launch that broke a rule says: who did what to which element, on which lines."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

from moeproof.verify.violation import ReportedError, Violation

from .buffers import Buffers
from .elf import GAP
from .module import DYNAMIC_BYTES, Module, SharedArray, line_of, module_of
from .schedule import Schedule

FAULTS = (
    "none",
    "out_of_bounds",
    "uninitialised",
    "race",
    "divergent_barrier",
    "deadlock",
    "misaligned",
    "trap",
    "read_only",
    "timeout",
    "stack_overflow",
    "bad_mask",
    "foreign_stack",
    "bad_launch",
)
"""Names of the runtime's faults, in its order."""
CHECK_OF = {
    "out_of_bounds": "guard_zone",
    "foreign_stack": "guard_zone",
    "uninitialised": "unwritten",
    "race": "race",
    "divergent_barrier": "hang",
    "deadlock": "hang",
    "timeout": "hang",
    "bad_mask": "hang",
    "misaligned": "cuda_error",
    "trap": "cuda_error",
    "stack_overflow": "cuda_error",
    "bad_launch": "cuda_error",
    "read_only": "input_modified",
}
"""The check class of each fault."""
_ACCESSES = ("reads", "writes", "reads atomically", "updates atomically")


class _Index(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint32), ("y", ctypes.c_uint32), ("z", ctypes.c_uint32))


class _Side(ctypes.Structure):
    _fields_ = (
        ("block", _Index),
        ("thread", _Index),
        ("line", ctypes.c_uint32),
        ("access", ctypes.c_int32),
        ("code", ctypes.c_uint64),
        ("module", ctypes.c_int32),
        ("earlier", ctypes.c_int32),
        ("file", ctypes.c_char * 256),
    )


class RawReport(ctypes.Structure):
    """The runtime's own record of a fault."""

    _fields_ = (
        ("fault", ctypes.c_int32),
        ("sides", ctypes.c_int32),
        ("address", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("shared_low", ctypes.c_uint64),
        ("side", _Side * 2),
        ("text", ctypes.c_char * 512),
    )


@dataclass(frozen=True)
class Party:
    """One thread's part in a fault.

    Attributes
    ----------
    block, thread : tuple of int
        x, y and z.
    file, line : str, int
        Where it was in the kernel's source.
    does : str
        What it did, in words; empty where it waits.
    earlier : bool
        It was of an earlier launch.
    """

    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    file: str
    line: int
    does: str
    earlier: bool = False

    def __str__(self) -> str:
        place = f"{Path(self.file).name}:{self.line}" if self.file else "an unknown line"
        launch = " of an earlier launch" if self.earlier else ""
        return f"{place}, block {_short(self.block)} thread {_short(self.thread)}{launch}"


@dataclass(frozen=True)
class Fault:
    """A rule that a launch broke.

    Attributes
    ----------
    kind : str
        One of `FAULTS`.
    kernel : str
        Name expression of the kernel.
    parties : tuple of Party
        The thread that was stopped, and the other side if there is one.
    where : str
        The address as an element of a named buffer; empty where there is none.
    text : str
        What the runtime adds.
    schedule : Schedule
        The order of threads under which it showed.
    """

    kind: str
    kernel: str
    parties: tuple[Party, ...]
    where: str
    text: str
    schedule: Schedule

    @property
    def check(self) -> str:
        """The check class of the violation."""
        return CHECK_OF[self.kind]

    def __str__(self) -> str:
        lines = [f"{self.kind} in {self.kernel}{': ' if self.text else ''}{self.text}"]
        for i, party in enumerate(self.parties):
            action = f"{party.does} {self.where} at " if party.does and self.where else "at "
            lines.append(f"  {'and ' if i else ''}{action}{party}")
        if self.kind == "race":
            lines.append("  and neither of the two certainly happens before the other")
        lines.append(f"  schedule {self.schedule}")
        return "\n".join(lines)


class SimtError(ReportedError):
    """A launch broke a rule.

    Attributes
    ----------
    fault : Fault
        How.
    """

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        super().__init__(Violation(fault.check, str(fault)))


def _short(index: tuple[int, int, int]) -> str:
    return str(index[0]) if index[1:] == (0, 0) else f"({index[0]}, {index[1]}, {index[2]})"


def describe(
    raw: RawReport, module: Module, kernel: str, buffers: Buffers, fields: dict[int, str], schedule: Schedule
) -> Fault:
    """Return the fault that a raw report tells of; `fields` names the addresses that the kernel was given."""
    kind = FAULTS[raw.fault]
    parties = []
    for i in range(raw.sides):
        side = raw.side[i]
        file, line = side.file.decode(errors="replace"), int(side.line)
        if side.code:
            file, line = line_of(module_of(int(side.module)).path, int(side.code))
        does = _ACCESSES[side.access] if raw.address and side.code else ""
        blocks, threads = side.block, side.thread
        parties.append(
            Party(
                (blocks.x, blocks.y, blocks.z), (threads.x, threads.y, threads.z), file, line, does, bool(side.earlier)
            )
        )
    where = _where(raw, module, buffers, fields) if raw.address else ""
    return Fault(kind, kernel, tuple(parties), where, raw.text.decode(errors="replace"), schedule)


def _where(raw: RawReport, module: Module, buffers: Buffers, fields: dict[int, str]) -> str:
    address, size = int(raw.address), int(raw.size)
    shared = address - int(raw.shared_low)
    if module.shared and 0 <= shared < max(a.offset + (a.bytes or DYNAMIC_BYTES) for a in module.shared) + GAP:
        return _shared_element(shared, size, module.shared)
    for variable in module.globals:
        if variable.address - 64 <= address < variable.address + variable.size + 64:
            step, unit = (address - variable.address) // max(size, 1), f"{size} bytes each"
            return f"{variable.name}[{step}] (__device__, {unit})"
    buffer = buffers.near(address)
    if buffer is None:
        return f"address {address:#x}, far from every buffer,"
    given = [a for a in fields if buffer.low <= a <= min(address, buffer.low + buffer.bytes)]
    if given and buffer.name.startswith("scratch"):
        start = max(given)
        item = buffer.tensor.element_size()
        return f"{fields[start]}[{(address - start) // item}]" + (
            "" if address < buffer.low + buffer.bytes else " (past its end)"
        )
    return buffer.element(address)


def _shared_element(at: int, size: int, arrays: tuple[SharedArray, ...]) -> str:
    def distance(array: SharedArray) -> int:
        return max(array.offset - at, at - (array.offset + (array.bytes or DYNAMIC_BYTES) - 1), 0)

    array = min(arrays, key=distance)
    step, rest = divmod(at - array.offset, max(size, 1))
    place = f"{array.name}[{step}]" if not rest else f"{array.name} + {at - array.offset} bytes"
    outside = ", outside it" if distance(array) else ""
    return f"{place} (__shared__, {size} bytes each{outside})"
