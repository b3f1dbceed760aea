"""Recipes: the data that `expand` turns into tensors, and the check that refuses malformed or hostile ones.

A recipe is JSON data with a ``kind``:

- ``scores``: ``{"kind", "seed", "blocks": [...], "edits": [[row, column, value], ...]}``. Row t has the
  pattern of block ``t % len(blocks)``.
- ``ids``: the same with ``"num_experts"``.
- ``permutation``: ``{"kind", "seed", "size", "minus_one"}``: distinct values of [0, size) in random
  order, of which about ``minus_one`` in 256 are replaced by −1.
- ``slice``: ``{"kind", "start", "count"}``: entry i is ``i − start`` inside the slice, −1 outside.

A block is ``{"pattern": name, parameters ...}`` and may put a special value over some elements:
``{"special": value, "where": "one" | "some" | "all", "every": n}`` (in one row of n).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

MAX_BLOCKS = 8
MAX_EDITS = 64
MAX_WIDTH = 8192
"""Widest template: wider rows repeat it, so a table never grows with the shape."""
MAX_EXPERTS = 16384
LIMIT = 1e4
"""Largest centre or spread: sums of a few stay finite in float16."""


class Field(NamedTuple):
    """A parameter: its type and its inclusive bounds, or None for any value."""

    type: str
    low: float | None = None
    high: float | None = None


_COUNT = Field("int", 1, MAX_WIDTH)
_CENTER = Field("number", -LIMIT, LIMIT)
_SPREAD = Field("number", 0, LIMIT)
_SIGN = Field("int", -1, 1)
_ANY = Field("number")
_BOOL = Field("bool")
_EXPERT = Field("int", 0, MAX_EXPERTS - 1)

SCORE_PATTERNS: dict[str, dict[str, Field]] = {
    "constant": {"value": _ANY},
    "levels": {"n": _COUNT, "center": _CENTER, "spread": _SPREAD},
    "normal": {"center": _CENTER, "scale": _SPREAD, "quantised": _BOOL},
    "uniform": {"center": _CENTER, "scale": _SPREAD, "quantised": _BOOL},
    "ulp": {"base": _CENTER, "n": _COUNT},
    "signed_zero": {},
    "denormal": {"n": _COUNT},
    "saturated": {"sign": _SIGN},
    "large": {"sign": _SIGN},
    "boundary_tie": {
        "k": _COUNT,
        "winners": Field("int", 0, MAX_WIDTH),
        "ties": _COUNT,
        "stride": Field("int", 0, MAX_WIDTH),
        "value": _CENTER,
    },
    "planted": {"span": _COUNT, "first": _BOOL},
    "sorted": {"descending": _BOOL, "disorder": Field("int", 0, 64)},
    "group_max": {"groups": _COUNT},
    "group_equal": {"groups": _COUNT},
    "per_group": {"groups": _COUNT, "center": _CENTER, "spread": _SPREAD},
    "mask": {"keep": Field("int", 0, MAX_WIDTH), "fill": _ANY},
}
"""Patterns of floating-point rows, with their parameters; docs in `patterns`."""

ID_PATTERNS: dict[str, dict[str, Field]] = {
    "one": {"expert": _EXPERT},
    "distinct": {},
    "uniform": {},
    "skewed": {"hot": Field("int", 1, MAX_EXPERTS), "share": Field("int", 1, 256)},
    "subset": {"step": Field("int", 1, MAX_EXPERTS), "start": _EXPERT},
    "sorted": {},
    "runs": {"count": Field("int", 1, 1 << 20)},
    "round_robin": {"experts": Field("int", 1, MAX_EXPERTS)},
}
"""Patterns of expert ids, with their parameters; docs in `patterns`."""

WHERES = ("one", "some", "all")
_SEED = Field("int", 0, 2**63 - 1)
_INDEX = Field("int", 0, 2**62)
_ID = Field("int", -(2**62), 2**62)
_FLAT: dict[str, dict[str, Field]] = {
    "permutation": {
        "seed": _SEED,
        "size": Field("int", 1, MAX_EXPERTS),
        "minus_one": Field("int", 0, 256),
    },
    "slice": {"start": _EXPERT, "count": Field("int", 0, MAX_EXPERTS)},
}
KINDS = ("scores", "ids", *_FLAT)


def check_recipe(recipe: Mapping[str, Any]) -> None:
    """Refuse a recipe that is malformed.

    What this accepts bounds everything that an expansion allocates or loops over, besides the tensor itself.

    Raises
    ------
    ValueError
        With the field, its value and what is allowed.
    """
    if not isinstance(recipe, Mapping):
        raise ValueError(f"recipe is {recipe!r:.80}; allowed: an object")
    kind = recipe.get("kind")
    if kind not in KINDS:
        raise ValueError(f"recipe.kind is {kind!r:.80}; allowed: {', '.join(KINDS)}")
    if kind in _FLAT:
        _check_fields("recipe", recipe, {"kind": None, **_FLAT[kind]})
        return
    ids = kind == "ids"
    expected: dict[str, Field | None] = {"kind": None, "seed": _SEED, "blocks": None, "edits": None}
    if ids:
        expected["num_experts"] = Field("int", 1, MAX_EXPERTS)
    _check_fields("recipe", recipe, expected)
    blocks, edits = recipe["blocks"], recipe["edits"]
    patterns, special = (ID_PATTERNS, _ID) if ids else (SCORE_PATTERNS, _ANY)
    if not isinstance(blocks, list | tuple) or not 1 <= len(blocks) <= MAX_BLOCKS:
        raise ValueError(f"recipe.blocks is {blocks!r:.80}; allowed: a list of 1 to {MAX_BLOCKS} blocks")
    for i, block in enumerate(blocks):
        _check_block(f"recipe.blocks[{i}]", block, patterns, special)
    if not isinstance(edits, list | tuple) or len(edits) > MAX_EDITS:
        raise ValueError(f"recipe.edits is {edits!r:.80}; allowed: a list of at most {MAX_EDITS} edits")
    for i, edit in enumerate(edits):
        if not isinstance(edit, list | tuple) or len(edit) != 3:
            raise ValueError(f"recipe.edits[{i}] is {edit!r:.80}; allowed: [row, column, value]")
        for name, value, field in zip(("row", "column", "value"), edit, (_INDEX, _INDEX, special), strict=True):
            _check_value(f"recipe.edits[{i}].{name}", value, field)


def _check_block(path: str, block: Any, patterns: Mapping[str, Mapping[str, Field]], special: Field) -> None:
    if not isinstance(block, Mapping):
        raise ValueError(f"{path} is {block!r:.80}; allowed: an object")
    name = block.get("pattern")
    if not isinstance(name, str) or name not in patterns:
        raise ValueError(f"{path}.pattern is {name!r:.80}; allowed: {', '.join(patterns)}")
    expected: dict[str, Field | None] = {"pattern": None, **patterns[name]}
    if "special" in block:
        expected |= {"special": special, "where": None, "every": Field("int", 1, 2**31)}
    _check_fields(path, block, expected)
    if "special" in block and block["where"] not in WHERES:
        raise ValueError(f"{path}.where is {block['where']!r:.80}; allowed: {', '.join(WHERES)}")


def _check_fields(path: str, data: Mapping[str, Any], expected: Mapping[str, Field | None]) -> None:
    if missing := expected.keys() - data.keys():
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}")
    if unknown := data.keys() - expected.keys():
        raise ValueError(f"{path} has {', '.join(sorted(map(repr, unknown)))}; allowed: {', '.join(expected)}")
    for name, field in expected.items():
        if field is not None:
            _check_value(f"{path}.{name}", data[name], field)


def _check_value(path: str, value: Any, field: Field) -> None:
    types = {"int": (int,), "number": (int, float), "bool": (bool,)}[field.type]
    good = type(value) in types
    if good and field.type == "number" and type(value) is int:
        good = abs(value) < 2**128  # what float() takes without overflow
    if good and field.low is not None and field.high is not None:
        good = field.low <= value <= field.high
    if not good:
        bounds = "" if field.low is None else f" from {field.low} to {field.high}"
        raise ValueError(f"{path} is {value!r:.80}; allowed: {field.type}{bounds}")
