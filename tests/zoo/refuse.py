"""Argument checks of the zoo's implementations: the contract's, and those of a subject's declared domain."""

from __future__ import annotations

import math
from typing import Any

import torch

from moeproof.strategies.domain import AlignDomain, AppendDomain, GateDomain


def _require(ok: bool, name: str, value: object, allowed: object) -> None:
    if not ok:
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}")


def _whole(name: str, value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{name} is {value!r}; allowed: an int")
    return value


def _truth(name: str, value: object) -> None:
    if type(value) is not bool:
        raise TypeError(f"{name} is {value!r}; allowed: True or False")


def _tensor(name: str, value: object, dtypes: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is {value!r:.80}; allowed: a tensor")
    dtype = str(value.dtype).removeprefix("torch.")
    if dtype not in dtypes:
        raise TypeError(f"{name} has dtype {dtype}; allowed: {', '.join(dtypes)}")
    _require(value.device.type == "cpu", f"{name}.device", str(value.device), "cpu")
    _require(tuple(value.shape) in shapes, f"{name}.shape", tuple(value.shape), shapes)


def _matrix(name: str, value: object, dtypes: tuple[str, ...]) -> tuple[int, int]:
    if isinstance(value, torch.Tensor) and value.dim() != 2:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; allowed: two dimensions")
    _tensor(name, value, dtypes, (tuple(value.shape),) if isinstance(value, torch.Tensor) else ())
    assert isinstance(value, torch.Tensor)
    return value.shape[0], value.shape[1]


def _padding(args: dict[str, Any], supported: bool) -> None:
    if (limit := args.get("num_token_non_padded")) is not None:
        _require(supported, "num_token_non_padded", limit, "None")
        _tensor("num_token_non_padded", limit, ("int32",), ((), (1,)))


def refuse_gate(args: dict[str, Any], domain: GateDomain) -> None:
    """Raise if arguments of `fused_gate` are outside the contract or `domain`."""
    T, E = _matrix("logits", args["logits"], domain.logits_dtypes)
    k = _whole("topk", args["topk"])
    G = _whole("num_expert_group", args.get("num_expert_group", 1))
    g = _whole("topk_group", args.get("topk_group", 1))
    S = _whole("num_fused_shared_experts", args.get("num_fused_shared_experts", 0))
    f = args.get("routed_scaling_factor", 1.0)
    _require(T in domain.tokens, "number of tokens", T, domain.tokens)
    _require(E in domain.experts, "number of experts", E, domain.experts)
    _require(k in domain.topk, "topk", k, domain.topk)
    _require(S in domain.shared and k > S, "num_fused_shared_experts", S, f"{domain.shared}, below topk={k}")
    _require(k - S <= E, "topk", k, f"at most E + S = {E + S}")
    _require(G >= 1 and E % G == 0, "num_expert_group", G, f"a divisor of {E}")
    _require(1 <= g <= G, "topk_group", g, f"1 to num_expert_group={G}")
    _require(E // G * g >= k - S, "topk_group", g, f"enough groups of {E // G} for {k - S} experts")
    _refuse_groups(G, g, E, domain)
    scoring = args.get("scoring", "sigmoid")
    _require(scoring in domain.scorings, "scoring", scoring, domain.scorings)
    for name, values in (
        ("renormalize", domain.renormalize),
        ("apply_routed_scaling_factor_on_output", domain.scale_on_output),
    ):
        flag = args.get(name, name == "renormalize")
        _truth(name, flag)
        _require(flag in values, name, flag, values)
    _require(type(f) in (int, float), "routed_scaling_factor", f, "a number")
    _require(math.isfinite(f) and f > 0, "routed_scaling_factor", f, "finite and above 0")
    _require(domain.scale or f == 1, "routed_scaling_factor", f, 1)
    if (bias := args.get("bias")) is not None:
        _require(domain.bias != "none", "bias", bias, "None")
        _tensor("bias", bias, domain.bias_dtypes, ((E,),))
    else:
        _require(domain.bias != "required", "bias", None, f"a tensor of shape ({E},)")
    _padding(args, domain.padding)
    if (expert_map := args.get("expert_map")) is not None:
        _require(domain.expert_map, "expert_map", expert_map, "None")
        _tensor("expert_map", expert_map, ("int32",), ((E + S,),))


def _refuse_groups(G: int, g: int, E: int, domain: GateDomain) -> None:
    if domain.groups == "any":
        _require(domain.max_groups >= G, "num_expert_group", G, f"at most {domain.max_groups}")
        n = E // G
        _require(G == 1 or n <= domain.max_experts_per_group, "experts per group", n, domain.max_experts_per_group)
    elif domain.groups == "none":
        _require(G == 1, "num_expert_group", G, 1)
    else:
        _require((G, g) in domain.groups, "(num_expert_group, topk_group)", (G, g), domain.groups)


def refuse_align(args: dict[str, Any], domain: AlignDomain) -> None:
    """Raise if arguments of `moe_align_block_size` are outside the contract or `domain`; ids may be any."""
    T, k = _matrix("topk_ids", args["topk_ids"], domain.ids_dtypes)
    E, B = _whole("num_experts", args["num_experts"]), _whole("block_size", args["block_size"])
    _require(T in domain.tokens, "number of tokens", T, domain.tokens)
    _require(k in domain.topk, "topk", k, domain.topk)
    _require(T * k <= domain.max_ids, "number of ids", T * k, f"at most {domain.max_ids}")
    _require(E in domain.experts, "num_experts", E, domain.experts)
    _require(B in domain.block_sizes, "block_size", B, domain.block_sizes)
    if (expert_map := args.get("expert_map")) is not None:
        _require(domain.expert_map, "expert_map", expert_map, "None")
        _tensor("expert_map", expert_map, ("int32",), ((E,),))


def refuse_append(args: dict[str, Any], domain: AppendDomain) -> None:
    """Raise if arguments of `append_shared_experts` are outside the contract or `domain`."""
    T, k = _matrix("topk_ids", args["topk_ids"], domain.ids_dtypes)
    _tensor("topk_weights", args["topk_weights"], domain.weights_dtypes, ((T, k),))
    E = _whole("num_experts", args["num_experts"])
    S = _whole("num_fused_shared_experts", args.get("num_fused_shared_experts", 1))
    _require(T in domain.tokens, "number of tokens", T, domain.tokens)
    _require(k in domain.topk, "topk", k, domain.topk)
    _require(E >= 1, "num_experts", E, "at least 1")
    _require(S in domain.shared, "num_fused_shared_experts", S, domain.shared)
    forms = {"matrix": (T, S), "vector": (T,), "scalar": ()}
    shapes = tuple(forms[form] for form in domain.shared_forms)
    _tensor("shared_weights", args["shared_weights"], domain.shared_dtypes, shapes)
    _padding(args, domain.padding)
