"""What a case exercises, as short labels: for coverage summaries and `hypothesis.event`."""

from __future__ import annotations

from typing import Any

from .case import Case, TensorSpec
from .layouts import layouts_of

_ABSENT = "none"
_EXACT_TIES = {"boundary_tie", "group_max", "group_equal", "signed_zero", "constant", "levels"}
_NEAR_TIES = {"ulp", "denormal", "saturated"}


def labels(case: Case) -> dict[str, str]:
    """Return the labels of a case, by name.

    Returns
    -------
    dict of str to str
        ``patterns``, ``sizes``, ``dtypes``, ``layout`` and ``flags`` for every op; ``ties`` for `fused_gate`;
        ``block`` for `moe_align_block_size`.
    """
    main = next(iter(case.tensors.values()))
    found = {
        "patterns": "+".join(sorted(patterns_of(main))),
        "sizes": " ".join(f"{n}={size_class(v)}" for n, v in _sizes(case).items()),
        "dtypes": " ".join(f"{n}={t.dtype}" for n, t in case.tensors.items() if n != "num_token_non_padded"),
        "layout": "+".join(sorted(set().union(*map(layouts_of, case.tensors.values())))) or "contiguous",
        "flags": "+".join(_flags(case)) or _ABSENT,
    }
    if case.op == "fused_gate":
        found["ties"] = _tie_class(patterns_of(main))
    elif case.op == "moe_align_block_size":
        found["block"] = size_class(_integer(case, "block_size"))
    return found


def patterns_of(spec: TensorSpec) -> set[str]:
    """Return the names of a tensor's patterns, those with a special value marked; ``literal`` for rows."""
    if spec.rows is not None:
        return {"literal"}
    recipe: Any = spec.recipe
    blocks = recipe.get("blocks")
    if blocks is None:
        return {recipe["kind"]}
    names = {b["pattern"] + (f"({b['special']} {b['where']})" if "special" in b else "") for b in blocks}
    return names | ({"edited"} if recipe["edits"] else set())


def size_class(n: int) -> str:
    """Return the class of a size: exact up to 4, then by powers of two, with ``±1`` marked.

    Examples
    --------
    >>> [size_class(n) for n in (0, 3, 31, 32, 33, 100)]
    ['0', '3', '2^5-1', '2^5', '2^5+1', '2^6..2^7']
    """
    if n <= 4:
        return str(n)
    for step in (0, 1, -1):
        if (n - step) & (n - step - 1) == 0:
            return f"2^{(n - step).bit_length() - 1}" + {0: "", 1: "+1", -1: "-1"}[step]
    low = n.bit_length() - 1
    return f"2^{low}..2^{low + 1}"


def _integer(case: Case, name: str, default: int = 0) -> int:
    value = case.params.get(name, default)
    return value if isinstance(value, int) else default


def _sizes(case: Case) -> dict[str, int]:
    rows, columns = (*next(iter(case.tensors.values())).shape, 1, 1)[:2]
    if case.op == "fused_gate":
        sizes = {"T": rows, "E": columns, "k": _integer(case, "topk")}
        groups = _integer(case, "num_expert_group", 1)
        return {**sizes, "G": groups} if groups > 1 else sizes
    sizes = {"T": rows, "k": columns, "E": _integer(case, "num_experts")}
    if case.op == "append_shared_experts":
        sizes["S"] = _integer(case, "num_fused_shared_experts", 1)
    return sizes


def _flags(case: Case) -> list[str]:
    p = case.params
    flags = {
        str(p.get("scoring")): "scoring" in p,
        "renormalize": p.get("renormalize") is True,
        "scale": p.get("routed_scaling_factor", 1.0) != 1.0,
        "on_output": p.get("apply_routed_scaling_factor_on_output") is True,
        "shared": case.op == "fused_gate" and _integer(case, "num_fused_shared_experts") > 0,
        "bias": "bias" in case.tensors,
        "padding": "num_token_non_padded" in case.tensors,
        "map": "expert_map" in case.tensors,
    }
    return [name for name, on in flags.items() if on]


def _tie_class(names: set[str]) -> str:
    plain = {n.partition("(")[0] for n in names}
    if "boundary_tie" in plain:
        return "boundary"
    if plain & _EXACT_TIES:
        return "exact"
    return "near" if plain & _NEAR_TIES else "rare"
