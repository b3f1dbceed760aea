"""Compiles CUDA C++ to cubins with NVRTC, and keeps them on disk. Needs no GPU, toolkit or header."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAGIC = b"moeproof cubin 1\n"
"""First bytes of a cache entry; a SHA-256 of the rest follows."""
_DIGEST = hashlib.sha256().digest_size
_OPTIONS = ("std=c++17",)
_INCLUDE = re.compile(r'^#include "([^"]+)"\s*$', re.MULTILINE)


class CompileError(RuntimeError):
    """NVRTC is missing, or refuses the source; says why."""


@dataclass(frozen=True)
class Cubin:
    """Machine code of one architecture.

    Attributes
    ----------
    code : bytes
        The cubin.
    symbols : dict
        Name expression to the symbol in `code`.
    """

    code: bytes
    symbols: dict[str, str]


@functools.cache
def load_source(name: str) -> str:
    """Return the text of a source file of this folder, with each ``#include "…"`` expanded once."""
    seen: set[str] = set()

    def expand(file: str) -> str:
        text = (Path(__file__).parent / file).read_text(encoding="utf-8")
        return _INCLUDE.sub(lambda match: include(match[1]), text.replace("#pragma once\n", ""))

    def include(file: str) -> str:
        if file in seen:
            return ""
        seen.add(file)
        return expand(file)

    return expand(name)


def cache_dir() -> Path:
    """Return the folder of the cubin cache: MOEPROOF_CACHE_DIR, else moeproof in the user's cache folder."""
    if chosen := os.environ.get("MOEPROOF_CACHE_DIR"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "moeproof"
    return Path(os.path.expanduser("~/.cache")) / "moeproof"


@functools.cache
def nvrtc_version() -> tuple[int, int]:
    """Return NVRTC's version.

    Raises
    ------
    CompileError
        If cuda-bindings or NVRTC is not installed.
    """
    try:
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
    except Exception as error:  # ImportError, or pathfinder's own error where the library is missing
        raise CompileError(f"NVRTC can't be loaded; install moeproof[cuda]: {error}") from error
    if int(status):
        raise CompileError(f"NVRTC gives no version: {status.name}")
    return int(major), int(minor)


def compile_cubin(source: str, name_expressions: Sequence[str], arch: str = "sm_90") -> Cubin:
    """Compile CUDA C++ source, or take the result from the cache.

    A cache that can't be read or written is as good as none. A corrupt entry, or another key's, is rebuilt.

    Parameters
    ----------
    source : str
        CUDA C++ text without includes.
    name_expressions : sequence of str
        Kernels to instantiate, such as ``"kernel<4, true>"``.
    arch : str
        Architecture, such as ``"sm_90"``.

    Raises
    ------
    CompileError
        If NVRTC is missing or refuses the source.
    """
    names = tuple(name_expressions)
    key = _key(source, names, arch)
    entry = cache_dir() / f"{key}.cubin"
    cubin = _read(entry, key)
    if cubin is None or set(cubin.symbols) != set(names):
        cubin = _compile(source, names, arch)
        _write(entry, key, cubin)
    return cubin


def _key(source: str, names: tuple[str, ...], arch: str) -> str:
    parts = (source, *names, arch, *_OPTIONS, "{}.{}".format(*nvrtc_version()))
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{len(part)}:".encode() + part.encode())
    return digest.hexdigest()


def _compile(source: str, names: tuple[str, ...], arch: str) -> Cubin:
    from cuda.core import Program, ProgramOptions

    try:
        program = Program(source, "c++", ProgramOptions(arch=arch, std="c++17"))
        built = program.compile("cubin", name_expressions=names)
    except Exception as error:  # NVRTCError carries the log
        raise CompileError(f"NVRTC can't compile {', '.join(names)} for {arch}: {error}") from error
    symbols = {name: symbol.decode() for name, symbol in built.symbol_mapping.items()}
    return Cubin(bytes(built.code), symbols)


def _read(entry: Path, key: str) -> Cubin | None:
    try:
        data = entry.read_bytes()
    except OSError:
        return None
    digest, payload = data[len(MAGIC) : len(MAGIC) + _DIGEST], data[len(MAGIC) + _DIGEST :]
    if not data.startswith(MAGIC) or hashlib.sha256(payload).digest() != digest:
        return None
    head, _, code = payload.partition(b"\n")
    meta = json.loads(head)  # what the checksum covers was written by `_write`
    return Cubin(code, meta["symbols"]) if meta["key"] == key else None


def _write(entry: Path, key: str, cubin: Cubin) -> None:
    payload = json.dumps({"key": key, "symbols": cubin.symbols}).encode() + b"\n" + cubin.code
    temporary = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=entry.parent, suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(MAGIC + hashlib.sha256(payload).digest() + payload)
        os.replace(temporary, entry)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
