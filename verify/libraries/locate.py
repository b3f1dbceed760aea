"""Finds released libraries: full installs, or bare files in the folder that ``MOEPROOF_LIBRARIES`` names."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = "MOEPROOF_LIBRARIES"
"""Names the folder with bare files."""


@dataclass(frozen=True)
class Library:
    """A released library.

    Attributes
    ----------
    name : str
        Its distribution's name.
    package : str
        Its import name.
    pin : str
        The release that the adapters are written for.
    files : tuple of str
        What the bare files must hold, relative to the folder, as shell patterns.
    """

    name: str
    package: str
    pin: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class LibraryReport:
    """What was found of a library.

    Attributes
    ----------
    name, version : str
        Of the distribution; the version is empty if there is none.
    where : str
        Folder of the package or of the bare files; empty if there is none.
    missing : str
        What is missing and how to get it; empty if nothing is.
    """

    name: str
    version: str
    where: str
    missing: str


_JIT = "sglang/kernels/jit"
LIBRARIES = {
    library.name: library
    for library in (
        Library("sglang-kernel", "sgl_kernel", "0.4.3", ("sgl_kernel/sm*/common_ops.*",)),
        Library(
            "sglang",
            "sglang",
            "0.5.23",
            (
                f"{_JIT}/include/sgl_kernel/tensor.h",
                f"{_JIT}/csrc/moe/moe_align_kernel.cu",
                f"{_JIT}/csrc/lora/trtllm_lora_temp/kimi_k2_moe_fused_gate.cuh",
                "sglang/kernels/ops/moe/moe_fused_gate.py",
                "sglang/kernels/ops/moe/fused_moe_triton_kernels.py",
            ),
        ),
        Library("vllm", "vllm", "0.33.0", ("vllm/_moe_C_stable_libtorch.abi3.so",)),
        Library(
            "flashinfer-python",
            "flashinfer",
            "0.7.2.post1",
            (
                "flashinfer/data/csrc/fused_moe/noAuxTcKernels.cu",
                "flashinfer/data/csrc/nv_internal/cpp/common/envUtils.cpp",
            ),
        ),
        Library("apache-tvm-ffi", "tvm_ffi", "0.1.15.post2", ("apache_tvm_ffi-*.whl",)),
    )
}
"""Libraries with adapters, and what these need besides, by distribution."""


def report() -> list[LibraryReport]:
    """Return what is found of each library, without importing any."""
    return [find(name) for name in LIBRARIES]


def find(name: str) -> LibraryReport:
    """Return what is found of one library of `LIBRARIES`: bare files first, then a full install."""
    library = LIBRARIES[name]
    hint = f"pip install {name}=={library.pin}, or set {ENVIRONMENT} to a folder with {library.files[0]}"
    folder = os.environ.get(ENVIRONMENT)
    root = Path(folder) if folder else None
    if root is not None and root.is_dir():
        lacking = [pattern for pattern in library.files if not any(root.glob(pattern))]
        if (root / library.package).is_dir() or len(lacking) < len(library.files):
            missing = f"{folder} lacks {', '.join(lacking)}" if lacking else ""
            return LibraryReport(name, _bare_version(library, root), str(root), missing)
    install = _install(library)
    if install is not None:
        return install
    if root is None:
        return LibraryReport(name, "", "", hint)
    if not root.is_dir():
        hint = f"{ENVIRONMENT} is {folder!r}; allowed: an existing folder ({hint})"
    else:
        hint = f"{ENVIRONMENT} is {folder!r}, which holds none of it; {hint}"
    return LibraryReport(name, "", "", hint)


def version(name: str) -> str:
    """Return a library's version, or an empty string."""
    return find(name).version


def _bare_version(library: Library, root: Path) -> str:
    """Return the version that metadata beside bare files gives, or say which release is expected there."""
    for info in sorted(root.glob(f"{library.name.replace('-', '_')}-*.dist-info")):
        return info.name.removesuffix(".dist-info").partition("-")[2]
    return f"bare files, expected {library.pin}"


def _install(library: Library) -> LibraryReport | None:
    try:
        spec = importlib.util.find_spec(library.package)
    except (ImportError, ValueError):  # a package half imported, or shadowed by something without a spec
        return None
    # A namespace package is a folder that happens to bear the name (bare files in the working folder, say).
    if spec is None or spec.origin is None:
        return None
    try:
        installed = importlib.metadata.version(library.name)
    except importlib.metadata.PackageNotFoundError:
        installed = "unknown version"
    return LibraryReport(library.name, installed, str(Path(spec.origin).parent), "")
