"""Finds a host compiler, and builds shared libraries into the user's cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from moeproof.kernels.compiler import cache_dir
from moeproof.verify.building import building
from moeproof.verify.files import write_text
from moeproof.verify.subject import Unavailable

RUNTIME = Path(__file__).parent / "runtime"
"""Sources of the runtime, and the headers that stand for CUDA's."""
MACHINES = ("x86_64", "aarch64")
COMPILERS = ("g++", "clang++")
_COMMON = ("-std=c++17", "-fPIC", "-fno-exceptions", "-fno-strict-aliasing", "-ffp-contract=off", "-fvisibility=hidden")


class BuildError(RuntimeError):
    """The compiler refuses a source; holds its messages."""


@dataclass(frozen=True)
class Compiler:
    """A host compiler.

    Attributes
    ----------
    path : str
        Its program.
    version : str
        The first line of what it says of itself.
    clang : bool
        It takes clang's options.
    """

    path: str
    version: str
    clang: bool

    def instrumented(self) -> tuple[str, ...]:
        """Return the options under which every access calls a hook."""
        both = (
            "-O1",
            "-g1",  # lines, for reports; all else that debuggers want takes a fifth of the time
            "-fdata-sections",
            "-ffunction-sections",
            "-fwrapv",
            "-fsanitize=thread,bounds,alignment",
            "-Wno-attributes",
        )
        if self.clang:
            return (*both, "-mllvm", "-tsan-distinguish-volatile=1")
        return (
            *both,
            "--param=tsan-distinguish-volatile=1",
            "-fsanitize=bounds-strict",  # of arrays that end a struct or union, too, as clang's `bounds` is
            "-fno-gnu-unique",
            "-fno-extern-tls-init",
            "-fno-tree-loop-distribute-patterns",
        )


@functools.cache
def compiler() -> Compiler:
    """Return the host compiler: MOEPROOF_CXX, or the first of g++ and clang++.

    Raises
    ------
    Unavailable
        If there is none, or this processor has no context switch.
    """
    if platform.system() != "Linux" or platform.machine() not in MACHINES:
        machine = f"{platform.system()} on {platform.machine()}"
        raise Unavailable(f"the SIMT executor runs on Linux on {' or '.join(MACHINES)}; this is {machine}")
    chosen = os.environ.get("MOEPROOF_CXX")
    for name in (chosen,) if chosen else COMPILERS:
        path = shutil.which(name)
        if path is None:
            continue
        try:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable(f"the compiler {path} does not run: {error}") from error
        return Compiler(path, said.partition("\n")[0], "clang" in said)
    wanted = chosen or " or ".join(COMPILERS)
    raise Unavailable(f"the SIMT executor needs a C++ compiler: {wanted} is not on PATH (MOEPROOF_CXX names another)")


def digest(parts: Iterable[str | bytes]) -> str:
    """Return a key of the parts, in their order."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "little") + data)
    return state.hexdigest()[:32]


@functools.cache
def runtime_key() -> str:
    """Return the key of the runtime's sources and the compiler: part of the key of everything built."""
    files = sorted(p for p in RUNTIME.iterdir() if p.suffix in (".h", ".cpp"))
    contents = [part for file in files for part in (file.name, file.read_bytes())]
    # The folder too: debugging information names it, and reports pass over lines from there.
    options = (*_COMMON, *compiler().instrumented())
    return digest([compiler().path, compiler().version, str(RUNTIME), *options, *contents])


def cached(name: str, what: str, build: Callable[[Path], None]) -> Path:
    """Return a file of the cache; `build` makes it in a folder of its own, from which it is renamed into place.

    Parameters
    ----------
    name : str
        The file's name: another for everything that it is made from.
    what : str
        What a person who waits for it is told.
    build : callable
        Makes the file of a path.

    Raises
    ------
    Unavailable
        If the cache can't be written.
    """
    folder = cache_dir() / "simt"
    place = folder / name
    if place.exists():
        return place
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            building(what),
            _locked(folder / f"{name}.lock"),
            tempfile.TemporaryDirectory(dir=folder, prefix="build-") as workshop,
        ):
            if not place.exists():
                made = Path(workshop) / name
                build(made)
                os.replace(made, place)
    except OSError as error:
        raise Unavailable(f"the cache folder {folder} can't be written: {error}") from error
    return place


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file: of several processes that want the same, one builds it."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def run_compiler(options: Iterable[str], what: str) -> None:
    """Run the compiler.

    Raises
    ------
    BuildError
        If it fails.
    """
    command = [compiler().path, *_COMMON, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{what} does not compile:\n{done.stderr.strip()[:3000]}")


@functools.cache
def runtime_library() -> Path:
    """Return the runtime's library, built on first use."""
    name = f"runtime-{runtime_key()}.so"

    def build(made: Path) -> None:
        source = str(RUNTIME / "runtime.cpp")
        run_compiler(["-O2", "-g", "-shared", f"-Wl,-soname,{name}", "-o", str(made), source], "the SIMT runtime")

    return cached(name, "the executor's runtime", build)


@functools.cache
def prelude() -> Path:
    """Return the header that comes before every kernel source; g++ has it precompiled beside it."""
    text = f'#include "{RUNTIME / "simt.h"}"\n'
    what = "the executor's headers"
    header = cached(f"simt-{runtime_key()}.h", what, lambda made: write_text(made, text))
    if not compiler().clang:

        def build(made: Path) -> None:
            options = [*compiler().instrumented(), "-I", str(RUNTIME), "-x", "c++-header", str(header)]
            run_compiler([*options, "-o", str(made)], "the SIMT headers")

        cached(f"{header.name}.gch", what, build)
    return header
