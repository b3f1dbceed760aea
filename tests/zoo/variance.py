"""Wrong subjects whose every single result is right, or often is: only a variant of the input shows the fault."""

from __future__ import annotations

import torch
from torch import Tensor

from moeproof.strategies.domain import AlignDomain, GateDomain

from .base import Align, Append, Gate, total
from .entry import Entry, planter

WRONG: list[Entry] = []
_plant = planter(WRONG)

SUMS = GateDomain(
    experts=range(3, 65), topk=range(3, 17), shared=range(1), renormalize=(True,), tokens=range(1, 65), groups="none"
)
"""Cases in which the order of a sum of three or more weights shows in the last bit."""
ALIGN = AlignDomain(
    experts=range(1, 33), topk=range(1, 5), block_sizes=range(1, 33), tokens=range(1, 257), thresholds={"ids": (64,)}
)


class SumsBackwards(Gate):
    """The weights of some rows are added up from last to first."""

    def backwards(self) -> Tensor:
        """Return which rows are, bool [T, 1] or [1, 1]."""
        raise NotImplementedError

    def denominator(self, w: Tensor, s: Tensor) -> Tensor:
        return torch.where(self.backwards(), total(w.flip(-1)), total(w))


@_plant("gate-sum-single-row", "batch_variance", examples=400, rows=2, experts=16, topk=8, domain=SUMS)
class SingleRow(SumsBackwards):
    """A row that is alone is summed in another order."""

    def backwards(self) -> Tensor:
        return torch.tensor([[self.T == 1]])


@_plant("gate-sum-odd-position", "batch_variance", examples=400, rows=3, experts=16, topk=8, domain=SUMS)
class OddPosition(SumsBackwards):
    """Rows at odd positions are summed in another order, as by the second half of a warp."""

    def backwards(self) -> Tensor:
        return (torch.arange(self.T) % 2 == 1)[:, None]


@_plant("gate-sum-last-row", "batch_variance", examples=400, rows=2, experts=16, topk=8, domain=SUMS)
class LastRow(SumsBackwards):
    """The last of an odd number of rows is summed in another order, as by a kernel that takes two rows a block."""

    def backwards(self) -> Tensor:
        return ((torch.arange(self.T) == self.T - 1) & bool(self.T % 2))[:, None]


@_plant("gate-sum-nan-beside", "batch_variance", examples=400, rows=1, experts=16, topk=8, domain=SUMS)
class NanBeside(SumsBackwards):
    """Where the row before holds NaN, a row is summed in another order, as by a slow path that a whole block takes."""

    def backwards(self) -> Tensor:
        return self.logits.isnan().any(1).roll(1)[:, None]


@_plant(
    "gate-sum-strided",
    "layout_variance",
    examples=400,
    rows=2,
    experts=16,
    topk=8,
    domain=SUMS,
    layout_invariant=True,
)
class Strided(SumsBackwards):
    """Rows that are not neighbours in memory are summed in another order."""

    def backwards(self) -> Tensor:
        return torch.tensor([[not self.logits.is_contiguous()]])


@_plant("gate-misread-strided", "layout_variance", examples=400, rows=3, experts=2, topk=2)
class MisreadStrided(Gate):
    """Rows four elements or more apart are read as if they were exactly as far apart as they are long."""

    def read(self) -> Tensor:
        x = self.logits
        gaps = self.T > 1 and x.stride(1) == 1 and x.stride(0) >= self.E + 3
        return x.as_strided(x.shape, (self.E, 1), x.storage_offset()) if gaps else x


@_plant(
    "gate-sum-bfloat16",
    "dtype_variance",
    examples=400,
    experts=16,
    topk=8,
    domain=SUMS,
    dtype_invariant=True,
    layout_invariant=True,
)
class NarrowSum(SumsBackwards):
    """Weights of bfloat16 logits are summed in another order than those of the same logits as float32."""

    def backwards(self) -> Tensor:
        return torch.tensor([[self.logits.dtype == torch.bfloat16]])


@_plant("align-over-64-ids", "batch_variance", examples=400, rows=64, experts=1, topk=None, domain=ALIGN)
class Over64Ids(Align):
    """Of more than 64 ids the last one is not read."""

    def mapped(self, ids: Tensor) -> Tensor:
        ids = super().mapped(ids).clone()
        if self.n > 64:
            ids[-1] = self.E
        return ids


@_plant("align-first-expert-cut", "label_variance", examples=400, rows=3, topk=1)
class FirstExpertCut(Align):
    """Expert 0 gets no more places than the last expert."""

    def mapped(self, ids: Tensor) -> Tensor:
        ids = super().mapped(ids)
        counts = torch.bincount(ids[(ids >= 0) & (ids < self.E)], minlength=self.E)
        firsts = (ids == 0).nonzero().flatten()[int(counts[-1]) :]
        return ids.index_fill(0, firsts, self.E) if self.E > 1 else ids


@_plant("append-odd-tokens", "batch_variance", examples=400, rows=16, topk=1)
class OddTokens(Append):
    """The last of an odd number of rows gets the shared weights of the row before it."""

    def spread(self) -> Tensor:
        shared = super().spread()
        return torch.cat([shared[:-1], shared[-2:-1]]) if self.T % 2 and self.T > 1 else shared
