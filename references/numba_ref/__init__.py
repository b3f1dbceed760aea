"""Numba CUDA references: one thread per token, expert or element, in float32, each loop written out.

They run on a CUDA device, or on CPU tensors under Numba's simulator (``NUMBA_ENABLE_CUDASIM=1`` set before
Numba is imported). Importing this package does not import Numba. They check little: arguments are those of
docs/contracts.md, and the gold references say what is wrong with others.
"""

from ._launch import available
from .align import moe_align_block_size
from .append import append_shared_experts
from .gate import fused_gate

__all__ = ["append_shared_experts", "available", "fused_gate", "moe_align_block_size"]
