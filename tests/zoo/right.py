"""Right subjects that differ where the contracts leave it open: none may be flagged."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from moeproof.strategies.domain import AlignDomain, AppendDomain, Domain, GateDomain
from moeproof.verify.subject import Subject

from .base import Align, Append, Gate, each, total
from .entry import Implementation, make_subject

RIGHT: list[Subject] = []

WIDE: dict[str, Domain] = {
    "fused_gate": GateDomain(experts=range(1, 1025), tokens=range(520)),
    "moe_align_block_size": AlignDomain(experts=range(1, 1025), tokens=range(513)),
    "append_shared_experts": AppendDomain(tokens=range(257)),
}


def _add(slug: str, kind: type[Implementation], **fields: Any) -> None:
    gate = kind.op == "fused_gate"
    RIGHT.append(
        make_subject(kind, slug, WIDE[kind.op], layout_invariant=gate, dtype_invariant=gate, **fields),
    )


class Gate32(Gate):
    """Everything in float32: 1/(1+exp(−x)), sums from first to last."""

    def exp(self, x: Tensor) -> Tensor:
        return each(torch.exp, x)

    def add(self, x: Tensor) -> Tensor:
        return total(x)

    def sigmoid(self, x: Tensor) -> Tensor:
        return 1 / (1 + self.exp(-x))

    def softmax(self, x: Tensor) -> Tensor:
        e = self.exp(x - x.amax(-1, keepdim=True))
        return e / self.add(e)

    def sqrtsoftplus(self, x: Tensor) -> Tensor:
        return (x.clamp(min=0) + each(torch.log1p, self.exp(-x.abs()))).sqrt()

    def denominator(self, w: Tensor, s: Tensor) -> Tensor:
        return self.add(w)


class Library(Gate32):
    """torch's own sigmoid and softplus."""

    def sigmoid(self, x: Tensor) -> Tensor:
        return each(torch.sigmoid, x)

    def sqrtsoftplus(self, x: Tensor) -> Tensor:
        return each(torch.nn.functional.softplus, x).sqrt()


class SplitSigmoid(Gate32):
    """exp(x)/(1+exp(x)) for negative x, which reaches into the denormals."""

    def sigmoid(self, x: Tensor) -> Tensor:
        z = self.exp(-x.abs())
        return torch.where(x < 0, z, torch.ones_like(z)) / (1 + z)


class FastExp(Gate32):
    """exp as exp2 of a rounded product, wrong by about |x| ulp, as fast-math exponentials are."""

    def exp(self, x: Tensor) -> Tensor:
        return each(torch.exp2, x * math.log2(math.e))


class Pairwise(Gate32):
    """Sums as a tree."""

    def add(self, x: Tensor) -> Tensor:
        while x.shape[-1] > 1:
            half = (x.shape[-1] + 1) // 2
            x = x[..., :half] + torch.nn.functional.pad(x[..., half:], (0, 2 * half - x.shape[-1]))
        return x


class Reversed(Gate32):
    """Sums from last to first."""

    def add(self, x: Tensor) -> Tensor:
        return total(x.flip(-1))


class Lanes(Gate32):
    """Sums by 32 lanes, then across the lanes, as a warp does it."""

    def add(self, x: Tensor) -> Tensor:
        lanes = torch.nn.functional.pad(x, (0, -x.shape[-1] % 32)).unflatten(-1, (-1, 32))
        return total(total(lanes.transpose(-1, -2)).squeeze(-1))


class Reciprocal(Gate32):
    """Renormalises by a product with the reciprocal, where that is finite."""

    def divide(self, w: Tensor, by: Tensor) -> Tensor:
        r = 1 / by
        return torch.where(r.isinf(), super().divide(w, by), w * r)


class ScaleFirst(Gate32):
    """Scales the weights before they are divided."""

    def divide(self, w: Tensor, by: Tensor) -> Tensor:
        return super().divide(w * self.f if self.on_output else w, by)

    def scale(self, w: Tensor) -> Tensor:
        return w if self.renormalize else super().scale(w)


class ScaleFolded(Gate32):
    """Divides the scale by the sum and multiplies the weights by that, where it is finite."""

    def divide(self, w: Tensor, by: Tensor) -> Tensor:
        factor = (self.f if self.on_output else 1.0) / by
        plain = super().divide(w, by)
        return torch.where(factor.isinf(), super().scale(plain), w * factor)

    def scale(self, w: Tensor) -> Tensor:
        return w if self.renormalize else super().scale(w)


