"""PyTorch references: vectorised, in float32, on any device, without waiting for the device.

They check little: arguments are those of docs/contracts.md, and the gold references say what is wrong with
others.
"""

from .align import moe_align_block_size
from .append import append_shared_experts
from .gate import fused_gate

__all__ = ["append_shared_experts", "fused_gate", "moe_align_block_size"]
