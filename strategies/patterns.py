"""What a pattern of a recipe means: a small table of values a block, and how elements pick their entry.

Tables are made on the host, in float64, from exactly rounded operations only, and rounded once. An element of
a float tensor is ``values[i] + jitter[i] * z``, z being random bits of that element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .recipe import MAX_WIDTH
from .rng import BITS, host_bits, host_permutation

RANDOM, PERMUTED, FLAT = 0, 1, 2
"""How an element picks its entry: at random, by its permuted column, or by its flat index."""
UNIT = 1.0 / (1 << BITS)
NO_JITTER = -0.0
"""x + (-0.0 * z) is x for every x, -0.0 included, as z >= 0."""

_FINITE_MAX = {
    torch.float32: 2.0**128 - 2.0**104,
    torch.bfloat16: 2.0**128 - 2.0**120,
    torch.float16: 65504.0,
}
_SMALLEST = {torch.float32: 2.0**-149, torch.bfloat16: 2.0**-133, torch.float16: 2.0**-24}
_FRACTION_BITS = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}
_MIN_EXPONENT = {torch.float32: -126, torch.bfloat16: -126, torch.float16: -14}


@dataclass
class Template:
    """One block's table.

    Attributes
    ----------
    values : numpy.ndarray
        Entries, float64 or int64.
    jitter : numpy.ndarray, optional
        What random bits are multiplied with, float64, one an entry.
    mode : int
        `RANDOM`, `PERMUTED` or `FLAT`.
    unit : int
        Rows are rotated by random multiples of this (`PERMUTED`); 0: never.
    scatter : bool
        Columns go to random places (`PERMUTED`).
    bell : bool
        Random bits are the sum of three draws (normal-like) rather than one (uniform).
    quantised : bool
        Values are rounded to bfloat16.
    flat : tuple of int
        (multiplier, divisor, modulus) that turn a flat index into an entry (`FLAT`).
    """

    values: np.ndarray
    jitter: np.ndarray | None = None
    mode: int = RANDOM
    unit: int = 0
    scatter: bool = False
    bell: bool = False
    quantised: bool = False
    flat: tuple[int, int, int] = (1, 1, 1)


@dataclass(frozen=True)
class Context:
    """What a pattern may depend on besides its parameters."""

    width: int
    dtype: torch.dtype
    seed: int


def clamp_finite(values: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """Return the values with finite ones brought into the range of `dtype`, so that none turns infinite."""
    limit = _FINITE_MAX[dtype]
    if (np.abs(values) <= limit).all():
        return values
    return np.where(np.isinf(values), values, np.minimum(np.maximum(values, -limit), limit))


def score_template(block: Mapping[str, Any], context: Context) -> Template:
    """Return the table of a block of a ``scores`` recipe."""
    return _SCORES[block["pattern"]](block, context)


def id_template(block: Mapping[str, Any], context: Context, experts: int, elements: int) -> Template:
    """Return the table of a block of an ``ids`` recipe.

    Parameters
    ----------
    block, context
        The block, and what it may depend on.
    experts : int
        Number of experts.
    elements : int
        Elements in the rows of this block.
    """
    ids = np.arange(experts, dtype=np.int64)
    match block["pattern"]:
        case "one":  # every id is `expert`
            return Template(ids[[min(block["expert"], experts - 1)]])
        case "distinct":  # the ids of a row are distinct, as those of a real top-k
            return Template(ids, mode=PERMUTED, unit=1, scatter=True)
        case "skewed":  # `share` in 256 go to `hot` experts, the rest anywhere
            order = host_permutation(context.seed, experts)
            classes = (host_bits(context.seed + 1, 4096) % np.uint64(experts)).astype(np.int64)
            busy = block["share"] * 16
            classes[:busy] = order[np.arange(busy) % min(block["hot"], experts)]
            return Template(classes)
        case "subset":  # only experts start, start + step, …: the others stay empty
            return Template(ids[min(block["start"], experts - 1) :: block["step"]])
        case "sorted":  # ids ascend over the whole tensor
            return Template(ids, mode=FLAT, flat=(experts, max(elements, 1), experts))
        case "runs":  # each expert has exactly `count` ids in a row, while they last
            return Template(ids, mode=FLAT, flat=(1, block["count"], experts))
        case "round_robin":  # 0, 1, …, m−1, 0, 1, …
            return Template(ids, mode=FLAT, flat=(1, 1, min(block["experts"], experts)))
        case _:  # "uniform": any id, duplicates included
            return Template(ids)


def _quiet(count: int) -> np.ndarray:
    return np.full(count, NO_JITTER)


def _constant(p: Mapping[str, Any], c: Context) -> Template:
    """One value everywhere."""
    return Template(np.array([float(p["value"])]))


def _levels(p: Mapping[str, Any], c: Context) -> Template:
    """`n` levels, `spread` from the lowest to the highest, around `center`."""
    n = p["n"]
    steps = np.arange(n) / max(n - 1, 1) - (0.5 if n > 1 else 0.0)
    return Template(p["center"] + p["spread"] * steps)


def _normal(p: Mapping[str, Any], c: Context) -> Template:
    """Normal-like: a sum of three uniforms with mean `center` and standard deviation `scale`."""
    scale = float(p["scale"])
    return Template(
        np.array([p["center"] - 3 * scale]), np.array([2 * scale * UNIT]), bell=True, quantised=p["quantised"]
    )


def _uniform(p: Mapping[str, Any], c: Context) -> Template:
    """Uniform in `center` ± `scale`."""
    scale = float(p["scale"])
    return Template(np.array([p["center"] - scale]), np.array([2 * scale * UNIT]), quantised=p["quantised"])


def ulp_of(value: float, dtype: torch.dtype) -> float:
    """Return the distance from |value| to the next larger number of `dtype`."""
    exponent = max(int(np.frexp(abs(value))[1]) - 1, _MIN_EXPONENT[dtype]) if value else _MIN_EXPONENT[dtype]
    return float(np.ldexp(1.0, exponent - _FRACTION_BITS[dtype]))


def _ulp(p: Mapping[str, Any], c: Context) -> Template:
    """`n` neighbouring numbers of the dtype, upwards in magnitude from `base`."""
    step = ulp_of(p["base"], c.dtype)
    start = np.rint(abs(p["base"]) / step) * step
    values = start + step * np.arange(p["n"])
    return Template(-values if p["base"] < 0 else values)


def _signed_zero(p: Mapping[str, Any], c: Context) -> Template:
    """+0 and −0, which compare equal."""
    return Template(np.array([0.0, -0.0]))


def _denormal(p: Mapping[str, Any], c: Context) -> Template:
    """`n` smallest denormals of the dtype, of either sign."""
    values = np.arange(1, p["n"] + 1) * _SMALLEST[c.dtype]
    largest = np.ldexp(1.0, _MIN_EXPONENT[c.dtype]) - _SMALLEST[c.dtype]
    values = np.minimum(values, largest)
    return Template(np.concatenate([values, -values]))


def _signed(magnitudes: np.ndarray, sign: int) -> np.ndarray:
    return sign * magnitudes if sign else np.concatenate([magnitudes, -magnitudes])


def _saturated(p: Mapping[str, Any], c: Context) -> Template:
    """Magnitudes 17 … 100, where a float32 sigmoid is 1, or next to 0."""
    return Template(_signed(17 + 83 * np.arange(512) / 511, p["sign"]))


def _large(p: Mapping[str, Any], c: Context) -> Template:
    """Powers of two from 2^8 up, and the dtype's largest number."""
    limit = _FINITE_MAX[c.dtype]
    exponents = np.arange(8, int(np.frexp(limit)[1]))
    return Template(_signed(np.append(np.ldexp(1.0, exponents), [limit, limit]), p["sign"]))


