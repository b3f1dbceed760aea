"""Calls of the own ops that differ in one thing from another call, for tests of what a call leaves for the next."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from moeproof.kernels import align_block_size, append_shared_experts, fused_gate

Variant = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""
MODULES: dict[str, ModuleType] = {"gate": fused_gate, "align": align_block_size, "append": append_shared_experts}
NAMES = {"gate": "fused_gate", "align": "moe_align_block_size", "append": "append_shared_experts"}
FUNCTIONS: dict[str, Callable[..., Any]] = {op: getattr(MODULES[op], name) for op, name in NAMES.items()}


def forget() -> None:
    """Have every op forget the calls that it prepared."""
    for module in MODULES.values():
        module._calls.clear()


def tensors(variant: Variant) -> list[torch.Tensor]:
    """Return the tensors of a call."""
    args, kwargs = variant
    return [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]


def variants(device: str = "cpu") -> dict[str, list[Variant]]:
    """Return calls by op."""
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(-1, high, shape, generator=generator, dtype=torch.int32).to(device)

    limit = torch.tensor([2], dtype=torch.int32, device=device)
    return {
        "gate": _gates(random, limit, integers(65, 65)),
        "align": _aligns(integers),
        "append": _appends(random, integers, limit),
    }


def _gates(random: Callable[..., torch.Tensor], limit: torch.Tensor, mapping: torch.Tensor) -> list[Variant]:
    x, b, spread = random(4, 64), random(64), random(4, 128)
    shifted, wide_map = random(4 * 64 + 1)[1:].view(4, 64), torch.cat([mapping, mapping])[:128][::2]
    calls: list[tuple[Any, ...]] = [
        (x, b), (x,), (x[:3], b), (x.half(), b), (x, b.bfloat16()), (spread[:, ::2], b), (spread[:, :64], b),
        (shifted, b), (x, random(65)[1:]), (x, random(128)[::2]), (random(4, 32), random(32)), (shifted,),
        (x, torch.nn.Parameter(b)), (random(0, 64), b), (x[:1], b),
    ]  # fmt: skip
    scale = {"routed_scaling_factor": 2.5}
    flags: list[dict[str, Any]] = [
        {"topk": 2}, {"topk": 8, "num_expert_group": 8, "topk_group": 4}, {"renormalize": False},
        {"topk": 8, "num_expert_group": 8, "topk_group": 2}, {"topk": 8, "num_expert_group": 4, "topk_group": 2},
        scale, {"routed_scaling_factor": 2}, {"routed_scaling_factor": 2.0},
        {**scale, "apply_routed_scaling_factor_on_output": True}, {"scoring": "softmax"}, {"scoring": "sqrtsoftplus"},
        {"topk": 2, "num_fused_shared_experts": 1}, {"num_token_non_padded": limit},
        {"num_token_non_padded": limit[0]}, {"topk": 2, "num_fused_shared_experts": 1, "expert_map": mapping},
        {"expert_map": mapping[1:]}, {"expert_map": wide_map},
        {"expert_map": mapping[1:], "num_token_non_padded": limit},
    ]  # fmt: skip
    # One expert: its map has the shape of a limit.
    one = [{"num_token_non_padded": limit}, {"expert_map": limit}]
    return [
        *((call, {"topk": 1}) for call in calls),
        *(((x, b), {"topk": 1, **how}) for how in flags),
        *(((x[:, :1],), {"topk": 1, **how}) for how in one),
    ]


def _aligns(integers: Callable[..., torch.Tensor]) -> list[Variant]:
    ids, mapping = integers(64, 9, 4), integers(64, 128)
    calls: list[tuple[Any, ...]] = [
        (ids, 64, 16), (ids.long(), 64, 16), (ids, 63, 16), (ids, 1000, 16), (ids, 64, 17), (ids, 64, 1000),
        (ids[:, :3], 64, 16), (ids[:8], 64, 16), (ids[:0], 64, 16), (ids[::2], 64, 16), (ids[:, ::2], 64, 16),
        (ids.t().contiguous().t(), 64, 16), (integers(64, 2600, 4), 64, 16),
    ]  # fmt: skip
    maps = [mapping[:64], mapping[::2], mapping[64:]]
    return [*((call, {}) for call in calls), *(((ids, 64, 16), {"expert_map": each}) for each in maps)]


def _appends(
    random: Callable[..., torch.Tensor], integers: Callable[..., torch.Tensor], limit: torch.Tensor
) -> list[Variant]:
    ids, w, s = integers(64, 4, 8), random(4, 8), random(4, 2)
    calls: list[tuple[Any, ...]] = [
        (ids, w, s, 64, 2), (ids.long(), w, s, 64, 2), (ids, w.half(), s, 64, 2), (ids, w, s.half(), 64, 2),
        (ids, w, s, 65, 2), (ids, w, s, 1000, 2), (ids, w, s[:, :1], 64, 1), (ids, w, s[:, 0], 64, 2),
        (ids, w, s[0, 0], 64, 2), (ids, w, s[0, 0], 64, 300), (ids[:3], w[:3], s[:3], 64, 2),
        (ids[:0], w[:0], s[:0], 64, 2), (ids.t().contiguous().t(), w, s, 64, 2), (ids, w, s[:, 0], 64, 3),
        (ids, w.t().contiguous().t(), s, 64, 2), (ids, w, s.t().contiguous().t(), 64, 2),
        (ids[:, 1:], w[:, 1:], s, 64, 2), (integers(64, 5000, 8), random(5000, 8), random(5000), 64, 1),
    ]  # fmt: skip
    limits = [limit, limit[0]]
    return [*((call, {}) for call in calls), *(((ids, w, s, 64, 2), {"num_token_non_padded": n}) for n in limits)]
