"""Wrong gates: memory, repeatability, neighbours, domain, crashes and hangs."""

from __future__ import annotations

import itertools
import os
import signal
import time

import torch
from torch import Tensor

from moeproof.strategies.domain import GateDomain

from .base import Gate, total
from .entry import Entry, planter

WRONG: list[Entry] = []
_plant = planter(WRONG)

ROUTED = ("selection", "weights", "tie_order", "nan_policy")
PERIOD = 20
"""A flaky gate goes wrong in one run of this many."""


def beside(out: Tensor, shift: int) -> Tensor:
    """Return the one element of `out`'s storage that lies `shift` elements from its first."""
    return out.as_strided((1,), (1,), out.storage_offset() + shift)


@_plant("gate-write-past-end", "guard_zone", examples=20, experts=1, topk=1)
class WritePastEnd(Gate):
    """One element past the end of the ids is written."""

    def write(self, w: Tensor, ids: Tensor) -> None:
        super().write(w, ids)
        beside(self.outputs["indices"], ids.numel()).fill_(-1)


@_plant("gate-write-before-start", "guard_zone", examples=20, experts=1, topk=1)
class WriteBeforeStart(Gate):
    """One element before the weights is written."""

    def write(self, w: Tensor, ids: Tensor) -> None:
        super().write(w, ids)
        beside(self.outputs["weights"], -1).fill_(0.0)


@_plant("gate-last-element-unwritten", "unwritten", examples=20, experts=1, topk=1)
class LastElementUnwritten(Gate):
    """The last weight of the last row is left as it was."""

    def write(self, w: Tensor, ids: Tensor) -> None:
        self.outputs["indices"].copy_(ids)
        self.outputs["weights"].view(-1)[:-1] = w.reshape(-1)[:-1]


@_plant("gate-odd-row-unwritten", "unwritten", examples=30, experts=1, topk=1)
class OddRowUnwritten(Gate):
    """The last row of an odd number of rows is left as it was, as by a kernel that takes two rows a block."""

    def write(self, w: Tensor, ids: Tensor) -> None:
        even = self.T - self.T % 2
        self.outputs["weights"][:even] = w[:even]
        self.outputs["indices"][:even] = ids[:even].int()


@_plant("gate-padding-unwritten", "unwritten", examples=60, experts=1, topk=1)
class PaddingUnwritten(Gate):
    """Padded rows are skipped and left as they were."""

    def write(self, w: Tensor, ids: Tensor) -> None:
        end = max(0, min(self.T, self.limit))
        self.outputs["weights"][:end] = w[:end]
        self.outputs["indices"][:end] = ids[:end].int()


@_plant("gate-writes-input", "input_modified", examples=20, experts=2, topk=1)
class WritesInput(Gate):
    """The logits are scratch: the last one of the last row is −inf afterwards."""

    def write(self, w: Tensor, ids: Tensor) -> None:
        super().write(w, ids)
        self.logits[-1:, -1] = -torch.inf


@_plant("gate-misaligned", *ROUTED, "batch_variance", examples=100, experts=2, topk=2)
class Misaligned(Gate):
    """Logits that don't start on a multiple of four elements are read from the multiple below."""

    def read(self) -> Tensor:
        offset = self.logits.storage_offset()
        return self.logits.as_strided(self.logits.shape, self.logits.stride(), offset - offset % 4)


@_plant("gate-row-stride-ignored", *ROUTED, "batch_variance", examples=100, rows=2, experts=2, topk=2)
class RowStrideIgnored(Gate):
    """Rows with gaps between them are read as if there were none."""

    def read(self) -> Tensor:
        x = self.logits
        gaps = x.stride(0) > self.E and x.stride(1) == 1
        return x.as_strided(x.shape, (self.E, 1), x.storage_offset()) if gaps else x


@_plant("gate-neighbour", "batch_variance", *ROUTED, examples=60, rows=2, experts=6, topk=2)
class Neighbour(Gate):
    """The last logit of a row is read from the row after it, except in the last row."""

    def read(self) -> Tensor:
        x = self.logits.clone()
        x[:-1, -1] = self.logits[1:, 0]
        return x


