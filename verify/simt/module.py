"""Kernels of one source file, built for the executor and loaded into this process."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import re
import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import elf
from .toolchain import RUNTIME, cached, compiler, digest, prelude, run_compiler, runtime_key, runtime_library

DYNAMIC_BYTES = 227 * 1024
"""Most shared memory that a launch can ask for, as on the newest GPUs."""
_EXPORTED = 'extern "C" SIMT_OUTSIDE __attribute__((visibility("default")))'
_CLUSTER_ALIGNMENT = 256
"""Alignment of a kernel for each block of its cluster: see `__cluster_dims__` of runtime/simt_types.h."""
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)


class _Variable(ctypes.Structure):
    _fields_ = (
        ("offset", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("dynamic", ctypes.c_int32),
        ("unused", ctypes.c_int32),
    )


@functools.cache
def runtime() -> ctypes.CDLL:
    """Return the runtime's library, built and loaded on first use."""
    library = ctypes.CDLL(str(runtime_library()))
    u64, pointer = ctypes.c_uint64, ctypes.c_void_p
    library.simt_add_module.argtypes = [u64, u64, u64, u64, u64, pointer, ctypes.c_int, ctypes.c_int]
    library.simt_add_range.argtypes = [u64, u64, pointer, ctypes.c_uint32, ctypes.c_int, ctypes.c_int, ctypes.c_int]
    library.simt_launch.argtypes = [pointer]
    library.simt_report.restype = pointer
    return library


@dataclass(frozen=True)
class SharedArray:
    """A shared array of a module: its name, its offset in shared memory, its bytes (0: the launch's)."""

    name: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class GlobalVariable:
    """A ``__device__`` variable: its name, address, size and what it holds at first."""

    name: str
    address: int
    size: int
    initial: bytes


@dataclass(frozen=True)
class Module:
    """A loaded module.

    Attributes
    ----------
    path : Path
        Its library.
    number : int
        The runtime's number of it.
    shared : tuple of SharedArray
    globals : tuple of GlobalVariable
    entries : mapping of str to int
        Name expression to the address of its entry.
    signatures : mapping of str to str
        Name expression to a word for each parameter: p8 (pointer), i4, u8, f4 ..., s40 (struct).
    clusters : mapping of str to int
        Name expression to the blocks of its clusters, where it has any.
    """

    path: Path
    number: int
    shared: tuple[SharedArray, ...]
    globals: tuple[GlobalVariable, ...]
    entries: Mapping[str, int]
    signatures: Mapping[str, str]
    clusters: Mapping[str, int]


def source_parts(file: Path) -> list[str | bytes]:
    """Return names and contents of a source and of all that it includes by ``#include "…"``, once each."""
    parts: list[str | bytes] = []
    seen: set[Path] = set()

    def visit(path: Path, name: str) -> None:
        if path in seen or not path.is_file():
            return
        seen.add(path)
        state = path.stat()
        text, included = _read(path, state.st_mtime_ns, state.st_size)
        parts.extend((name, text))
        for part, at in included:
            visit(at, part)

    visit(file.resolve(), file.name)
    return parts


@functools.lru_cache(maxsize=256)
def _read(path: Path, changed_ns: int, size: int) -> tuple[str, tuple[tuple[str, Path], ...]]:
    """Return a source's text, and what it includes by ``#include "…"``; it is read again once it has changed."""
    text = path.read_text(encoding="utf-8")
    return text, tuple((part, (path.parent / part).resolve()) for part in _INCLUDE.findall(text))


def load(file: Path, names: tuple[str, ...], defines: tuple[str, ...] = ()) -> Module:
    """Build kernels of a source file, or take them from the cache, and load them.

    Parameters
    ----------
    file : Path
        A ``.cu`` file.
    names : tuple of str
        Name expressions, such as ``"kernel<4, true>"``.
    defines : tuple of str
        Macros, such as ``"SIZE=4"``.

    Raises
    ------
    BuildError
        If the source does not compile.
    Unavailable
        If this machine has no compiler, or no cache folder.
    """
    key = digest([runtime_key(), *names, "--", *defines, "--", *source_parts(file)])
    what = f"{', '.join(names)[:200]} of {file.name}"
    path = cached(f"{file.stem}-{key}.so", what, lambda made: _build(file, names, defines, made))
    return _loaded(path, names)


