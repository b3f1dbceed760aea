"""Drawing recipes of logits, biases and weights: structure, not floats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .draws import Draw, chance, integer, pick, seed
from .recipe import MAX_WIDTH

Block = dict[str, Any]

CENTERS = (0.0, 1.0, -1.0, -8.0, 8.0)
SPREADS = (1.0, 0.125, 4.0, 16.0)
TIE_VALUES = (0.0, 1.0, -1.0, 0.5, -6.0, 12.0)
CONSTANTS = (0.0, -0.0, 1.0, -1.0, 0.1, 40.0, -40.0, -100.0)
# The middle of a binade, where neighbours are equally far apart, and numbers whose sigmoids are close.
ULP_BASES = (1.25, -1.25, 0.1, 6.5, -6.5, 0.0)
EDITS = (0.0, -0.0, 1.0, -1.0, 5.0, -100.0, 88.0)
EVERY = (1, 2, 3, 7)


@dataclass(frozen=True)
class Row:
    """What a row of scores is for.

    Attributes
    ----------
    width : int
        Elements in a row.
    places : int
        How many of them will be chosen.
    groups : int
        Number of groups.
    nan, inf : bool
        NaN and infinities may be drawn.
    """

    width: int
    places: int = 1
    groups: int = 1
    nan: bool = True
    inf: bool = True

    @property
    def specials(self) -> list[float]:
        """The non-finite values that may be drawn."""
        return [math.nan] * self.nan + [-math.inf, math.inf] * self.inf


def _constant(draw: Draw, row: Row) -> Block:
    return {"pattern": "constant", "value": pick(draw, [*CONSTANTS, *row.specials])}


def _levels(draw: Draw, row: Row) -> Block:
    return {
        "pattern": "levels",
        "n": pick(draw, (2, 3, 5, 16, 64)),
        "center": pick(draw, CENTERS),
        "spread": pick(draw, SPREADS),
    }


def _boundary_tie(draw: Draw, row: Row) -> Block:
    """Draw a tie across the last place: some tied elements are chosen and some are not."""
    if row.places >= row.width:
        return _levels(draw, row)
    winners = row.places - 1 - integer(draw, 0, row.places - 1)
    extra = integer(draw, 1, min(row.width - row.places, 64))
    size = max(row.width // row.groups, 1)
    return {
        "pattern": "boundary_tie",
        "k": row.places,
        "winners": winners,
        "ties": row.places - winners + extra,
        "stride": pick(draw, (0, 1, 4, 8, 32, 33, min(size, MAX_WIDTH))),
        "value": pick(draw, TIE_VALUES),
    }


def _normal(draw: Draw, row: Row) -> Block:
    return {
        "pattern": "normal",
        "center": pick(draw, CENTERS),
        "scale": pick(draw, SPREADS),
        "quantised": pick(draw, (False, True)),
    }


def _uniform(draw: Draw, row: Row) -> Block:
    return {**_normal(draw, row), "pattern": "uniform"}


def _ulp(draw: Draw, row: Row) -> Block:
    return {"pattern": "ulp", "base": pick(draw, ULP_BASES), "n": pick(draw, (2, 3, 8, 32))}


def _signed_zero(draw: Draw, row: Row) -> Block:
    return {"pattern": "signed_zero"}


def _denormal(draw: Draw, row: Row) -> Block:
    return {"pattern": "denormal", "n": pick(draw, (1, 4, 100))}


def _saturated(draw: Draw, row: Row) -> Block:
    return {"pattern": "saturated", "sign": pick(draw, (1, -1, 0))}


def _large(draw: Draw, row: Row) -> Block:
    return {"pattern": "large", "sign": pick(draw, (1, -1, 0))}


def _planted(draw: Draw, row: Row) -> Block:
    """Plant winners in the last (or first) expert, vector, warp or group, or exactly enough of them."""
    spans = (1, 4, 32, max(row.width // row.groups, 1), row.places)
    span = min(pick(draw, spans), row.width, MAX_WIDTH)
    return {"pattern": "planted", "span": span, "first": pick(draw, (False, True))}


def _sorted(draw: Draw, row: Row) -> Block:
    return {
        "pattern": "sorted",
        "descending": pick(draw, (False, True)),
        "disorder": pick(draw, (0, 2, 16)),
    }


def _grouped(name: str) -> Callable[[Draw, Row], Block]:
    def block(draw: Draw, row: Row) -> Block:
        return {"pattern": name, "groups": min(row.groups, MAX_WIDTH)}

    return block


def _per_group(draw: Draw, row: Row) -> Block:
    return {
        "pattern": "per_group",
        "groups": min(row.groups, MAX_WIDTH),
        "center": pick(draw, CENTERS),
        "spread": pick(draw, SPREADS),
    }


def _mask(draw: Draw, row: Row) -> Block:
    """Leave only few elements: as many as are chosen, one less, one more, or none."""
    keep = pick(draw, (row.places, max(row.places - 1, 0), row.places + 1, 1, 0))
    return {
        "pattern": "mask",
        "keep": min(keep, MAX_WIDTH),
        "fill": pick(draw, [-math.inf, -50.0] if row.inf else [-50.0]),
    }


_UNGROUPED: tuple[Callable[[Draw, Row], Block], ...] = (
    _constant,
    _levels,
    _boundary_tie,
    _boundary_tie,
    _normal,
    _normal,
    _uniform,
    _ulp,
    _ulp,
    _signed_zero,
    _denormal,
    _saturated,
    _large,
    _planted,
    _sorted,
    _mask,
)
_GROUPED = (_constant, _grouped("group_max"), _grouped("group_equal"), _per_group, *_UNGROUPED[1:])


def _special(draw: Draw, row: Row, once_in: int) -> Block:
    """Draw a non-finite value over some elements, once in a while."""
    specials = row.specials
    if not specials or not chance(draw, once_in):
        return {}
    return {
        "special": pick(draw, specials),
        "where": pick(draw, ("all", "one", "some")),
        "every": pick(draw, EVERY),
    }


def edits(draw: Draw, rows: int, width: int, values: Sequence[float]) -> list[list[Any]]:
    """Draw up to two single elements to overwrite."""
    if not rows or not width:
        return []
    count = max(0, integer(draw, 0, 5) - 3)
    return [[integer(draw, 0, rows - 1), integer(draw, 0, width - 1), pick(draw, values)] for _ in range(count)]


def logits(draw: Draw, rows: int, row: Row, most: int = 3) -> dict[str, Any]:
    """Draw a recipe for `rows` rows of logits, of up to `most` patterns."""
    patterns = _GROUPED if row.groups > 1 else _UNGROUPED
    blocks = []
    for _ in range(integer(draw, 1, max(1, min(rows, most)))):
        block = pick(draw, patterns)(draw, row)
        blocks.append({**block, **_special(draw, row, 6)})
    return {
        "kind": "scores",
        "seed": seed(draw),
        "blocks": blocks,
        "edits": edits(draw, rows, row.width, [*EDITS, *row.specials]),
    }


def _small_bias(draw: Draw, row: Row) -> Block:
    return {
        "pattern": "normal",
        "center": pick(draw, (0.0, -5.0, 5.0)),
        "scale": pick(draw, (0.125, 0.01, 0.5)),
        "quantised": pick(draw, (False, True)),
    }


def _constant_bias(draw: Draw, row: Row) -> Block:
    return {"pattern": "constant", "value": pick(draw, (0.0, -0.0, -2.0, -1e4, 1e30, -1e30))}


_BIASES: tuple[Callable[[Draw, Row], Block], ...] = (
    _constant_bias,
    _small_bias,
    _small_bias,
    _levels,
    _large,
    _planted,
    _mask,
)


def bias(draw: Draw, row: Row) -> dict[str, Any]:
    """Draw a recipe for a bias of `row.width` experts."""
    patterns = (*_BIASES, _per_group) if row.groups > 1 else _BIASES
    block = {**pick(draw, patterns)(draw, row), **_special(draw, row, 8)}
    if "every" in block:
        block["every"] = 1
    return {"kind": "scores", "seed": seed(draw), "blocks": [block], "edits": []}


def masked_lower(draw: Draw, recipe: dict[str, Any], lowest: float) -> dict[str, Any]:
    """Return a bias whose mask, if it is finite, is now and then `lowest`: its dtype's lowest number, as code masks."""
    (block,) = recipe["blocks"]
    if block["pattern"] != "mask" or not math.isfinite(block["fill"]) or not chance(draw, 2):
        return recipe
    return {**recipe, "blocks": [{**block, "fill": lowest}]}
