"""Cases of `append_shared_experts`, drawn inside a domain."""

from __future__ import annotations

from hypothesis import strategies as st

from . import scores
from .case import Case, TensorSpec
from .domain import AppendDomain
from .draws import Draw, chance, composite, pick, sometimes
from .gate import non_padded
from .ids import IdSpace, ids
from .layouts import with_layout
from .presets import Preset, chosen
from .sizes import Choices, token_limit, tokens

MAX_ELEMENTS = 1 << 18
EXPERTS = Choices(range(1, 4097))
"""Any number of experts will do: it only names the first shared id."""

MOST_TOPK, MOST_SHARED = 64, 20
"""More places than any model has; drawn where the domain sets no lower limit."""


def cases(
    domain: AppendDomain,
    *,
    max_elements: int = MAX_ELEMENTS,
    presets: bool = True,
    preset: str | None = None,
) -> st.SearchStrategy[Case]:
    """Return a strategy of `append_shared_experts` cases inside a domain.

    Parameters
    ----------
    domain : AppendDomain
        What the subject claims to support; its `extra` is left to the caller.
    max_elements : int
        Largest number of output elements, T·(k + S).
    presets : bool
        Shapes of real models are drawn some of the time.
    preset : str, optional
        Only this model's shape is drawn.

    Raises
    ------
    ValueError
        If the domain holds no case, or not the preset.
    """
    for name in ("topk", "shared", "tokens", "shared_forms"):
        if not len(getattr(domain, name)):
            raise ValueError(f"domain is empty: {name} allows no value")
    models = chosen(domain, "append_shared_experts", presets, preset)
    sizes = Choices(domain.topk), Choices(domain.shared)
    return _cases(domain, max_elements, sizes, models, preset is not None)


@composite
def _cases(
    draw: Draw,
    domain: AppendDomain,
    max_elements: int,
    sizes: tuple[Choices, Choices],
    models: tuple[Preset, ...],
    only_models: bool,
) -> Case:
    model = sometimes(draw, models, only_models)
    experts = EXPERTS.draw(draw, 1, 4096)
    topk = sizes[0].draw(draw, domain.topk[0], max(domain.topk[0], min(domain.topk[-1], MOST_TOPK)))
    shared = sizes[1].draw(draw, domain.shared[0], max(domain.shared[0], min(domain.shared[-1], MOST_SHARED)))
    if model is not None:
        experts, topk, shared = model.experts, model.topk, model.shared
    high = token_limit(domain.tokens, topk + shared, max_elements)
    count = tokens(draw, domain.tokens[0], high, domain.thresholds.get("tokens", ()))
    weights = scores.logits(draw, count, scores.Row(topk), most=1)
    form = pick(draw, domain.shared_forms)
    shape = {"matrix": (count, shared), "vector": (count,), "scalar": ()}[form]
    shared_row = scores.Row(max(1, shape[-1]) if shape else 1)
    ids_dtype = pick(draw, domain.ids_dtypes)
    space = IdSpace(experts, wide=ids_dtype == "int64")
    specs = {
        "topk_ids": TensorSpec(ids_dtype, (count, topk), recipe=ids(draw, count, topk, space)),
        "topk_weights": TensorSpec(pick(draw, domain.weights_dtypes), (count, topk), recipe=weights),
        "shared_weights": TensorSpec(
            pick(draw, domain.shared_dtypes),
            shape,
            recipe=scores.logits(draw, _rows(shape), shared_row, most=1),
        ),
    }
    tensors = {name: with_layout(draw, spec, domain.layouts) for name, spec in specs.items()}
    if domain.padding and chance(draw, 4):
        tensors["num_token_non_padded"] = non_padded(draw, count)
    params = {"num_experts": experts, "num_fused_shared_experts": shared}
    return Case("append_shared_experts", params, tensors)


def _rows(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 2 else 1
