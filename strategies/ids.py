"""Drawing recipes of expert ids, as `moe_align_block_size` and `append_shared_experts` take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .draws import Draw, chance, integer, pick, seed
from .scores import EVERY, Block, edits


@dataclass(frozen=True)
class IdSpace:
    """What ids may be.

    Attributes
    ----------
    experts : int
        E.
    block_size : int
        B, for counts of exactly B, B − 1 and B + 1.
    minus_one : bool
        Ids of −1 may be drawn.
    out_of_range : bool
        Ids outside [−1, E−1] may be drawn.
    wide : bool
        Ids are int64: some invalid ones look valid in their low 32 bits.
    """

    experts: int
    block_size: int = 1
    minus_one: bool = True
    out_of_range: bool = True
    wide: bool = False

    @property
    def specials(self) -> list[int]:
        """The ids that name no expert and may be drawn."""
        invalid = [self.experts, self.experts + 1, -2, 2**31 - 1, -(2**31)]
        invalid += [2**32, 2**32 + self.experts - 1, -(2**32)] * self.wide
        return [-1, -1, -1] * self.minus_one + invalid * self.out_of_range


def _one(draw: Draw, space: IdSpace) -> Block:
    last = space.experts - 1
    return {"pattern": "one", "expert": pick(draw, (0, last, last // 2))}


def _plain(name: str) -> Callable[[Draw, IdSpace], Block]:
    return lambda draw, space: {"pattern": name}


def _skewed(draw: Draw, space: IdSpace) -> Block:
    return {
        "pattern": "skewed",
        "hot": min(pick(draw, (1, 2, 8)), space.experts),
        "share": pick(draw, (128, 230, 250)),
    }


def _subset(draw: Draw, space: IdSpace) -> Block:
    """Leave experts empty: all but every second, third, … or all before the last few."""
    if chance(draw, 3):
        return {"pattern": "subset", "step": 1, "start": max(space.experts - pick(draw, (2, 33)), 0)}
    return {"pattern": "subset", "step": pick(draw, (2, 3, 32)), "start": min(1, space.experts - 1)}


def _runs(draw: Draw, space: IdSpace) -> Block:
    count = max(space.block_size + pick(draw, (0, -1, 1)), 1)
    return {"pattern": "runs", "count": min(count * pick(draw, (1, 2)), 1 << 20)}


def _round_robin(draw: Draw, space: IdSpace) -> Block:
    return {"pattern": "round_robin", "experts": pick(draw, (space.experts, max(space.experts // 2, 1)))}


_PATTERNS: tuple[Callable[[Draw, IdSpace], Block], ...] = (
    _one,
    _plain("distinct"),
    _plain("distinct"),
    _plain("uniform"),
    _skewed,
    _subset,
    _plain("sorted"),
    _runs,
    _round_robin,
)


def ids(draw: Draw, rows: int, places: int, space: IdSpace) -> dict[str, Any]:
    """Draw a recipe for ids of `rows` tokens with `places` each."""
    blocks = []
    specials = space.specials
    for _ in range(integer(draw, 1, max(1, min(rows, 3)))):
        block = pick(draw, _PATTERNS)(draw, space)
        if specials and chance(draw, 4):
            where, every = pick(draw, ("all", "one", "some")), pick(draw, EVERY)
            block |= {"special": pick(draw, specials), "where": where, "every": every}
        blocks.append(block)
    values = [0, space.experts - 1, *specials]
    return {
        "kind": "ids",
        "seed": seed(draw),
        "num_experts": space.experts,
        "blocks": blocks,
        "edits": edits(draw, rows, places, values),
    }
