"""The gold references: NumPy in float64, one plain statement of each rule of docs/contracts.md.

Every function takes CPU or CUDA tensors, computes on the CPU and returns tensors on its input's device.
"""

from .align import moe_align_block_size
from .append import append_shared_experts
from .gate import fused_gate

__all__ = ["append_shared_experts", "fused_gate", "moe_align_block_size"]