@_plant(
    "gate-split-sum",
    "batch_variance",
    examples=100,
    rows=16,
    experts=16,
    topk=8,
    domain=GateDomain(
        experts=range(3, 65),
        topk=range(3, 17),
        shared=range(1),
        renormalize=(True,),
        tokens=range(65),
        thresholds={"tokens": (16,)},
    ),
)
class SplitSum(Gate):
    """From 16 rows up the sum is added in another order, so that a row's last bit depends on the batch."""

    def denominator(self, w: Tensor, s: Tensor) -> Tensor:
        return total(w.flip(-1)) if self.T >= 16 else total(w)


@_plant(
    "gate-tokens-over-512",
    "batch_variance",
    *ROUTED,
    examples=200,
    rows=513,
    experts=2,
    topk=1,
    domain=GateDomain(experts=range(1, 17), topk=range(1, 5), tokens=range(1025), thresholds={"tokens": (512,)}),
)
class TokensOver512(Gate):
    """Above 512 rows the last row is routed by the logits of the first."""

    def read(self) -> Tensor:
        return torch.cat([self.logits[:-1], self.logits[:1]]) if self.T > 512 else self.logits


@_plant("gate-flaky-last-bit", "nondeterminism", "batch_variance", examples=100)
class FlakyLastBit(Gate):
    """One run in 20 differs in the last bits of its weights, each result being right."""

    runs = itertools.count(1)

    def scale(self, w: Tensor) -> Tensor:
        w = super().scale(w)
        return w * (1 - 2**-23) if next(self.runs) % PERIOD == 0 else w


@_plant("gate-flaky-order", "nondeterminism", "batch_variance", *ROUTED, examples=100, experts=16, topk=16)
class FlakyOrder(Gate):
    """One run in 20 swaps the first two places of every row, ids and weights alike."""

    runs = itertools.count(1)

    def choose(self, c: Tensor) -> Tensor:
        ids = super().choose(c)
        if next(self.runs) % PERIOD == 0:
            ids = torch.cat([ids[:, :2].flip(-1), ids[:, 2:]], dim=1)
        return ids


@_plant("gate-raises-inside", "domain", examples=120, experts=1, topk=1)
class RaisesInside(Gate):
    """Choosing all experts is refused although the domain has it."""

    def refuse(self) -> None:
        super().refuse()
        if (k := self.args["topk"]) == self.args["logits"].shape[1]:
            raise ValueError(f"topk is {k}; allowed: fewer than the experts")


@_plant(
    "gate-accepts-outside",
    "domain",
    examples=100,
    rows=None,
    domain=GateDomain(experts=range(1, 33), topk=range(1, 9), groups="none", tokens=range(33)),
)
class AcceptsOutside(Gate):
    """No argument is looked at, so that sizes outside the declared domain are taken."""

    def refuse(self) -> None:
        pass


@_plant(
    "gate-hangs",
    "hang",
    examples=400,
    experts=13,
    topk=None,
    domain=GateDomain(experts=range(1, 17), topk=range(1, 5), tokens=range(17)),
)
class Hangs(Gate):
    """The call never returns for 13 experts."""

    def read(self) -> Tensor:
        while self.E == 13:
            time.sleep(0.1)
        return self.logits


CRASH = GateDomain(experts=range(1, 17), topk=range(1, 5), tokens=range(17))


@_plant("gate-segfaults", "cuda_error", examples=200, rows=7, experts=None, topk=None, domain=CRASH)
class Segfaults(Gate):
    """The process dies of SIGSEGV for 7 rows."""

    def read(self) -> Tensor:
        if self.T == 7:
            os.kill(os.getpid(), signal.SIGSEGV)
        return self.logits


@_plant("gate-exits", "cuda_error", examples=200, rows=5, experts=None, topk=None, domain=CRASH)
class Exits(Gate):
    """The process ends with status 0 and no result for 5 rows."""

    def read(self) -> Tensor:
        if self.T == 5:
            os._exit(0)
        return self.logits
