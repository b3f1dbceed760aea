"""Wrong implementations of moe_align_block_size."""

from __future__ import annotations

import torch
from torch import Tensor

from moeproof.strategies.domain import AlignDomain

from .base import Align
from .entry import Entry, planter

WRONG: list[Entry] = []
_plant = planter(WRONG)

LAYOUT = ("align_layout", "ids_invalid")


@_plant("align-last-expert-uncounted", *LAYOUT, examples=60, experts=1, topk=1)
class LastExpertUncounted(Align):
    """The last expert is not counted, so that its indices lie past the places in use."""

    def counts(self, ids: Tensor) -> Tensor:
        counts = super().counts(ids)
        counts[-1] = 0
        return counts


@_plant("align-last-expert-dropped", *LAYOUT, examples=60, experts=1, topk=1)
class LastExpertDropped(Align):
    """There is one bucket too few: indices of expert E−1 appear nowhere."""

    def mapped(self, ids: Tensor) -> Tensor:
        ids = super().mapped(ids)
        return ids.masked_fill(ids == self.E - 1, -1)


@_plant("align-last-index-lost", *LAYOUT, examples=60, experts=1, topk=1)
class LastIndexLost(Align):
    """The last of an odd number of ids is not read."""

    def mapped(self, ids: Tensor) -> Tensor:
        ids = super().mapped(ids).clone()
        if self.n % 2:
            ids[-1] = self.E
        return ids


@_plant("align-tail-unwritten", "unwritten", examples=60, experts=2)
class TailUnwritten(Align):
    """`sorted_token_ids` is left as it was past the places in use."""

    def write(self, sorted_ids: Tensor, experts: Tensor, post: int) -> None:
        places = self.outputs["sorted_token_ids"]
        before = places.clone()
        super().write(sorted_ids, experts, post)
        places[post:] = before[post:]


