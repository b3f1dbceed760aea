"""Wrong implementations of append_shared_experts."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Append
from .entry import Entry, planter

WRONG: list[Entry] = []
_plant = planter(WRONG)

IDS = ("ids_invalid", "selection")
WEIGHTS = ("weights", "nan_policy")


@_plant("append-shared-row-0", *WEIGHTS, examples=60, rows=2, topk=1)
class SharedRow0(Append):
    """Every row gets the shared weights of row 0."""

    def spread(self) -> Tensor:
        return super().spread()[:1].expand(self.T, self.S)


@_plant("append-id-off-by-one", *IDS, examples=30, topk=1)
class IdOffByOne(Append):
    """Shared ids start at E−1."""

    def shared_ids(self) -> Tensor:
        return super().shared_ids() - 1


@_plant("append-id-repeated", *IDS, examples=60, topk=1)
class IdRepeated(Append):
    """All shared places get id E."""

    def shared_ids(self) -> Tensor:
        return super().shared_ids().clamp(max=self.E)


@_plant("append-zero-sign-lost", *WEIGHTS, examples=200, topk=1)
class ZeroSignLost(Append):
    """Routed weights pass through an addition of 0, which turns −0.0 into +0.0."""

    def routed_weights(self) -> Tensor:
        return self.topk_weights + 0.0


@_plant("append-nan-canonical", *WEIGHTS, examples=200, topk=1)
class NanCanonical(Append):
    """A NaN among the routed weights is replaced by the one with all payload bits set."""

    def routed_weights(self) -> Tensor:
        signed = torch.int32 if self.topk_weights.itemsize == 4 else torch.int16
        all_set = torch.tensor(torch.iinfo(signed).max, dtype=signed).view(self.topk_weights.dtype)
        return torch.where(self.topk_weights.isnan(), all_set, self.topk_weights)


@_plant("append-double-rounding", *WEIGHTS, examples=100, topk=1)
class DoubleRounding(Append):
    """Shared weights are rounded to bfloat16 on their way."""

    def cast(self, shared: Tensor) -> Tensor:
        return super().cast(shared.bfloat16())


@_plant("append-truncated", *WEIGHTS, examples=200, topk=1)
class Truncated(Append):
    """float32 shared weights are cut to bfloat16 instead of rounded to nearest even."""

    def cast(self, shared: Tensor) -> Tensor:
        if (shared.dtype, self.topk_weights.dtype) == (torch.float32, torch.bfloat16):
            shared = (shared.contiguous().view(torch.int32) & ~0xFFFF).view(torch.float32)
        return super().cast(shared)


@_plant("append-padding-ignored", *IDS, "weights", examples=60, topk=1)
class PaddingIgnored(Append):
    """Padded rows are filled like the others."""

    def blank(self, ids: Tensor, weights: Tensor) -> None:
        pass


@_plant("append-padding-keeps-weights", "weights", examples=60, topk=1)
class PaddingKeepsWeights(Append):
    """Padded rows get ids −1 but keep their weights."""

    def blank(self, ids: Tensor, weights: Tensor) -> None:
        super().blank(ids, weights.clone())


@_plant("append-padding-keeps-shared", *IDS, "weights", examples=60, topk=1)
class PaddingKeepsShared(Append):
    """Padded rows keep their shared places."""

    def blank(self, ids: Tensor, weights: Tensor) -> None:
        super().blank(ids[:, : self.k], weights[:, : self.k])


@_plant("append-int64-truncated", *IDS, examples=400, topk=1)
class Int64Truncated(Append):
    """Routed int64 ids are cut to 32 bits."""

    def routed_ids(self) -> Tensor:
        return self.topk_ids.int().to(self.topk_ids.dtype)


@_plant("append-broadcast-first-only", *WEIGHTS, examples=100, topk=1)
class BroadcastFirstOnly(Append):
    """A scalar or one weight a row reaches the first shared place only, the others get 0."""

    def spread(self) -> Tensor:
        shared = super().spread().clone()
        if self.given.dim() < 2:
            shared[:, 1:] = 0
        return shared


@_plant("append-vector-as-matrix", *WEIGHTS, examples=100, rows=2, topk=1)
class VectorAsMatrix(Append):
    """One weight a row is read as a matrix: place j of row t gets element t·S + j, modulo T."""

    def spread(self) -> Tensor:
        if self.given.dim() != 1 or not self.T:
            return super().spread()
        return self.given[torch.arange(self.T * self.S) % self.T].reshape(self.T, self.S)


@_plant("append-last-row-unwritten", "unwritten", examples=60, topk=1)
class LastRowUnwritten(Append):
    """The last of an odd number of rows is left as it was."""

    def write(self, ids: Tensor, weights: Tensor) -> None:
        even = self.T - self.T % 2
        self.outputs["ids"][:even] = ids[:even]
        self.outputs["weights"][:even] = weights[:even]


@_plant("append-write-past-end", "guard_zone", examples=60, topk=1)
class WritePastEnd(Append):
    """One element past the end of the weights is written."""

    def write(self, ids: Tensor, weights: Tensor) -> None:
        super().write(ids, weights)
        out = self.outputs["weights"]
        out.as_strided((1,), (1,), out.storage_offset() + out.numel()).fill_(1.0)


@_plant("append-row-stride-ignored", *WEIGHTS, examples=150, rows=2, topk=2)
class RowStrideIgnored(Append):
    """Rows of the routed weights with gaps between them are read as if there were none."""

    def routed_weights(self) -> Tensor:
        x = self.topk_weights
        gaps = x.stride(0) > self.k and x.stride(1) == 1
        return x.as_strided(x.shape, (self.k, 1), x.storage_offset()) if gaps else x
