"""Cases of `moe_align_block_size`, drawn inside a domain."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from .case import Case, TensorSpec
from .domain import AlignDomain
from .draws import Draw, chance, composite, pick, seed, sometimes
from .ids import IdSpace, ids
from .layouts import with_layout
from .presets import Preset, chosen
from .recipe import MAX_EXPERTS
from .sizes import Choices, tokens

MAX_ELEMENTS = 1 << 18
CAPACITY_FACTOR = 4
"""Outputs may have this many times as many places as `max_elements`."""


def cases(
    domain: AlignDomain,
    *,
    max_elements: int = MAX_ELEMENTS,
    presets: bool = True,
    preset: str | None = None,
) -> st.SearchStrategy[Case]:
    """Return a strategy of `moe_align_block_size` cases inside a domain.

    Parameters
    ----------
    domain : AlignDomain
        What the subject claims to support; its `extra` is left to the caller.
    max_elements : int
        Largest number of ids, T·k; the capacity of the outputs stays below four times this, as far as the
        domain's smallest block size allows.
    presets : bool
        Shapes of real models are drawn some of the time.
    preset : str, optional
        Only this model's shape is drawn.

    Raises
    ------
    ValueError
        If the domain holds no case, or not the preset.
    """
    for name in ("experts", "block_sizes", "topk", "tokens"):
        if not len(getattr(domain, name)):
            raise ValueError(f"domain is empty: {name} allows no value")
    models = chosen(domain, "moe_align_block_size", presets, preset)
    experts = Choices(domain.experts, domain.thresholds.get("experts", ()))
    sizes = experts, Choices(domain.topk), Choices(domain.block_sizes)
    return _cases(domain, max_elements, sizes, models, preset is not None)


@composite
def _cases(
    draw: Draw,
    domain: AlignDomain,
    max_elements: int,
    sizes: tuple[Choices, Choices, Choices],
    models: tuple[Preset, ...],
    only_models: bool,
) -> Case:
    model = sometimes(draw, models, only_models)
    all_experts, all_topk, all_block_sizes = sizes
    budget = min(max_elements, domain.max_ids)
    experts = all_experts.draw(draw, 1, MAX_EXPERTS)
    # k must leave room for as many tokens as the domain asks for.
    topk = all_topk.draw(draw, 0, max(domain.topk[0], budget // max(domain.tokens[0], 1)))
    if model is not None:
        experts, topk = model.experts, model.topk
    rows = _tokens(draw, domain, budget, topk)
    count = rows * topk
    room = CAPACITY_FACTOR * max_elements - count
    largest = max(1 + room // max(min(count, experts + 1), 1), all_block_sizes.allowed[0])
    block_size = all_block_sizes.draw(draw, 1, largest)
    dtype = pick(draw, domain.ids_dtypes)
    space = IdSpace(experts, block_size, domain.minus_one, domain.out_of_range, wide=dtype == "int64")
    spec = TensorSpec(dtype, (rows, topk), recipe=ids(draw, rows, topk, space))
    tensors = {"topk_ids": with_layout(draw, spec, domain.layouts)}
    if domain.expert_map and chance(draw, 4):
        tensors["expert_map"] = TensorSpec("int32", (experts,), recipe=_expert_map(draw, experts))
    return Case("moe_align_block_size", {"num_experts": experts, "block_size": block_size}, tensors)


def _tokens(draw: Draw, domain: AlignDomain, budget: int, topk: int) -> int:
    """Draw T so that T·k stays in the budget; sizes at which the subject switches path are counted in ids."""
    low = domain.tokens[0]
    high = max(low, min(domain.tokens[-1], budget // max(topk, 1)))
    thresholds = [-(-n // max(topk, 1)) for n in domain.thresholds.get("ids", ())]
    return tokens(draw, low, high, thresholds)


def _expert_map(draw: Draw, experts: int) -> dict[str, Any]:
    """Draw a map: the identity, one rank's slice, a permutation, or one with some experts elsewhere."""
    kind = pick(draw, ("identity", "slice", "permutation", "holes"))
    if kind == "identity":
        return {"kind": "slice", "start": 0, "count": experts}
    if kind == "slice":
        ranks = pick(draw, (2, 8))
        count = -(-experts // ranks)
        return {
            "kind": "slice",
            "start": pick(draw, (0, count, (experts - 1) // count * count)),
            "count": count,
        }
    minus_one = pick(draw, (64, 128, 240, 256)) if kind == "holes" else 0
    return {"kind": "permutation", "seed": seed(draw), "size": experts, "minus_one": minus_one}
