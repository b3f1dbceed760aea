"""Wrong gates: right experts with wrong weights, wrong shared places, wrong maps, wrong padding."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from moeproof.strategies.domain import GateDomain

from .base import Gate, each, total
from .entry import Entry, planter

WRONG: list[Entry] = []
_plant = planter(WRONG)

IDS = ("ids_invalid", "selection")
SMALL = GateDomain(experts=range(1, 65), topk=range(1, 9), tokens=range(65))


@_plant("gate-bias-in-weight", "weights", examples=60, experts=2, topk=2)
class BiasInWeight(Gate):
    """The weight is taken from the biased score."""

    def weigh(self, s: Tensor, c: Tensor, dropped: Tensor, ids: Tensor) -> Tensor:
        return super().weigh(c, c, dropped, ids)


@_plant("gate-scale-twice", "weights", examples=60, experts=1, topk=1)
class ScaleTwice(Gate):
    """The scaling factor is applied twice."""

    def scale(self, w: Tensor) -> Tensor:
        return super().scale(super().scale(w))


@_plant("gate-scale-never", "weights", examples=60, experts=1, topk=1)
class ScaleNever(Gate):
    """The scaling factor is not applied on the output."""

    def scale(self, w: Tensor) -> Tensor:
        return w


@_plant("gate-scale-always", "weights", examples=60, experts=1, topk=1)
class ScaleAlways(Gate):
    """The scaling factor is applied whether asked for or not."""

    def scale(self, w: Tensor) -> Tensor:
        return w * self.f


@_plant("gate-scale-needs-renormalize", "weights", examples=100, experts=1, topk=1)
class ScaleNeedsRenormalize(Gate):
    """The scaling factor is applied only together with renormalize."""

    def scale(self, w: Tensor) -> Tensor:
        return super().scale(w) if self.renormalize else w


@_plant("gate-renormalize-never", "weights", examples=60, experts=1, topk=1)
class RenormalizeNever(Gate):
    """The weights are not renormalised."""

    def divide(self, w: Tensor, by: Tensor) -> Tensor:
        return w


@_plant("gate-renormalize-all-experts", "weights", "nan_policy", examples=60, experts=2, topk=1)
class RenormalizeAllExperts(Gate):
    """The weights are divided by the sum over all experts instead of the chosen ones."""

    def denominator(self, w: Tensor, s: Tensor) -> Tensor:
        return total(s)


@_plant("gate-renormalize-shared", "weights", examples=100, experts=1, topk=2)
class RenormalizeShared(Gate):
    """The sum that renormalize divides by takes in the shared places."""

    def denominator(self, w: Tensor, s: Tensor) -> Tensor:
        return super().denominator(w, s) + self.S * self.shared_weight()


@_plant("gate-weights-swapped", "weights", examples=60, experts=2, topk=2)
class WeightsSwapped(Gate):
    """The weights of the first two places are swapped, the ids are right."""

    def weigh(self, s: Tensor, c: Tensor, dropped: Tensor, ids: Tensor) -> Tensor:
        w = super().weigh(s, c, dropped, ids)
        return torch.cat([w[:, :2].flip(-1), w[:, 2:]], dim=1)


@_plant("gate-weights-by-id", "weights", examples=60, experts=2, topk=2)
class WeightsById(Gate):
    """The weights come in ascending id order, the ids best first."""

    def weigh(self, s: Tensor, c: Tensor, dropped: Tensor, ids: Tensor) -> Tensor:
        return super().weigh(s, c, dropped, ids.sort(dim=-1).values)


@_plant("gate-k-over-8", "weights", examples=200, experts=9, topk=9)
class KOver8(Gate):
    """Routed places from the ninth on get the eighth's weight."""

    def weigh(self, s: Tensor, c: Tensor, dropped: Tensor, ids: Tensor) -> Tensor:
        w = super().weigh(s, c, dropped, ids)
        w[:, 8:] = w[:, 7:8]
        return w


@_plant("gate-nan-weight", "nan_policy", "weights", examples=150, experts=1, topk=1)
class NanWeight(Gate):
    """The weight of an expert with a NaN score is NaN, and renormalize spreads it over the row."""

    def weigh(self, s: Tensor, c: Tensor, dropped: Tensor, ids: Tensor) -> Tensor:
        return s.masked_fill(dropped, 0).gather(1, ids)


@_plant("gate-zero-sum-nan", "weights", "nan_policy", examples=200, experts=1, topk=1)
class ZeroSumNan(Gate):
    """Renormalize divides by a sum of 0, which makes the weights NaN."""

    def divide(self, w: Tensor, by: Tensor) -> Tensor:
        return w / by