def _boundary_tie(p: Mapping[str, Any], c: Context) -> Template:
    """`winners` clear winners, then `ties` exact ties at `value`, then clear losers.

    ``stride`` says where ranks lie: 0 at random, s at ids s apart (1 side by side, 4 or 8 in one vector each,
    32 in one lane of each warp, 33 in another lane and warp each, E/G in one group each).
    """
    width = c.width
    gap = max(1.0, abs(p["value"]) / 16)
    winners = min(p["winners"], width)
    ties = min(p["ties"], width - winners)
    values = np.full(width, p["value"] - gap)
    jitter = np.full(width, -gap * UNIT)
    values[:winners], jitter[:winners] = p["value"] + gap, gap * UNIT
    values[winners : winners + ties], jitter[winners : winners + ties] = p["value"], NO_JITTER
    if not p["stride"]:
        return Template(values, jitter, PERMUTED, unit=1, scatter=True)
    ids = np.arange(width)
    order = np.argsort(ids % p["stride"] * width + ids // p["stride"], kind="stable")
    rank = np.empty(width, dtype=np.int64)
    rank[order] = ids
    return Template(values[rank], jitter[rank], PERMUTED, unit=1)


def _planted(p: Mapping[str, Any], c: Context) -> Template:
    """Plant the winners: the last (or first) `span` ids beat all others."""
    ids = np.arange(c.width)
    wins = ids < p["span"] if p["first"] else ids >= c.width - p["span"]
    values = np.where(wins, 1.0, -2.0)
    return Template(values, np.full(c.width, UNIT), PERMUTED)


def _sorted(p: Mapping[str, Any], c: Context) -> Template:
    """Ascending or descending over the ids; `disorder` says by how many places an element may stray."""
    step = 8.0 / c.width
    values = (np.arange(c.width) * step) - 4.0
    jitter = np.full(c.width, p["disorder"] * step * UNIT) if p["disorder"] else _quiet(c.width)
    return Template(values[::-1].copy() if p["descending"] else values, jitter, PERMUTED)


def _group_max(p: Mapping[str, Any], c: Context) -> Template:
    """Each group has two equal maxima, of one of three levels; the rest lies below."""
    size = max(c.width // p["groups"], 1)
    values, jitter = np.full(c.width, -2.0), np.full(c.width, UNIT)
    starts = np.arange(0, c.width, size)
    bits = host_bits(c.seed, len(starts))
    for shift in (0, 1):
        place = starts + ((bits >> np.uint64(8)) + np.uint64(shift)).astype(np.int64) % size
        place = np.minimum(place, c.width - 1)
        values[place], jitter[place] = (bits % np.uint64(3)).astype(np.float64) / 2, NO_JITTER
    return Template(values, jitter, PERMUTED, unit=size)


def _group_equal(p: Mapping[str, Any], c: Context) -> Template:
    """Every group holds the same values, each in another order."""
    size = max(c.width // p["groups"], 1)
    ids = np.arange(c.width)
    return Template(-1.0 * ((ids + ids // size) % size) / size, _quiet(c.width), PERMUTED, unit=size)


def _per_group(p: Mapping[str, Any], c: Context) -> Template:
    """One value a group, of five levels."""
    size = max(c.width // p["groups"], 1)
    ids = np.arange(c.width)
    level = (host_bits(c.seed, c.width) % np.uint64(5)).astype(np.float64) / 4 - 0.5
    return Template(p["center"] + p["spread"] * level[ids // size], _quiet(c.width), PERMUTED, unit=size)


def _mask(p: Mapping[str, Any], c: Context) -> Template:
    """`keep` normal values at random places, `fill` elsewhere."""
    values, jitter = np.full(c.width, float(p["fill"])), _quiet(c.width)
    values[: p["keep"]], jitter[: p["keep"]] = -1.0, 2 * UNIT
    return Template(values, jitter, PERMUTED, unit=1, scatter=True)


_SCORES: dict[str, Callable[[Mapping[str, Any], Context], Template]] = {
    "constant": _constant,
    "levels": _levels,
    "normal": _normal,
    "uniform": _uniform,
    "ulp": _ulp,
    "signed_zero": _signed_zero,
    "denormal": _denormal,
    "saturated": _saturated,
    "large": _large,
    "boundary_tie": _boundary_tie,
    "planted": _planted,
    "sorted": _sorted,
    "group_max": _group_max,
    "group_equal": _group_equal,
    "per_group": _per_group,
    "mask": _mask,
}


def table_width(width: int) -> int:
    """Return the number of columns after which a template repeats."""
    return max(1, min(width, MAX_WIDTH))
