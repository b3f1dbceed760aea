"""Routing shapes of real models, from their public configurations."""

from __future__ import annotations

from dataclasses import dataclass

from .domain import AlignDomain, AppendDomain, Domain, GateDomain


@dataclass(frozen=True)
class Preset:
    """How a model routes.

    Attributes
    ----------
    name : str
        Short name, as the command line takes it.
    experts, topk : int
        Routed experts, and how many of them a token takes.
    scoring : str
        Scoring function.
    renormalize : bool
        Weights are divided by their sum.
    scale : float
        `routed_scaling_factor`.
    groups, topk_group : int
        Groups, and how many of them are kept.
    shared : int
        Shared experts, which a server may fuse into the routed ones.
    bias : bool
        The router has a correction bias.
    dtype : str
        Dtype of the logits.
    source : str
        Where the figures come from.
    """

    name: str
    experts: int
    topk: int
    scoring: str
    renormalize: bool
    scale: float
    groups: int = 1
    topk_group: int = 1
    shared: int = 0
    bias: bool = False
    dtype: str = "float32"
    source: str = ""


@dataclass(frozen=True)
class Shape:
    """The integers of a `fused_gate` case.

    Attributes
    ----------
    experts, topk, shared, groups, topk_group : int
        E, k, S, G and g of docs/contracts.md.
    """

    experts: int
    topk: int
    shared: int = 0
    groups: int = 1
    topk_group: int = 1


_HF = "huggingface.co/"
PRESETS: tuple[Preset, ...] = (
    Preset(
        "kimi-vl",
        64,
        6,
        "sigmoid",
        True,
        2.446,
        shared=2,
        bias=True,
        source=_HF + "moonshotai/Kimi-VL-A3B-Instruct config.json, text_config",
    ),
    Preset(
        "qwen3-moe",
        128,
        8,
        "softmax",
        True,
        1.0,
        dtype="bfloat16",
        source=_HF + "Qwen/Qwen3-30B-A3B and Qwen/Qwen3-235B-A22B config.json",
    ),
    Preset(
        "glm-4.5-air",
        128,
        8,
        "sigmoid",
        True,
        1.0,
        shared=1,
        bias=True,
        source=_HF + "zai-org/GLM-4.5-Air config.json",
    ),
    Preset(
        "glm-4.5",
        160,
        8,
        "sigmoid",
        True,
        2.5,
        shared=1,
        bias=True,
        source=_HF + "zai-org/GLM-4.5 config.json; GLM-4.6 and GLM-4.7 are the same",
    ),
    Preset(
        "glm-5",
        256,
        8,
        "sigmoid",
        True,
        2.5,
        shared=1,
        bias=True,
        source=_HF + "zai-org/GLM-5 config.json",
    ),
    Preset(
        "deepseek-v3",
        256,
        8,
        "sigmoid",
        True,
        2.5,
        groups=8,
        topk_group=4,
        shared=1,
        bias=True,
        source=_HF + "deepseek-ai/DeepSeek-V3 config.json; V3.1, V3.2 and R1 are the same",
    ),
    Preset(
        "mimo-v2-flash",
        256,
        8,
        "sigmoid",
        True,
        1.0,
        bias=True,
        source=_HF + "XiaomiMiMo/MiMo-V2-Flash config.json",
    ),
    Preset(
        "qwen3.5",
        256,
        8,
        "softmax",
        True,
        1.0,
        shared=1,
        dtype="bfloat16",
        source=_HF + "Qwen/Qwen3.5-35B-A3B config.json, text_config",
    ),
    Preset(
        "deepseek-v4-flash",
        256,
        6,
        "sqrtsoftplus",
        True,
        1.5,
        shared=1,
        bias=True,
        source=_HF + "deepseek-ai/DeepSeek-V4-Flash config.json",
    ),
    Preset(
        "kimi-k2",
        384,
        8,
        "sigmoid",
        True,
        2.827,
        shared=1,
        bias=True,
        source=_HF + "moonshotai/Kimi-K2-Instruct config.json; Kimi-K2.5 is the same",
    ),
    Preset(
        "qwen3-next",
        512,
        10,
        "softmax",
        True,
        1.0,
        shared=1,
        dtype="bfloat16",
        source=_HF + "Qwen/Qwen3-Next-80B-A3B-Instruct config.json",
    ),
    Preset(
        "merged-lora-2048",
        2048,
        8,
        "sigmoid",
        True,
        2.5,
        bias=True,
        source="not a model: 256 experts under 8 adapters, merged into one table",
    ),
    Preset(
        "merged-lora-4096",
        4096,
        8,
        "softmax",
        True,
        1.0,
        source="not a model: 512 experts under 8 adapters, merged into one table",
    ),
)
"""Models, by number of experts."""


def preset_named(name: str) -> Preset:
    """Return a preset by name.

    Raises
    ------
    ValueError
        If there is none of that name.
    """
    for found in PRESETS:
        if found.name == name:
            return found
    raise ValueError(f"preset is {name!r}; allowed: {', '.join(p.name for p in PRESETS)}")


def presets_in(domain: Domain, op: str) -> list[Preset]:
    """Return the presets whose shape lies inside a domain.

    Parameters
    ----------
    domain : Domain
        The domain of a subject.
    op : str
        The op that the domain belongs to, as in `case.OPS`.

    Raises
    ------
    ValueError
        If the domain is not one of that op.
    """
    if op == "fused_gate" and isinstance(domain, GateDomain):
        return [p for p in PRESETS if model_shapes(p, domain)]
    if op == "moe_align_block_size" and isinstance(domain, AlignDomain):
        return [p for p in PRESETS if p.experts in domain.experts and p.topk in domain.topk]
    if op == "append_shared_experts" and isinstance(domain, AppendDomain):
        return [p for p in PRESETS if p.topk in domain.topk and p.shared in domain.shared]
    raise ValueError(f"op is {op!r}; allowed with a {type(domain).__name__}: its own")


def model_shapes(model: Preset, domain: GateDomain) -> list[Shape]:
    """Return how a model may be routed inside a domain: without and with fused shared experts."""
    size = model.experts // model.groups
    if isinstance(domain.groups, tuple):
        grouping = (model.groups, model.topk_group) in domain.groups
    else:
        grouping = model.groups == 1 or domain.groups == "any"
        if domain.groups == "any":
            grouping = size <= domain.max_experts_per_group and model.groups <= domain.max_groups
    most = domain.max_routed
    good = (
        grouping
        and (most is None or model.topk <= most(model.groups, model.topk_group))
        and model.experts in domain.experts
        and model.scoring in domain.scorings
        and model.renormalize in domain.renormalize
        and domain.bias in ("optional", "required" if model.bias else "none")
    )
    return [
        Shape(model.experts, model.topk + s, s, model.groups, model.topk_group)
        for s in sorted({0, model.shared})
        if good and model.topk + s in domain.topk and s in domain.shared
    ]


def chosen(domain: Domain, op: str, presets: bool, preset: str | None) -> tuple[Preset, ...]:
    """Return the models whose shapes a strategy draws.

    Parameters
    ----------
    domain : Domain
        What the subject claims to support.
    op : str
        The op.
    presets : bool
        Shapes of real models are drawn some of the time.
    preset : str, optional
        Only this model's shape is drawn.

    Raises
    ------
    ValueError
        If the preset is unknown, or outside the domain.
    """
    models = presets_in(domain, op) if presets or preset is not None else []
    if preset is not None:
        models = [m for m in models if m.name == preset_named(preset).name]
        if not models:
            raise ValueError(f"preset is {preset!r}, which is outside the domain; allowed: one inside it")
    return tuple(models)
