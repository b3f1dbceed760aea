"""The order in which experts are looked at: of equal ones the first is taken."""

from __future__ import annotations

import torch


def columns(experts: int) -> torch.Tensor:
    """Return the experts, lowest id first."""
    return torch.arange(experts)
