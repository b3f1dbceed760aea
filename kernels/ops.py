"""The ops as ``torch.ops.moeproof.*``, functional, with fake implementations; registered on import."""

from __future__ import annotations

import torch

from . import align_block_size as align
from . import append_shared_experts as append
from . import fused_gate as gate

# Library costs 2 to 3 µs a call where torch.library.custom_op costs 12 to 18.
_library = torch.library.Library("moeproof", "DEF")
# The dispatcher leaves out arguments that equal their defaults, so implementations repeat them.
_library.define(
    'fused_gate(Tensor logits, Tensor? bias=None, *, int topk, str scoring="sigmoid", '
    "int num_expert_group=1, int topk_group=1, bool renormalize=True, float routed_scaling_factor=1.0, "
    "bool apply_routed_scaling_factor_on_output=False, int num_fused_shared_experts=0, "
    "Tensor? num_token_non_padded=None, Tensor? expert_map=None) "
    "-> (Tensor weights, Tensor indices)"
)
_library.define(
    "moe_align_block_size(Tensor topk_ids, int num_experts, int block_size, *, "
    "Tensor? expert_map=None) "
    "-> (Tensor sorted_token_ids, Tensor expert_ids, Tensor num_tokens_post_pad)"
)
_library.define(
    "append_shared_experts(Tensor topk_ids, Tensor topk_weights, Tensor shared_weights, int num_experts, "
    "int num_fused_shared_experts=1, *, Tensor? num_token_non_padded=None) -> (Tensor ids, Tensor weights)"
)
fused_gate = torch.ops.moeproof.fused_gate.default
moe_align_block_size = torch.ops.moeproof.moe_align_block_size.default
append_shared_experts = torch.ops.moeproof.append_shared_experts.default


def _gate(
    logits: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    topk: int,
    scoring: str = "sigmoid",
    num_expert_group: int = 1,
    topk_group: int = 1,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
    apply_routed_scaling_factor_on_output: bool = False,
    num_fused_shared_experts: int = 0,
    num_token_non_padded: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    call = (
        logits,
        bias,
        topk,
        scoring,
        num_expert_group,
        topk_group,
        renormalize,
        routed_scaling_factor,
        apply_routed_scaling_factor_on_output,
        num_fused_shared_experts,
        num_token_non_padded,
        expert_map,
    )
    return gate.run(call)


def _align(
    topk_ids: torch.Tensor, num_experts: int, block_size: int, *, expert_map: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return align.run((topk_ids, num_experts, block_size, expert_map))


def _append(
    topk_ids: torch.Tensor,
    topk_weights: torch.Tensor,
    shared_weights: torch.Tensor,
    num_experts: int,
    num_fused_shared_experts: int = 1,
    *,
    num_token_non_padded: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    call = (topk_ids, topk_weights, shared_weights, num_experts, num_fused_shared_experts, num_token_non_padded)
    return append.run(call)


_library.impl("fused_gate", _gate, "CUDA")
_library.impl("moe_align_block_size", _align, "CUDA")
_library.impl("append_shared_experts", _append, "CUDA")


@torch.library.register_fake("moeproof::fused_gate", lib=_library)
def _fake_gate(
    logits: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    topk: int,
    scoring: str = "sigmoid",
    num_expert_group: int = 1,
    topk_group: int = 1,
    renormalize: bool = True,
    routed_scaling_factor: float = 1.0,
    apply_routed_scaling_factor_on_output: bool = False,
    num_fused_shared_experts: int = 0,
    num_token_non_padded: torch.Tensor | None = None,
    expert_map: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (logits.shape[0], topk)
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("moeproof::moe_align_block_size", lib=_library)
def _fake_align(
    topk_ids: torch.Tensor, num_experts: int, block_size: int, *, expert_map: torch.Tensor | None = None
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
    num_fused_shared_experts: int = 1,
    *,
    num_token_non_padded: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    tokens, topk = topk_ids.shape
    shape = (tokens, topk + num_fused_shared_experts)
    return topk_ids.new_empty(shape), topk_weights.new_empty(shape)
