"""Cases of `fused_gate`, drawn inside a domain."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from . import scores
from .case import DTYPES, Case, TensorSpec
from .domain import GateDomain
from .draws import Draw, chance, composite, integer, pick, seed, sometimes
from .layouts import with_layout
from .presets import Preset, Shape, chosen, model_shapes
from .recipe import MAX_EXPERTS
from .sizes import Choices, token_limit, tokens

MAX_ELEMENTS = 1 << 18
VECTOR = 8
"""Experts that the widest vector load takes, of 16-bit logits."""
USUAL_SCORINGS = ("sigmoid", "softmax")
SCALES = (1.0, 2.5, 2.827, 0.5, 1.0 / 3.0, 16.0)


def cases(
    domain: GateDomain,
    *,
    max_elements: int = MAX_ELEMENTS,
    presets: bool = True,
    preset: str | None = None,
) -> st.SearchStrategy[Case]:
    """Return a strategy of `fused_gate` cases inside a domain.

    Parameters
    ----------
    domain : GateDomain
        What the subject claims to support; its `extra` is left to the caller.
    max_elements : int
        Largest number of logits, T·E, as far as the domain's smallest T and E allow.
    presets : bool
        Shapes of real models are drawn some of the time.
    preset : str, optional
        Only this model's shape is drawn.

    Raises
    ------
    ValueError
        If the domain holds no case, or not the preset.
    """
    space = Space(domain, max_elements)
    models = chosen(domain, "fused_gate", presets, preset)
    return _cases(space, models, preset is not None)


class Space:
    """The shapes that a domain allows, found once.

    Parameters
    ----------
    domain : GateDomain
        The domain.
    max_elements : int
        Largest T·E.
    """

    def __init__(self, domain: GateDomain, max_elements: int) -> None:
        self.domain = domain
        self.max_elements = max_elements
        if not len(domain.topk) or not len(domain.shared) or not len(domain.tokens):
            raise ValueError("domain is empty: topk, shared or tokens allow no value")
        self.topk = Choices(domain.topk, domain.thresholds.get("topk", ()))
        # Fewest routed places that any allowed k and S leave.
        self.least_routed = min((k - s for s in domain.shared for k in domain.topk if k > s), default=MAX_EXPERTS)
        experts = [e for e in domain.experts if e <= max_elements and self.groupings(e)]
        if not experts:
            raise ValueError(
                f"domain is empty: no E of {domain.experts!r:.60} up to {max_elements} fits groups and topk"
            )
        self.experts = Choices(experts, domain.thresholds.get("experts", ()))

    def groupings(self, experts: int) -> list[tuple[int, int, int]]:
        """Return the allowed (G, smallest g, largest g) for E experts, ungrouped first."""
        domain, least = self.domain, self.least_routed
        if experts < least:
            return []
        if domain.groups == "none":
            return [(1, 1, 1)]
        if isinstance(domain.groups, tuple):
            return [(G, g, g) for G, g in domain.groups if experts % G == 0 and g * (experts // G) >= least]
        low, high = -(-experts // domain.max_experts_per_group), min(experts, domain.max_groups)
        return [(G, -(-least * G // experts), G) for G in _divisors(experts) if low <= G <= high]

    def draw(self, draw: Draw, model: Preset | None, *, usual: bool = False) -> tuple[int, Shape]:
        """Draw T and the shape; shrinks towards the smallest, ungrouped and without shared experts.

        A model takes as many choices as any shape, so that shrinking can leave it. `usual` sizes are multiples of
        `VECTOR` where the domain has them.
        """
        experts = self.experts.draw(draw, 1, MAX_EXPERTS)
        if usual:
            experts = self.rounded(experts)
        if model is not None:
            experts = model.experts
        allowed = self.domain.tokens
        high = token_limit(allowed, experts, self.max_elements)
        count = tokens(draw, allowed[0], high, self.domain.thresholds.get("tokens", ()))
        groupings = self.groupings(experts)
        if usual:
            groupings = [g for g in groupings if experts // g[0] % VECTOR == 0] or groupings
        # The first, ungrouped or without shared experts, half of the time.
        groups, low, high = pick(draw, [*groupings[:1] * (len(groupings) - 1), *groupings])
        topk_group = integer(draw, low, high)
        most = topk_group * (experts // groups)
        if self.domain.max_routed is not None:
            most = min(most, self.domain.max_routed(groups, topk_group))
        choices = [s for s in self.domain.shared if self.topk.within(s + 1, s + most)]
        shared = pick(draw, [*choices[:1] * len(choices), *choices])
        topk = self.topk.draw(draw, shared + 1, shared + most)
        # Every expert of the kept groups: nothing is left over to compare with.
        if chance(draw, 8) and self.topk.within(shared + most, shared + most):
            topk = shared + most
        if model is not None:
            return count, model_shapes(model, self.domain)[-1 if shared else 0]
        return count, Shape(experts, topk, shared, groups, topk_group)

    def rounded(self, experts: int) -> int:
        """Return the largest multiple of `VECTOR` up to E, at least one, or E where the domain has no such number."""
        down = max(experts - experts % VECTOR, VECTOR)
        allowed = down in self.domain.experts and down <= self.max_elements and bool(self.groupings(down))
        return down if allowed else experts


def _divisors(n: int) -> list[int]:
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


@composite
def _cases(draw: Draw, space: Space, models: tuple[Preset, ...], only_models: bool) -> Case:
    domain = space.domain
    model = sometimes(draw, models, only_models)
    # As in production: the sizes, layouts and scorings that kernels are made for. The other half is anything.
    usual = chance(draw, 2)
    count, shape = space.draw(draw, model, usual=usual)
    scorings = [s for s in domain.scorings if not usual or s in USUAL_SCORINGS] or domain.scorings
    scoring, renormalize = pick(draw, scorings), pick(draw, domain.renormalize)
    scale = pick(draw, SCALES)
    if model is not None:
        scoring, renormalize, scale = model.scoring, model.renormalize, model.scale
    params: dict[str, Any] = {
        "topk": shape.topk,
        "scoring": scoring,
        "num_expert_group": shape.groups,
        "topk_group": shape.topk_group,
        "renormalize": renormalize,
        "routed_scaling_factor": scale if domain.scale else 1.0,
        "apply_routed_scaling_factor_on_output": pick(draw, domain.scale_on_output),
        "num_fused_shared_experts": shape.shared,
    }
    return Case("fused_gate", params, _tensors(draw, domain, count, shape, model, usual))


def _tensors(
    draw: Draw, domain: GateDomain, count: int, shape: Shape, model: Preset | None, usual: bool
) -> dict[str, TensorSpec]:
    row = scores.Row(shape.experts, shape.topk - shape.shared, shape.groups, nan=domain.nan, inf=domain.inf)
    dtypes = domain.logits_dtypes
    if domain.bias == "required" and domain.bias_same_dtype:
        dtypes = tuple(d for d in dtypes if d in domain.bias_dtypes)
    dtype = model.dtype if model is not None and model.dtype in dtypes else pick(draw, dtypes)
    spec = TensorSpec(dtype, (count, shape.experts), recipe=scores.logits(draw, count, row))
    tensors = {"logits": with_layout(draw, spec, domain.layouts, usual=usual)}
    bias_dtypes = tuple(d for d in domain.bias_dtypes if d == dtype or not domain.bias_same_dtype)
    if _has_bias(draw, domain, model, bias_dtypes):
        recipe, bias_dtype = scores.bias(draw, row), pick(draw, bias_dtypes)
        recipe = scores.masked_lower(draw, recipe, torch.finfo(DTYPES[bias_dtype]).min)
        tensors["bias"] = TensorSpec(bias_dtype, (shape.experts,), recipe=recipe)
    if domain.padding and chance(draw, 4):
        tensors["num_token_non_padded"] = non_padded(draw, count)
    if domain.expert_map and chance(draw, 4):
        tensors["expert_map"] = _expert_map(draw, shape.experts + shape.shared)
    return tensors


def _has_bias(draw: Draw, domain: GateDomain, model: Preset | None, dtypes: tuple[str, ...]) -> bool:
    if domain.bias != "optional" or not dtypes:
        return domain.bias == "required"
    return model.bias if model is not None else pick(draw, (False, True))


def non_padded(draw: Draw, count: int) -> TensorSpec:
    """Draw `num_token_non_padded` for T tokens: all, none, one, all but one, more than there are, or any."""
    value = pick(draw, (count, 0, min(1, count), max(count - 1, 0), count + 3, None))
    if value is None:
        value = integer(draw, 0, count)
    return TensorSpec("int32", pick(draw, ((), (1,))), rows=(value,))


def _expert_map(draw: Draw, count: int) -> TensorSpec:
    """Draw an injective map: the identity, a permutation, or one into a larger range of physical ids."""
    recipe: dict[str, Any] = {"kind": "slice", "start": 0, "count": count}
    size_of_range = pick(draw, (0, count, count + 1, 2 * count))
    if size_of_range:
        recipe = {"kind": "permutation", "seed": seed(draw), "size": size_of_range, "minus_one": 0}
    return TensorSpec("int32", (count,), recipe=recipe)