def _build(file: Path, names: tuple[str, ...], defines: tuple[str, ...], made: Path) -> None:
    entries = [
        f"{_EXPORTED} void simt_entry_{i}(void** simt_arguments) {{ simt_call(&{name}, simt_arguments); }}\n"
        f"{_EXPORTED} const char* simt_signature_{i}() {{ return simt_signature(&{name}); }}\n"
        f"{_EXPORTED} void* simt_kernel_{i}() {{ return (void*)&{name}; }}"
        for i, name in enumerate(names)
    ]
    anchor = (
        "static thread_local char simt_anchor_storage[16];\n"
        f"{_EXPORTED} void* simt_anchor() {{ return simt_anchor_storage; }}"
    )
    unit = made.with_suffix(".cpp")
    unit.write_text("\n".join([f'#include "{file.resolve()}"', *entries, anchor]) + "\n", encoding="utf-8")
    includes = ["-include", str(prelude()), "-I", str(RUNTIME), "-x", "c++"]
    macros = [f"-D{define}" for define in defines]
    made_object = made.with_suffix(".o")
    options = [*compiler().instrumented(), *macros, *includes, "-c", str(unit), "-o", str(made_object)]
    run_compiler(options, f"{file.name} ({', '.join(names)[:200]})")
    elf.widen(made_object)
    objects = [str(made_object)]
    dynamic = [s.name for s in elf.symbols(made_object) if s.kind == elf.TLS and not s.defined]
    if dynamic:
        # Linked last, so that it ends shared memory, of which a launch uses as much as it asks for.
        storage = made.with_name("dynamic.cpp")
        lines = [
            f'extern __thread char array_{i}[] __asm__("{name}");\n'
            f"__attribute__((aligned(128))) __thread char array_{i}[{DYNAMIC_BYTES + elf.GAP}];"
            for i, name in enumerate(dynamic)
        ]
        storage.write_text("\n".join(lines) + "\n", encoding="utf-8")
        objects.append(str(storage.with_suffix(".o")))
        run_compiler(["-O1", "-c", str(storage), "-o", objects[-1]], "dynamic shared memory")
    if clusters := {name: n for name, n in elf.function_alignments(made_object) if n >= _CLUSTER_ALIGNMENT}:
        listed = made.with_name("clusters.cpp")
        text = " ".join(f"{name} {alignment // _CLUSTER_ALIGNMENT}" for name, alignment in clusters.items())
        listed.write_text(f'{_EXPORTED} const char* simt_clusters() {{ return "{text}"; }}\n', encoding="utf-8")
        objects.append(str(listed.with_suffix(".o")))
        run_compiler(["-DSIMT_OUTSIDE=", "-c", str(listed), "-o", objects[-1]], "the list of clusters")
    library = str(runtime_library())
    run_compiler(["-shared", *objects, library, "-Wl,-z,defs", "-o", str(made), "-lm"], file.name)


@functools.cache
def _loaded(path: Path, names: tuple[str, ...]) -> Module:
    library = ctypes.CDLL(str(path))
    symbols = elf.symbols(path)
    at = next(s.value for s in symbols if s.kind == elf.TLS and s.name.endswith("simt_anchor_storage"))
    anchor = ctypes.cast(library.simt_anchor, ctypes.c_void_p).value or 0
    entry = ctypes.cast(library.simt_entry_0, ctypes.c_void_p).value or 0
    base, end = _mapped(path, entry)
    shared = tuple(
        SharedArray(elf.plain_name(s.name), s.value, 0 if s.size == DYNAMIC_BYTES + elf.GAP else s.size)
        for s in symbols
        if s.kind == elf.TLS and s.size and not s.name.endswith("simt_anchor_storage")
    )
    described = (_Variable * max(1, len(shared)))()
    for variable, array in zip(described, shared, strict=False):
        variable.offset, variable.bytes = array.offset, array.bytes or DYNAMIC_BYTES
        variable.dynamic = array.bytes == 0
    total = max((a.offset + (a.bytes or DYNAMIC_BYTES) + elf.GAP for a in shared), default=0)
    awaits = any(s.name == "simt_grid_wait" for s in symbols)
    number = runtime().simt_add_module(base, end, anchor, at, total, described, len(shared), int(awaits))
    entries, signatures = {}, {}
    for i, name in enumerate(names):
        entries[name] = ctypes.cast(library[f"simt_entry_{i}"], ctypes.c_void_p).value or 0
        tell = library[f"simt_signature_{i}"]
        tell.restype = ctypes.c_char_p
        signatures[name] = tell().decode()
    held = tuple(
        GlobalVariable(elf.plain_name(s.name), base + s.value, s.size, ctypes.string_at(base + s.value, s.size))
        for s in symbols
        if s.kind == elf.OBJECT and s.defined and s.writable and s.size and _is_source_variable(s.name)
    )
    clusters = _clusters(library, base, symbols, names)
    made = Module(path, number, shared, held, entries, signatures, clusters)
    _modules[number] = made
    return made


