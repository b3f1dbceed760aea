"""Compiles Triton kernels for our own launcher: Triton's costs 50 µs a call, and a C compiler on first use.

Importing it imports Triton.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triton.runtime import JITFunction

from .launcher import Kernel, capability, load_cubin

SCRATCH = 2
"""Pointers behind a kernel's own parameters: memory for all programs, and for a profiler; null where not asked for."""
WARPS = 4
_PARAMETER = re.compile(r"\.param\s+\.(\w+)")
_DEFAULT_SHARED = 48 << 10
"""Bytes of shared memory that a block may have without asking for more."""


def is_launchable(compiled: Any, parameters: int) -> bool:
    """Say whether a compiled kernel is called as our launcher calls it: by what the compiler wrote, not by its version.

    Parameters
    ----------
    compiled : CompiledKernel
        What `triton.compile` returned.
    parameters : int
        The kernel's own parameters, all of 8 bytes.
    """
    metadata = compiled.metadata
    entry = str(compiled.asm["ptx"]).partition(".entry")[2].partition(")")[0]
    return (
        _PARAMETER.findall(entry) == ["u64"] * (parameters + SCRATCH)
        and metadata.global_scratch_size == metadata.profile_scratch_size == 0
        and metadata.num_ctas == 1
        and metadata.num_warps == WARPS
        and metadata.shared <= _DEFAULT_SHARED
        and not metadata.launch_cooperative_grid
    )


def load_triton(
    kernel: Any, signature: Mapping[str, str], constants: Mapping[str, Any], device: int
) -> tuple[Kernel, int, int] | None:
    """Return a Triton kernel for our own launcher, with its threads a block and its bytes of shared memory.

    Parameters
    ----------
    kernel : JITFunction
        The function.
    signature : mapping of str to str
        Triton's type, of 8 bytes, of each parameter that is no constexpr.
    constants : mapping of str to any
        The value of each constexpr.
    device : int
        Index of a CUDA device.

    Returns
    -------
    tuple of Kernel, int and int, or None
        None where the kernel is for Triton's own launcher: interpreted, or compiled by a Triton that does it another
        way than this module knows.
    """
    if not isinstance(kernel, JITFunction):
        return None
    major, minor = capability(device)
    types = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    try:
        source = ASTSource(kernel, types, constexprs=dict(constants))
        compiled = compile(source, target=GPUTarget("cuda", 10 * major + minor, 32), options={"num_warps": WARPS})
        if not is_launchable(compiled, len(signature)):
            return None
        code, name, shared = compiled.asm["cubin"], compiled.metadata.name, compiled.metadata.shared
    except (AttributeError, KeyError, TypeError):  # other names than known
        return None
    return load_cubin(code, name, device), 32 * WARPS, shared
