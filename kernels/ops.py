"""The ops as ``torch.ops.moeproof.*``, functional, with fake implementations; registered on import."""

from __future__ import annotations

import torch

from . import align_block_size as align
from . import append_shared_experts as append
from . import fused_gate as gate

# Library costs 2 to 3 µs a call where torch.library.custom_op costs 12 to 18.
_library = torch.library.Library("moeproof", "DEF")
_library.define(
    "fused_gate(Tensor logits, Tensor? bias, int topk, str scoring, int num_expert_group, int topk_group, "
    "bool renormalize, float routed_scaling_factor, bool apply_routed_scaling_factor_on_output, "
    "int num_fused_shared_experts, Tensor? num_token_non_padded, Tensor? expert_map) "
    "-> (Tensor weights, Tensor indices)"
)
_library.define(
    "moe_align_block_size(Tensor topk_ids, int num_experts, int block_size, Tensor? expert_map) "
    "-> (Tensor sorted_token_ids, Tensor expert_ids, Tensor num_tokens_post_pad)"
)
_library.define(
    "append_shared_experts(Tensor topk_ids, Tensor topk_weights, Tensor shared_weights, int num_experts, "
    "int num_fused_shared_experts, Tensor? num_token_non_padded) -> (Tensor ids, Tensor weights)"
)
_library.impl("fused_gate", gate.run, "CUDA")
_library.impl("moe_align_block_size", align.run, "CUDA")
_library.impl("append_shared_experts", append.run, "CUDA")

fused_gate = torch.ops.moeproof.fused_gate.default
moe_align_block_size = torch.ops.moeproof.moe_align_block_size.default
append_shared_experts = torch.ops.moeproof.append_shared_experts.default


@torch.library.register_fake("moeproof::fused_gate", lib=_library)
def _fake_gate(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    topk: int,
    scoring: str,
    num_expert_group: int,
    topk_group: int,
    renormalize: bool,
    routed_scaling_factor: float,
    apply_routed_scaling_factor_on_output: bool,
    num_fused_shared_experts: int,
    num_token_non_padded: torch.Tensor | None,
    expert_map: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (logits.shape[0], topk)
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("moeproof::moe_align_block_size", lib=_library)
def _fake_align(
    topk_ids: torch.Tensor, num_experts: int, block_size: int, expert_map: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    numel = topk_ids.numel()
    used = torch.sym_min(numel, num_experts)  # `capacity` for a symbolic number of tokens
    places = (numel + used * (block_size - 1)) // block_size * block_size
    return (
        topk_ids.new_empty(places, dtype=torch.int32),
        topk_ids.new_empty(places // block_size, dtype=torch.int32),
        topk_ids.new_empty(1, dtype=torch.int32),
    )


@torch.library.register_fake("moeproof::append_shared_experts", lib=_library)
def _fake_append(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    shared_weights: torch.Tensor,
    num_experts: int,
    num_fused_shared_experts: int,
    num_token_non_padded: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, topk = topk_ids.shape
    shape = (tokens, topk + num_fused_shared_experts)
    return topk_ids.new_empty(shape), topk_weights.new_empty(shape)