@_plant("align-expert-tail-unwritten", "unwritten", examples=60, experts=2)
class ExpertTailUnwritten(Align):
    """`expert_ids` is left as it was past the blocks in use."""

    def write(self, sorted_ids: Tensor, experts: Tensor, post: int) -> None:
        blocks = self.outputs["expert_ids"]
        before = blocks.clone()
        super().write(sorted_ids, experts, post)
        blocks[post // self.B :] = before[post // self.B :]


@_plant("align-empty-unwritten", "unwritten", examples=100, rows=0)
class EmptyUnwritten(Align):
    """Without tokens nothing is launched and `num_tokens_post_pad` is left as it was."""

    def write(self, sorted_ids: Tensor, experts: Tensor, post: int) -> None:
        if self.n:
            super().write(sorted_ids, experts, post)


@_plant("align-tail-zero", "align_layout", examples=60, experts=2)
class TailZero(Align):
    """Past the places in use `sorted_token_ids` holds 0, a valid index, instead of n."""

    def write(self, sorted_ids: Tensor, experts: Tensor, post: int) -> None:
        super().write(sorted_ids, experts, post)
        self.outputs["sorted_token_ids"][post:] = 0


@_plant("align-expert-tail-zero", "align_layout", examples=60, experts=2)
class ExpertTailZero(Align):
    """Past the blocks in use `expert_ids` holds 0, a valid expert, instead of −1."""

    def write(self, sorted_ids: Tensor, experts: Tensor, post: int) -> None:
        super().write(sorted_ids, experts, post)
        self.outputs["expert_ids"][post // self.B :] = 0


@_plant("align-pad-minus-one", "align_layout", examples=60, experts=1, topk=1)
class PadMinusOne(Align):
    """Groups are padded with −1 instead of n."""

    def pad_value(self) -> int:
        return -1


@_plant("align-minus-one-wrapped", *LAYOUT, examples=100, experts=1, topk=1)
class MinusOneWrapped(Align):
    """Id −1 wraps around to the last expert."""

    def mapped(self, ids: Tensor) -> Tensor:
        ids = super().mapped(ids)
        return torch.where(ids == -1, self.E - 1, ids)


@_plant("align-out-of-range-clamped", *LAYOUT, examples=150, experts=1, topk=1)
class OutOfRangeClamped(Align):
    """Ids of E and above are clamped to E−1 instead of dropped."""

    def mapped(self, ids: Tensor) -> Tensor:
        return super().mapped(ids).clamp(max=self.E - 1)


@_plant("align-extra-block", "align_layout", examples=60, experts=1)
class ExtraBlock(Align):
    """An expert whose count is an exact multiple of the block size gets a block of padding on top."""

    def padded(self, counts: Tensor) -> Tensor:
        return torch.where(counts > 0, (counts // self.B + 1) * self.B, 0)


@_plant("align-block-power-of-two", "align_layout", examples=100, experts=2)
class BlockPowerOfTwo(Align):
    """Groups are padded to the largest power of two in the block size, as a shift does it."""

    def padded(self, counts: Tensor) -> Tensor:
        shift = self.B.bit_length() - 1
        return ((counts + (1 << shift) - 1) >> shift) << shift


@_plant("align-post-pad-unpadded", "align_layout", examples=60, experts=1, topk=1)
class PostPadUnpadded(Align):
    """`num_tokens_post_pad` is the number of ids, without the padding."""

    def post_pad(self, padded: Tensor) -> int:
        return self.n


@_plant("align-claims-stable", "align_layout", examples=60, experts=1)
class ClaimsStable(Align):
    """Within an expert flat indices descend although ascending ones are promised."""

    def order(self, ids: Tensor) -> Tensor:
        order = super().order(ids).flip(0)
        return order[ids[order].argsort(stable=True)]


@_plant("align-claims-bitwise", "nondeterminism", examples=60, experts=3, order="any")
class ClaimsBitwise(Align):
    """Within an expert the order differs from run to run although repeatable results are promised."""

    def order(self, ids: Tensor) -> Tensor:
        order = super().order(ids)
        order = order[torch.randperm(len(order))]
        return order[ids[order].argsort(stable=True)]


@_plant("align-duplicate-index", "align_layout", examples=60, experts=1)
class DuplicateIndex(Align):
    """The last index placed is a copy of the one before it."""

    def order(self, ids: Tensor) -> Tensor:
        order = super().order(ids).clone()
        if len(order) > 1 and ids[order[-1]] == ids[order[-2]]:
            order[-1] = order[-2]
        return order


@_plant("align-experts-dense", "align_layout", examples=60, experts=2, topk=1)
class ExpertsDense(Align):
    """Blocks are numbered by the experts that have any, so that an empty expert shifts those after it."""

    def block_experts(self, padded: Tensor) -> Tensor:
        return torch.arange(int((padded > 0).sum())).repeat_interleave(padded[padded > 0] // self.B)


@_plant(
    "align-int64-truncated",
    *LAYOUT,
    examples=400,
    experts=1,
    topk=1,
    domain=AlignDomain(
        experts=range(1, 33),
        topk=range(1, 9),
        block_sizes=range(1, 65),
        ids_dtypes=("int64",),
        tokens=range(65),
    ),
)
class Int64Truncated(Align):
    """int64 ids are cut to 32 bits, so that 2^32 counts as expert 0."""

    def read(self) -> Tensor:
        return super().read().int().long()


@_plant(
    "align-uint8-count",
    "align_layout",
    "guard_zone",
    examples=200,
    rows=256,
    experts=None,
    domain=AlignDomain(
        experts=range(1, 9),
        topk=range(1, 9),
        block_sizes=range(1, 65),
        tokens=range(600),
        thresholds={"ids": (256,)},
    ),
)
class Uint8Count(Align):
    """Counts wrap around at 256."""

    def counts(self, ids: Tensor) -> Tensor:
        return super().counts(ids) & 255


@_plant("align-overflow", "guard_zone", examples=60, experts=1, topk=1)
class Overflow(Align):
    """The tail is filled one element past the capacity."""

    def write(self, sorted_ids: Tensor, experts: Tensor, post: int) -> None:
        super().write(sorted_ids, experts, post)
        out = self.outputs["sorted_token_ids"]
        out.as_strided((1,), (1,), out.storage_offset() + out.numel()).fill_(self.n)


@_plant("align-map-ignored", *LAYOUT, examples=100, experts=2, topk=1)
class MapIgnored(Align):
    """`expert_map` is ignored."""

    def mapped(self, ids: Tensor) -> Tensor:
        return ids


@_plant("align-map-elsewhere-first", *LAYOUT, examples=150, experts=2, topk=1)
class MapElsewhereFirst(Align):
    """Ids that `expert_map` sends elsewhere (−1) are counted as expert 0."""

    def mapped(self, ids: Tensor) -> Tensor:
        mapped = super().mapped(ids)
        return torch.where((ids >= 0) & (mapped == -1), 0, mapped)


@_plant("align-writes-input", "input_modified", examples=100, topk=1)
class WritesInput(Align):
    """Ids of −1 in the caller's last row become E, which is dropped too."""

    def read(self) -> Tensor:
        last = self.topk_ids[-1:]
        last.masked_fill_(last == -1, self.E)
        return super().read()


@_plant("align-sentinel-trailing", *LAYOUT, examples=150, experts=1, topk=2, minus_one="sentinel_blocks")
class SentinelTrailing(Align):
    """Blocks of −1 come last although leading ones are promised."""

    sentinel = True

    def mapped(self, ids: Tensor) -> Tensor:
        """Make −1 one expert more, last; the bucket in front that `bind` has declared stays empty."""
        ids = super().mapped(ids)
        ids = ids.masked_fill(ids == self.E, self.E + 1)
        self.E += 1
        return ids.masked_fill(ids == -1, self.E - 1)

    def block_experts(self, padded: Tensor) -> Tensor:
        experts = super().block_experts(padded)
        return experts.masked_fill(experts == self.E - 1, -1)


@_plant("align-sentinel-dropped", *LAYOUT, examples=100, experts=1, topk=1, minus_one="sentinel_blocks")
class SentinelDropped(Align):
    """Ids of −1 are dropped although blocks of their own are promised."""


@_plant("align-row-stride-ignored", *LAYOUT, examples=150, rows=2, experts=2)
class RowStrideIgnored(Align):
    """Rows with gaps between them are read as if there were none."""

    def read(self) -> Tensor:
        x = self.topk_ids
        gaps = x.stride(0) > x.shape[1] and x.stride(1) == 1
        return (x.as_strided((self.n,), (1,), x.storage_offset()) if gaps else x.reshape(-1)).long()
