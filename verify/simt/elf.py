"""Reads symbols of ELF files, and widens the variables of object files so that each has a gap behind it."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path

GAP = 128
"""Bytes after each variable that belong to none: a step past its end is no step into its neighbour."""
ALIGNMENT = 16
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SYMTAB, _NOBITS = 2, 8
_WRITE = 1
OBJECT, FUNCTION, TLS = 1, 2, 6


@dataclass(frozen=True)
class Symbol:
    """A variable or function of an ELF file.

    Attributes
    ----------
    name : str
        As the linker knows it.
    value, size : int
        Address, or offset in thread-local storage; and bytes.
    kind : int
        `OBJECT`, `FUNCTION` or `TLS`.
    defined, writable : bool
        It is of this file, and of a section that can be written.
    """

    name: str
    value: int
    size: int
    kind: int
    defined: bool
    writable: bool


class _Elf:
    def __init__(self, data: bytes | bytearray) -> None:
        header = _HEADER.unpack_from(data)
        if header[0][:6] != b"\x7fELF\x02\x01":
            raise ValueError("not a little-endian 64-bit ELF file")
        self.data = data
        self.offset, self.step, count, names = header[6], header[11], header[12], header[13]
        self.sections = [_SECTION.unpack_from(data, self.offset + i * self.step) for i in range(count)]
        self.names = self.sections[names][4]

    def text(self, table: int, at: int) -> str:
        end = self.data.index(0, table + at)
        return bytes(self.data[table + at : end]).decode()


def widen(path: Path) -> None:
    """Put a gap after each zero-initialised variable of an object file that has a section for each."""
    data = bytearray(path.read_bytes())
    elf = _Elf(data)
    for i, section in enumerate(elf.sections):
        name = elf.text(elf.names, section[0])
        if section[1] == _NOBITS and section[5] and name.startswith((".tbss.", ".bss.")):
            size = -(-section[5] // ALIGNMENT) * ALIGNMENT + GAP
            fields = (*section[:5], size, *section[6:8], max(section[8], ALIGNMENT), section[9])
            _SECTION.pack_into(data, elf.offset + i * elf.step, *fields)
    path.write_bytes(data)


def function_alignments(path: Path) -> list[tuple[str, int]]:
    """Return name and alignment of each function of an object file that has a section of its own."""
    elf = _Elf(path.read_bytes())
    named = [(elf.text(elf.names, section[0]), section[8]) for section in elf.sections]
    return [(name.removeprefix(".text."), alignment) for name, alignment in named if name.startswith(".text.")]


def symbols(path: Path) -> list[Symbol]:
    """Return the variables and functions that an object file or library defines or needs."""
    data = path.read_bytes()
    elf = _Elf(data)
    found = []
    for section in elf.sections:
        if section[1] != _SYMTAB:
            continue
        strings = elf.sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], section[9]):
            name, info, _, place, value, size = _SYMBOL.unpack_from(data, at)
            if info & 15 not in (OBJECT, FUNCTION, TLS) and place:
                continue
            ordinary = 0 < place < len(elf.sections)
            writable = ordinary and bool(elf.sections[place][2] & _WRITE)
            found.append(Symbol(elf.text(strings, name), value, size, info & 15, place != 0, writable))
    return found


def plain_name(symbol: str) -> str:
    """Return the variable's own name from a symbol: the last length-prefixed part of a mangled one."""
    if not symbol.startswith("_Z"):
        return symbol
    last = ""
    for match in re.finditer(r"(?=(\d+)([A-Za-z_]))", symbol):
        digits, start = match[1], match.start() + len(match[1])
        name = symbol[start : start + int(digits)]
        rest = symbol[start + int(digits) :]
        if len(name) == int(digits) and re.fullmatch(r"(_\d+|__\d+_)?E?", rest):
            last = name
            break
    return last or symbol
