"""The own kernels, built with delays at their synchronisation points, as subjects of their own."""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from moeproof import kernels
from moeproof.kernels import launcher

SEED = 1
"""Which of the delays a warp gets."""


@functools.cache
def delayed_module(name: str) -> ModuleType:
    """Return a second copy of a module of `moeproof.kernels`, whose kernels are built with delays.

    A module keeps what it has loaded by arguments, so the kernels with delays need a module to themselves.
    """
    file = Path(kernels.__path__[0]) / f"{name}.py"
    twin = f"{kernels.__name__}.{name}_delayed"
    spec = importlib.util.spec_from_file_location(twin, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"module is {name!r}; allowed: one of {kernels.__name__}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[twin] = module  # its dataclasses look themselves up here
    spec.loader.exec_module(module)
    vars(module)["load_kernel"] = functools.partial(launcher.load_kernel, delays=SEED)
    return module