@_plant(
    "gate-epsilon",
    "weights",
    examples=200,
    experts=1,
    topk=1,
    domain=replace(SMALL, scorings=("sigmoid",), renormalize=(True,)),
)
class Epsilon(Gate):
    """1e-20 is added to the sum, which drowns the weights where all scores are tiny."""

    def divide(self, w: Tensor, by: Tensor) -> Tensor:
        return w / (by + 1e-20)


@_plant(
    "gate-softmax-no-max",
    "weights",
    "nan_policy",
    "selection",
    "tie_order",
    examples=150,
    experts=3,
    topk=1,
    domain=replace(SMALL, scorings=("softmax",)),
)
class SoftmaxNoMax(Gate):
    """Softmax doesn't subtract the row's maximum and overflows for logits above 88."""

    def softmax(self, x: Tensor) -> Tensor:
        e = each(torch.exp, x)
        return e / total(e)


@_plant(
    "gate-sigmoid-tanh",
    "weights",
    "selection",
    "tie_order",
    examples=150,
    experts=2,
    topk=2,
    domain=replace(SMALL, scorings=("sigmoid",)),
)
class SigmoidTanh(Gate):
    """Sigmoid is computed as (1 + tanh(x/2)) / 2, which loses all digits for strongly negative logits."""

    def sigmoid(self, x: Tensor) -> Tensor:
        return each(lambda v: 0.5 * (1 + (v / 2).tanh()), x)


@_plant(
    "gate-softplus-naive",
    "weights",
    "selection",
    "tie_order",
    "nan_policy",
    examples=150,
    experts=2,
    topk=2,
    domain=replace(SMALL, scorings=("sqrtsoftplus",)),
)
class SoftplusNaive(Gate):
    """sqrtsoftplus takes log(1 + exp(x)) literally: it overflows above 88 and loses all digits below −10."""

    def sqrtsoftplus(self, x: Tensor) -> Tensor:
        return each(lambda v: (1 + v.exp()).log().sqrt(), x)


@_plant("gate-shared-id-off-by-one", *IDS, examples=60, experts=1, topk=2)
class SharedIdOffByOne(Gate):
    """Shared ids start at E−1."""

    def shared_id(self) -> int:
        return self.E - 1


@_plant("gate-shared-weight-f", "weights", examples=100, experts=1, topk=2)
class SharedWeightF(Gate):
    """Shared places get f instead of 1/f."""

    def shared_weight(self) -> float:
        return 1.0 if self.on_output else self.f


@_plant("gate-shared-weight-scaled", "weights", examples=100, experts=1, topk=2)
class SharedWeightScaled(Gate):
    """Shared places are scaled too where the scale is applied on the output."""

    def shared_weight(self) -> float:
        return self.f if self.on_output else 1 / self.f


@_plant("gate-map-ignored", *IDS, "tie_order", "nan_policy", examples=60, experts=2, topk=1)
class MapIgnored(Gate):
    """`expert_map` is ignored."""

    def physical(self, ids: Tensor) -> Tensor:
        return ids


@_plant("gate-map-not-shared", *IDS, examples=150, experts=2, topk=2)
class MapNotShared(Gate):
    """`expert_map` is applied to the routed ids only."""

    def physical(self, ids: Tensor) -> Tensor:
        return torch.where(ids < self.E, super().physical(ids), ids)


@_plant("gate-map-first", "selection", "ids_invalid", "weights", examples=150, experts=2, topk=2)
class MapFirst(Gate):
    """The weights are looked up with the mapped ids."""

    def weigh(self, s: Tensor, c: Tensor, dropped: Tensor, ids: Tensor) -> Tensor:
        return super().weigh(s, c, dropped, self.physical(ids).clamp(0, self.E - 1))


@_plant("gate-padding-ignored", *IDS, "weights", examples=60, experts=1, topk=1)
class PaddingIgnored(Gate):
    """Padded rows are routed like the others."""

    def padded(self) -> Tensor:
        return torch.zeros((self.T, 1), dtype=torch.bool)


@_plant("gate-padding-off-by-one", *IDS, "weights", examples=60, experts=1, topk=1)
class PaddingOffByOne(Gate):
    """The first padded row is routed like the others."""

    def padded(self) -> Tensor:
        return (torch.arange(self.T) > self.limit)[:, None]


@_plant("gate-padding-keeps-shared", *IDS, "weights", examples=100, experts=1, topk=2)
class PaddingKeepsShared(Gate):
    """Padded rows keep their shared places."""

    def finish(self, w: Tensor, ids: Tensor) -> None:
        padded = self.padded() & (torch.arange(self.k) < self.k - self.S)
        self.write(w.masked_fill(padded, 0), ids.masked_fill(padded, -1))
