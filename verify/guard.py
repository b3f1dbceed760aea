"""Outputs carved from poisoned buffers with guard zones, and what they tell after a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from .contract import OutputSpec

ZONE = 4096
"""Bytes of guard before and after each output; a multiple of any alignment a kernel may assume."""
POISONS = (0xA5, 0x5A)
"""Bytes that fill buffers in the two runs: odd ids and weights, different in every bit."""


@dataclass(frozen=True)
class Carved:
    """Outputs of one run and the buffers that hold them.

    Attributes
    ----------
    outputs : dict of str to Tensor
        Contiguous outputs of exactly the contract's size.
    buffers : dict of str to Tensor
        Flat uint8 buffers: zone, output, zone.
    poison : int
        The byte that filled the buffers.
    """

    outputs: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    poison: int

    def zones_hit(self) -> torch.Tensor:
        """Return a scalar bool tensor: some guard byte has changed."""
        zones = [b[s] for b in self.buffers.values() for s in (slice(0, ZONE), slice(-ZONE, None))]
        return (torch.cat(zones) != self.poison).any()

    def first_hit(self) -> str:
        """Say which output was overrun, by how many bytes, on which side."""
        for name, buffer in self.buffers.items():
            size = len(buffer) - 2 * ZONE
            changed = (buffer != self.poison).nonzero().flatten()
            outside = changed[(changed < ZONE) | (changed >= ZONE + size)]
            if len(outside):
                at = int(outside[0])
                side = f"{ZONE - at} bytes before its start" if at < ZONE else f"{at - ZONE - size} bytes past its end"
                return f"{name} ({size} bytes): {len(outside)} bytes outside it were written, the first {side}"
        return "no guard byte has changed"


def carve(specs: Mapping[str, OutputSpec], device: torch.device | str, poison: int) -> Carved:
    """Return outputs of exact size, filled with `poison`, each inside a poisoned buffer of its own."""
    outputs, buffers = {}, {}
    for name, (shape, dtype) in specs.items():
        size = math.prod(shape) * dtype.itemsize
        buffer = torch.full((ZONE + size + ZONE,), poison, dtype=torch.uint8, device=device)
        outputs[name] = buffer[ZONE : ZONE + size].view(dtype).view(shape)
        buffers[name] = buffer
    return Carved(outputs, buffers, poison)


def poison_allocator(specs: Mapping[str, OutputSpec], device: torch.device, poison: int) -> None:
    """Leave poisoned blocks of the outputs' sizes in torch's caching allocator.

    A subject that allocates its own outputs most likely gets these blocks, so what it leaves unwritten shows.
    """
    if device.type == "cuda":
        blocks = [
            torch.full((math.prod(shape) * dtype.itemsize,), poison, dtype=torch.uint8, device=device)
            for shape, dtype in specs.values()
        ]
        del blocks


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's contents as bytes, ``[rows, bytes a row]``."""
    rows = tensor.shape[0] if tensor.dim() else 1
    flat = tensor.contiguous().view(torch.uint8) if tensor.numel() else tensor.new_empty(0, dtype=torch.uint8)
    return flat.reshape(rows, -1) if tensor.numel() else flat.reshape(rows, 0)
