"""Compiles every CUDA kernel into the cubin cache ahead of use: ``python -m moeproof.kernels.prebuild``. No GPU."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from . import align_plan, gate_plan
from .compiler import CompileError, compile_cubin, load_source

Instantiation = tuple[str, str]
"""Source file and name expression."""


def reachable() -> list[Instantiation]:
    """Return every instantiation that a call can need."""
    align = [("align_block_size.cu", name) for name in align_plan.instantiations()]
    return gate_plan.instantiations() + align


def prebuild(arch: str, *, jobs: int | None = None, wanted: Sequence[Instantiation] | None = None) -> int:
    """Compile kernels that the cache lacks, in parallel processes.

    Parameters
    ----------
    arch : str
        Architecture, such as ``"sm_90"``.
    jobs : int, optional
        Processes; one a processor if None.
    wanted : sequence, optional
        What to compile; everything `reachable` if None.

    Returns
    -------
    int
        Number of kernels now in the cache.

    Raises
    ------
    CompileError
        If NVRTC is missing or refuses a source.
    """
    tasks = [(*item, arch) for item in (reachable() if wanted is None else wanted)]
    # Not forked: CUDA does not survive it, and the caller may hold threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs or os.cpu_count(), context) as pool:
        return sum(pool.map(_build, tasks, chunksize=4))


def _build(task: tuple[str, str, str]) -> int:
    file, name, arch = task
    compile_cubin(load_source(file), (name,), arch)
    return 1


def current_arch() -> str:
    """Return the architecture of the current CUDA device.

    Raises
    ------
    CompileError
        If there is none.
    """
    import torch

    if not torch.cuda.is_available():
        raise CompileError("no CUDA device to take the architecture from; name it, as in sm_90")
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m moeproof.kernels.prebuild", description=__doc__)
    parser.add_argument("arch", nargs="*", help="architectures, such as sm_90; the current GPU's if none")
    parser.add_argument("--jobs", type=int, help="processes; one a processor by default")
    options = parser.parse_args(arguments)
    try:
        for arch in options.arch or [current_arch()]:
            print(f"{arch}: {prebuild(arch, jobs=options.jobs)} kernels")
    except CompileError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
