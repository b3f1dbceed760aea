"""What this machine can run, and what is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .libraries.locate import report
from .sanitize import tools
from .simt import toolchain
from .subject import Unavailable


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes
    ----------
    name, detail : str
        What, and what was found.
    ok : bool or None
        True if it works, False if it is missing, None if it is there but broken.
    """

    name: str
    detail: str
    ok: bool | None


PACKAGES = {
    "hypothesis": "generation",
    "cuda-core": "own CUDA kernels",
    "triton": "own append_shared_experts",
    "numba-cuda": "the Numba CUDA reference",
    "nvidia-cuda-nvrtc": "compiling own CUDA kernels",
}


def checks() -> Iterator[Check]:
    """Yield the state of Python, torch, the GPU, optional packages and released libraries."""
    yield Check("python", platform.python_version(), True)
    yield Check("torch", str(torch.__version__), True)
    yield _gpu()
    for name, purpose in PACKAGES.items():
        try:
            yield Check(name, importlib.metadata.version(name), True)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, f"not installed; needed for {purpose}: pip install 'moeproof[cuda]'", False)
    try:
        program = tools.locate()
        yield Check("compute-sanitizer", f"{tools.version(program)} at {program}", True)
    except Unavailable as error:
        yield Check("compute-sanitizer", f"needed for `moeproof sanitize`: {error}", False)
    try:
        yield Check("SIMT executor", f"{toolchain.compiler().version} at {toolchain.compiler().path}", True)
    except Unavailable as error:
        yield Check("SIMT executor", str(error), False)
    for library in report():
        where = f"{library.version} at {library.where}" if library.where else "not found"
        detail = f"{where}; missing: {library.missing}" if library.missing else where
        yield Check(library.name, detail, not library.missing)


def _gpu() -> Check:
    if not torch.cuda.is_available():
        why = "torch has no CUDA support" if torch.version.cuda is None else "torch sees no CUDA device"
        return Check("GPU", f"{why}; own CUDA kernels and released libraries need one", False)
    try:
        torch.zeros(1, device="cuda").item()
    except Exception as error:  # any driver fault
        return Check("GPU", f"{type(error).__name__}: {error}", None)
    properties = torch.cuda.get_device_properties(0)
    count = torch.cuda.device_count()
    name = f"{properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory >> 30} GiB"
    return Check("GPU", f"{count} x {name}" if count > 1 else name, True)