class KeptOnly(Gate):
    """Looks for experts in the kept groups alone, and there at those with a NaN score at last."""

    def mask(self, c: Tensor, dropped: Tensor) -> Tensor:
        self.out = dropped
        return super().mask(c, dropped)

    def rank(self, c: Tensor) -> Tensor:
        order = super().rank(c)
        return order.gather(1, self.out.gather(1, order).byte().argsort(dim=1, stable=True))


class Double(Gate):
    """float64 throughout, rounded once at the end."""

    def scores(self, x: Tensor) -> Tensor:
        result: Tensor = getattr(self, self.scoring)(x.double())
        return result

    def sigmoid(self, x: Tensor) -> Tensor:
        return 1 / (1 + each(torch.exp, -x))

    def softmax(self, x: Tensor) -> Tensor:
        e = each(torch.exp, x - x.amax(-1, keepdim=True))
        return e / total(e)

    def sqrtsoftplus(self, x: Tensor) -> Tensor:
        return (x.clamp(min=0) + each(lambda v: (-v.abs()).exp().log1p(), x)).sqrt()


class RankDouble(Double):
    """Ranks in float64, weighs in float32."""

    def weigh(self, s: Tensor, c: Tensor, dropped: Tensor, ids: Tensor) -> Tensor:
        return super().weigh(s, c, dropped, ids).float()


class Backwards(Align):
    """Within an expert flat indices descend, in the same way every time."""

    def order(self, ids: Tensor) -> Tensor:
        order = super().order(ids).flip(0)
        return order[ids[order].argsort(stable=True)]


class Shuffled(Align):
    """Within an expert the order differs from run to run."""

    def order(self, ids: Tensor) -> Tensor:
        order = super().order(ids)
        order = order[torch.randperm(len(order))]
        return order[ids[order].argsort(stable=True)]


class Sentinel(Align):
    """Ids of −1 are kept in leading blocks."""

    sentinel = True


class SentinelBackwards(Backwards):
    """Ids of −1 are kept in leading blocks, indices descend."""

    sentinel = True


class Views(Append):
    """Fills views of the outputs in place."""

    def run(self) -> None:
        self.bind()
        ids, weights = self.outputs["ids"], self.outputs["weights"]
        ids[:, : self.k], weights[:, : self.k] = self.topk_ids, self.topk_weights
        ids[:, self.k :], weights[:, self.k :] = self.shared_ids(), self.spread()
        self.blank(ids, weights)


class Elements(Append):
    """Fills the flat outputs through one index an element, padding first."""

    def run(self) -> None:
        self.bind()
        width = self.k + self.S
        ids, weights = self.outputs["ids"].view(-1), self.outputs["weights"].view(-1)
        ids.fill_(-1)
        weights.zero_()
        rows = torch.arange(max(0, min(self.T, self.limit)))[:, None]
        routed = rows * width + torch.arange(self.k)
        shared = rows * width + torch.arange(self.k, width)
        ids[routed], weights[routed] = self.topk_ids[: len(rows)], self.topk_weights[: len(rows)]
        ids[shared] = self.shared_ids().to(ids.dtype)
        weights[shared] = self.cast(self.spread()[: len(rows)])


_add("right-gate", Gate)
_add("right-gate-float32", Gate32)
_add("right-gate-library", Library)
_add("right-gate-split-sigmoid", SplitSigmoid)
_add("right-gate-fast-exp", FastExp)
_add("right-gate-pairwise", Pairwise)
_add("right-gate-reversed", Reversed)
_add("right-gate-lanes", Lanes)
_add("right-gate-reciprocal", Reciprocal)
_add("right-gate-scale-first", ScaleFirst)
_add("right-gate-scale-folded", ScaleFolded)
_add("right-gate-kept-only", KeptOnly)
_add("right-gate-double", Double)
_add("right-gate-rank-double", RankDouble)
_add("right-align", Align)
_add("right-align-backwards", Backwards, order="any")
_add("right-align-shuffled", Shuffled, order="any", bitwise=False)
_add("right-align-sentinel", Sentinel, minus_one="sentinel_blocks")
_add("right-align-sentinel-backwards", SentinelBackwards, minus_one="sentinel_blocks", order="any")
_add("right-append", Append)
_add("right-append-views", Views)
_add("right-append-elements", Elements)
