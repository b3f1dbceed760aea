"""The one place that imports Numba."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

numpy: Any = np
if not hasattr(numpy, "row_stack"):
    # numba-cuda looks this alias up while it is imported; NumPy 2.5 dropped it.
    numpy.row_stack = np.vstack

cuda: Any = importlib.import_module("numba.cuda")
config: Any = cuda.config
# Grids here are as small as their inputs: the warning would come with nearly every launch.
config.CUDA_LOW_OCCUPANCY_WARNINGS = 0

__all__ = ["config", "cuda"]
