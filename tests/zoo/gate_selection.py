"""Wrong gates: the wrong experts, or the right ones in the wrong order."""

from __future__ import annotations

import torch
from torch import Tensor

from moeproof.strategies.domain import GateDomain

from .base import Gate, best_first, rank_key
from .entry import Entry, planter

WRONG: list[Entry] = []
_plant = planter(WRONG)

TIE = ("tie_order", "selection")
GROUPED = GateDomain(experts=range(2, 65), topk=range(1, 9), tokens=range(65))


@_plant("gate-tie-higher-id", *TIE, examples=60, experts=2, topk=1)
class TieHigherId(Gate):
    """Equal scores go to the higher expert id."""

    def rank(self, c: Tensor) -> Tensor:
        return self.E - 1 - best_first(c.flip(-1))


@_plant("gate-tie-by-lane", *TIE, examples=200, experts=40, topk=2)
class TieByLane(Gate):
    """Equal scores go to the lower lane (id modulo 32) first, as a reduction across a warp leaves it."""

    def rank(self, c: Tensor) -> Tensor:
        lanes = (torch.arange(self.E) % 32).argsort(stable=True)
        return lanes[best_first(c[:, lanes])]


@_plant("gate-tie-unstable", *TIE, examples=200, topk=4, experts=16)
class TieUnstable(Gate):
    """Equal scores come in whatever order a partial sort leaves them."""

    def rank(self, c: Tensor) -> Tensor:
        numbers = c.nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        return numbers.topk(self.k - self.S, dim=-1).indices


@_plant("gate-group-distinct-top2", "selection", "tie_order", examples=200, experts=6, topk=2, domain=GROUPED)
class GroupDistinctTop2(Gate):
    """A group's second largest score is searched below its largest, so that two equal maxima count once."""

    def group_scores(self, c: Tensor) -> Tensor:
        first = c.amax(-1)
        second = c.masked_fill(c == first[..., None], -torch.inf).amax(-1)
        return torch.where(second == -torch.inf, first, first + second)


@_plant("gate-group-max-only", "selection", examples=100, experts=4, topk=1, domain=GROUPED)
class GroupMaxOnly(Gate):
    """A group's score is its largest score alone."""

    def group_scores(self, c: Tensor) -> Tensor:
        return c.gather(-1, best_first(c)[..., :1]).squeeze(-1)


@_plant("gate-group-tie-higher", *TIE, examples=200, experts=4, topk=1, domain=GROUPED)
class GroupTieHigher(Gate):
    """Of groups with equal scores the one with the higher id is kept."""

    def group_order(self, score: Tensor) -> Tensor:
        return self.G - 1 - best_first(score.flip(-1))


@_plant("gate-last-group-lost", "selection", examples=100, experts=4, topk=2, domain=GROUPED)
class LastGroupLost(Gate):
    """The last group is never kept as long as another can be."""

    def group_scores(self, c: Tensor) -> Tensor:
        score = super().group_scores(c)
        score[:, -1] = torch.nan
        return score


@_plant("gate-dropped-masked-zero", "selection", examples=200, experts=4, topk=2, domain=GROUPED)
class DroppedMaskedZero(Gate):
    """Experts of dropped groups get score 0 instead of −inf and win where all others are negative."""

    def mask(self, c: Tensor, dropped: Tensor) -> Tensor:
        return c.masked_fill(dropped, 0.0)


@_plant("gate-dropped-lowest-finite", "selection", "tie_order", examples=400, experts=6, topk=2, domain=GROUPED)
class DroppedLowestFinite(Gate):
    """Experts of dropped groups get the lowest finite score and win where those of kept groups have −inf."""

    def mask(self, c: Tensor, dropped: Tensor) -> Tensor:
        return c.masked_fill(dropped, torch.finfo(c.dtype).min)


@_plant(
    "gate-dropped-by-score", "selection", "tie_order", "nan_policy", examples=200, experts=6, topk=3, domain=GROUPED
)
class DroppedByScore(Gate):
    """Experts of dropped groups fill the places that numbers in kept groups leave, best first by their own score."""

    def mask(self, c: Tensor, dropped: Tensor) -> Tensor:
        return torch.where(dropped, c.clamp(-1e30, 1e30) * 1e-30 - 3e38, c)


@_plant("gate-bias-ignored", "selection", examples=60, experts=2, topk=1)
class BiasIgnored(Gate):
    """The bias doesn't take part in the ranking."""

    def biased(self, s: Tensor) -> Tensor:
        return s


@_plant("gate-bias-before-score", "selection", "tie_order", "nan_policy", examples=200, experts=2, topk=1)
class BiasBeforeScore(Gate):
    """The bias is added to the logit, before the score function."""

    def biased(self, s: Tensor) -> Tensor:
        return s if self.bias is None else self.scores(self.read().float() + self.bias.float())