_modules: dict[int, Module] = {}


def module_of(number: int) -> Module:
    """Return a module by the runtime's number of it."""
    return _modules[number]


def _clusters(library: ctypes.CDLL, base: int, symbols: list[elf.Symbol], names: tuple[str, ...]) -> dict[str, int]:
    """Return the blocks a cluster of those kernels that have clusters."""
    try:
        tell = library.simt_clusters
    except AttributeError:
        return {}
    tell.restype = ctypes.c_char_p
    words = tell().decode().split()
    sizes = dict(zip(words[::2], map(int, words[1::2]), strict=True))
    addresses = {base + s.value: sizes[s.name] for s in symbols if s.kind == elf.FUNCTION and s.name in sizes}
    found = {}
    for i, name in enumerate(names):
        kernel = library[f"simt_kernel_{i}"]
        kernel.restype = ctypes.c_void_p
        if (size := addresses.get(kernel())) is not None:
            found[name] = size
    return found


def _is_source_variable(symbol: str) -> bool:
    """Say whether a symbol is a variable of the source, not of the compiler or its start files."""
    return not re.match(r"_ZT|_ZGV|DW\.ref|completed|__|_DYNAMIC|_GLOBAL|\.L|_ZZ.*simt_signature", symbol)


def _mapped(path: Path, inside: int) -> tuple[int, int]:
    """Return where a library is mapped: its lowest address and the one past its highest."""
    bounds, file = [], str(path.resolve())
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines():
        span, *_, name = line.split(maxsplit=5) if line.count(" ") >= 5 else (line, "")
        if name == file:
            bounds += [int(x, 16) for x in span.split("-")]
    low, high = min(bounds), max(bounds)
    # Zero-initialised variables past the file's last page are mapped without its name.
    segments = _load_end(path)
    if not low <= inside < high:
        raise RuntimeError(f"{path.name} is not where its entry is")
    return low, max(high, low + segments)


def _load_end(path: Path) -> int:
    data = path.read_bytes()
    offset = struct.unpack_from("<Q", data, 32)[0]
    size, count = struct.unpack_from("<HH", data, 54)
    ends = []
    for i in range(count):
        kind, _, _, address, _, _, memory, _ = struct.unpack_from("<IIQQQQQQ", data, offset + i * size)
        if kind == 1:
            ends.append(address + memory)
    return max(ends)


@functools.cache
def _frames(path: Path, code: int) -> tuple[tuple[str, int], ...]:
    """Return (file, line) of a place in a module's code, innermost first."""
    done = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["addr2line", "-i", "-e", str(path), hex(max(0, code - 1))]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    found = []
    for line in (done or "").splitlines():
        file, _, number = line.partition(" ")[0].rpartition(":")
        if number.isdigit():
            found.append((file, int(number)))
    return tuple(found)


def line_of(path: Path, code: int) -> tuple[str, int]:
    """Return (file, line) of the kernel's own source that a place in its code comes from; ("", 0) if unknown."""
    return next(((f, n) for f, n in _frames(path, code) if not f.startswith(f"{RUNTIME}{os.sep}")), ("", 0))