@_plant("gate-bf16-rank", "selection", "tie_order", examples=100, experts=2, topk=1)
class Bf16Rank(Gate):
    """The biased score of bfloat16 logits is rounded to bfloat16 before the ranking."""

    def biased(self, s: Tensor) -> Tensor:
        c = super().biased(s)
        return c.bfloat16().float() if self.logits.dtype == torch.bfloat16 else c


@_plant("gate-order-by-id", "selection", "tie_order", examples=60, experts=2, topk=2)
class OrderById(Gate):
    """The right experts with their right weights, in ascending id order instead of best first."""

    def choose(self, c: Tensor) -> Tensor:
        return super().choose(c).sort(dim=-1).values


class _Without(Gate):
    """Experts are kept out of the ranking as long as others are left."""

    def lost(self) -> list[int]:
        """Return the ids that are lost."""
        raise NotImplementedError

    def rank(self, c: Tensor) -> Tensor:
        c = c.clone()
        if len(lost := self.lost()) < self.E:
            c[:, lost] = torch.nan
        return best_first(c)


@_plant("gate-last-expert-lost", "selection", "tie_order", "nan_policy", examples=60, experts=2, topk=1)
class LastExpertLost(_Without):
    """Expert E−1 is never chosen as long as another is left."""

    def lost(self) -> list[int]:
        return [self.E - 1]


@_plant("gate-first-expert-lost", "selection", "tie_order", "nan_policy", examples=60, experts=2, topk=1)
class FirstExpertLost(_Without):
    """Expert 0 is never chosen as long as another is left."""

    def lost(self) -> list[int]:
        return [0]


@_plant("gate-not-power-of-two", "selection", "tie_order", "nan_policy", examples=60, experts=3, topk=2)
class NotPowerOfTwo(_Without):
    """Experts past the largest power of two in E are left out of the reduction."""

    def lost(self) -> list[int]:
        return list(range(1 << (self.E.bit_length() - 1), self.E))


@_plant(
    "gate-only-192-6",
    "selection",
    "tie_order",
    "nan_policy",
    examples=400,
    experts=192,
    topk=6,
    domain=GateDomain(experts=(128, 192, 256), topk=range(4, 9), shared=range(1), tokens=range(33)),
)
class Only192And6(_Without):
    """The last expert is lost at E = 192 with k = 6, and at no other size."""

    def lost(self) -> list[int]:
        return [self.E - 1] if (self.E, self.k) == (192, 6) else []


@_plant("gate-nan-first", "nan_policy", "selection", "tie_order", examples=150, experts=2, topk=1)
class NanFirst(Gate):
    """NaN is chosen first, as a plain descending sort has it."""

    def rank(self, c: Tensor) -> Tensor:
        return c.argsort(dim=-1, descending=True, stable=True)


@_plant("gate-nan-ties-neg-inf", "nan_policy", "selection", "tie_order", examples=1500, experts=2, topk=2)
class NanTiesNegInf(Gate):
    """NaN is ranked as −inf, so that it comes before a true −inf of a higher id."""

    def rank(self, c: Tensor) -> Tensor:
        return best_first(c.masked_fill(c.isnan(), -torch.inf))


@_plant("gate-nan-drops-group", "nan_policy", "selection", examples=400, experts=6, topk=1, domain=GROUPED)
class NanDropsGroup(Gate):
    """One NaN makes its whole group's score NaN although two numbers are left in it."""

    def group_scores(self, c: Tensor) -> Tensor:
        return super().group_scores(c).masked_fill(c.isnan().any(-1), torch.nan)


@_plant("gate-duplicates", "ids_invalid", "selection", "tie_order", "nan_policy", examples=200, experts=2, topk=2)
class Duplicates(Gate):
    """Each pick sets its score to −inf, so that expert 0 is picked again when finite ones run out."""

    def choose(self, c: Tensor) -> Tensor:
        left, picks = rank_key(c.masked_fill(c.isnan(), -torch.inf)), []
        lowest = int(rank_key(torch.tensor(-torch.inf)))
        for _ in range(self.k - self.S):
            pick = left.argsort(dim=-1, descending=True, stable=True)[:, :1]
            left = left.scatter(1, pick, lowest)
            picks.append(pick)
        return torch.cat(picks, dim=1)


FINITE = GateDomain(experts=range(1, 129), topk=range(1, 17), tokens=range(129), bias="required", nan=False, inf=False)


@_plant("gate-taken-marked-lowest", "ids_invalid", examples=400, experts=2, topk=2, domain=FINITE)
class TakenMarkedLowest(Gate):
    """Each pick sets its score to the lowest number, so that experts masked with it by the bias are never picked."""

    def choose(self, c: Tensor) -> Tensor:
        left, picks = c.clone(), []
        for _ in range(self.k - self.S):
            pick = best_first(left)[:, :1]
            left = left.scatter(1, pick, torch.finfo(left.dtype).min)
            picks.append(pick)
        return torch.cat(picks, dim=1)
