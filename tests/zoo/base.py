"""Plain and correct implementations of the three operations, cut into steps that mutants override.

Written from docs/contracts.md alone; they share nothing with the references and the kernels. One object runs
one call: `run` performs the steps in the order of the methods below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from moeproof.strategies.domain import AlignDomain, AppendDomain, GateDomain

from .refuse import refuse_align, refuse_append, refuse_gate

CHUNK = 16384
"""Elements a call in `each`: fewer than torch splits over threads, and a multiple of any vector's."""
NAN_KEY = -(1 << 40)
"""Rank key of NaN: below that of every number."""


def each(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an elementwise function so that equal elements give equal bits, wherever they stand.

    torch computes the last elements of a tensor with other code than the rest, and the last bit can differ.
    """
    flat = torch.nn.functional.pad(x.reshape(-1), (0, -x.numel() % CHUNK))
    done = [function(part) for part in flat.split(CHUNK)] if x.numel() else [flat]
    return torch.cat(done)[: x.numel()].reshape(x.shape)


def total(x: Tensor) -> Tensor:
    """Return the sum over the last dimension, kept, added from first to last."""
    result = torch.zeros_like(x[..., :1])
    for column in x.split(1, dim=-1):
        result = result + column
    return result


def rank_key(c: Tensor) -> Tensor:
    """Return int64 keys that order float32 values as the contract does: NaN below −inf, −0 equal to +0."""
    bits = (c.float() + 0.0).contiguous().view(torch.int32).long()
    return torch.where(c.isnan(), NAN_KEY, torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits))


def best_first(c: Tensor) -> Tensor:
    """Return the ids of each row by descending value; equal values: lower id; NaN last."""
    order = torch.where(c.isnan(), -torch.inf, c).argsort(dim=-1, descending=True, stable=True)
    nan_last = c.isnan().gather(-1, order).byte().argsort(dim=-1, stable=True)
    return order.gather(-1, nan_last)


class Gate:
    """fused_gate: scores in float64 rounded to float32, everything after in float32."""

    op = "fused_gate"

    def __init__(self, args: dict[str, Any], outputs: dict[str, Tensor], domain: GateDomain) -> None:
        self.args, self.outputs, self.domain = args, outputs, domain

    def bind(self) -> None:
        """Check the arguments and give them short names."""
        args = self.args
        self.refuse()
        self.logits: Tensor = args["logits"]
        self.bias: Tensor | None = args.get("bias")
        self.k: int = args["topk"]
        self.scoring: str = args.get("scoring", "sigmoid")
        self.G: int = args.get("num_expert_group", 1)
        self.g: int = args.get("topk_group", 1)
        self.S: int = args.get("num_fused_shared_experts", 0)
        self.renormalize: bool = args.get("renormalize", True)
        self.f: float = args.get("routed_scaling_factor", 1.0)
        self.on_output: bool = args.get("apply_routed_scaling_factor_on_output", False)
        self.map: Tensor | None = args.get("expert_map")
        self.T, self.E = self.logits.shape
        limit = args.get("num_token_non_padded")
        self.limit = self.T if limit is None else int(limit.item())

    def refuse(self) -> None:
        refuse_gate(self.args, self.domain)

    def read(self) -> Tensor:
        """Return the logits, [T, E]."""
        return self.logits

    def sigmoid(self, x: Tensor) -> Tensor:
        return each(lambda v: (1 / (1 + (-v.double()).exp())).float(), x)

    def softmax(self, x: Tensor) -> Tensor:
        top = x.double().amax(-1, keepdim=True)
        e = each(torch.exp, x.double() - top)
        return (e / total(e)).float()

    def sqrtsoftplus(self, x: Tensor) -> Tensor:
        def function(v: Tensor) -> Tensor:
            v = v.double()
            return (v.clamp(min=0) + (-v.abs()).exp().log1p()).sqrt().float()

        return each(function, x)

    def scores(self, x: Tensor) -> Tensor:
        """Return s, [T, E]."""
        result: Tensor = getattr(self, self.scoring)(x.float())
        return result

    def biased(self, s: Tensor) -> Tensor:
        """Return c, [T, E]."""
        return s if self.bias is None else s + self.bias.to(s.dtype)

    def group_scores(self, c: Tensor) -> Tensor:
        """Return the groups' scores, [T, G], from c as [T, G, E/G]."""
        two = c.gather(-1, best_first(c)[..., :2])
        return two.sum(-1)

    def group_order(self, score: Tensor) -> Tensor:
        """Return the group ids, best first, [T, G]."""
        return best_first(score)

    def dropped(self, c: Tensor) -> Tensor:
        """Return which experts are in a group that is not kept, bool [T, E]."""
        if self.G == 1:
            return torch.zeros_like(c, dtype=torch.bool)
        score = self.group_scores(c.reshape(self.T, self.G, self.E // self.G))
        kept = torch.zeros((self.T, self.G), dtype=torch.bool)
        kept.scatter_(1, self.group_order(score)[:, : self.g], True)
        return ~kept.repeat_interleave(self.E // self.G, dim=1)

    def mask(self, c: Tensor, dropped: Tensor) -> Tensor:
        """Return c with the dropped experts out of the race."""
        return c.masked_fill(dropped, -torch.inf)

    def rank(self, c: Tensor) -> Tensor:
        """Return expert ids, best first, [T, at least k−S]."""
        return best_first(c)

    def choose(self, c: Tensor) -> Tensor:
        """Return the ids of the routed places, [T, k−S]."""
        return self.rank(c)[:, : self.k - self.S]

    def weigh(self, s: Tensor, c: Tensor, dropped: Tensor, ids: Tensor) -> Tensor:
        """Return the routed weights before renormalisation and scale, [T, k−S]."""
        out = s.masked_fill(dropped | s.isnan(), 0)
        return out.gather(1, ids)

    def denominator(self, w: Tensor, s: Tensor) -> Tensor:
        """Return what renormalize divides by, [T, 1]."""
        return total(w.double()).to(w.dtype)

    def divide(self, w: Tensor, by: Tensor) -> Tensor:
        return torch.where(by == 0, torch.zeros_like(w), w / by)

    def scale(self, w: Tensor) -> Tensor:
        return w * self.f if self.on_output else w

    def shared_weight(self) -> float:
        return 1.0 if self.on_output else 1 / self.f

    def shared_id(self) -> int:
        """Return the id of the first shared place."""
        return self.E

    def physical(self, ids: Tensor) -> Tensor:
        """Map the ids of all places."""
        return ids if self.map is None else self.map.long()[ids]

    def padded(self) -> Tensor:
        """Return which rows are padding, bool [T, 1]."""
        return (torch.arange(self.T) >= self.limit)[:, None]

    def write(self, w: Tensor, ids: Tensor) -> None:
        self.outputs["weights"].copy_(w)
        self.outputs["indices"].copy_(ids)

    def run(self) -> None:
        self.bind()
        s = self.scores(self.read())
        c = self.biased(s)
        dropped = self.dropped(c)
        c = self.mask(c, dropped)
        ids = self.choose(c)
        w = self.weigh(s, c, dropped, ids)
        if self.renormalize:
            w = self.divide(w, self.denominator(w, s))
        w = self.scale(w)
        first = self.shared_id()
        ids = torch.cat([ids, torch.arange(first, first + self.S).expand(self.T, self.S)], dim=1)
        w = torch.cat([w, torch.full((self.T, self.S), self.shared_weight(), dtype=w.dtype)], dim=1)
        self.finish(w, self.physical(ids))

    def finish(self, w: Tensor, ids: Tensor) -> None:
        """Blank the padding and write."""
        padded = self.padded()
        self.write(w.masked_fill(padded, 0), ids.masked_fill(padded, -1))


class Align:
    """moe_align_block_size by counting, stable; −1 is dropped, or kept in leading blocks if `sentinel`."""

    op = "moe_align_block_size"
    sentinel = False

    def __init__(self, args: dict[str, Any], outputs: dict[str, Tensor], domain: AlignDomain) -> None:
        self.args, self.outputs, self.domain = args, outputs, domain

    def bind(self) -> None:
        """Check the arguments and give them short names."""
        refuse_align(self.args, self.domain)
        self.topk_ids: Tensor = self.args["topk_ids"]
        self.E: int = self.args["num_experts"]
        self.B: int = self.args["block_size"]
        self.map: Tensor | None = self.args.get("expert_map")
        self.n = self.topk_ids.numel()
        self.lowest = -1 if self.sentinel else 0

    def read(self) -> Tensor:
        """Return the ids, flat, int64 [n]."""
        return self.topk_ids.reshape(-1).long()

    def mapped(self, ids: Tensor) -> Tensor:
        """Apply `expert_map`, [n]."""
        if self.map is None:
            return ids
        inside = (ids >= 0) & (ids < self.E)
        return torch.where(inside, self.map.long()[ids.clamp(0, self.E - 1)], ids)

    def order(self, ids: Tensor) -> Tensor:
        """Return the flat indices to place, grouped by ascending id."""
        order = ids.argsort(stable=True)
        valid = (ids >= self.lowest) & (ids < self.E)
        return order[valid[order]]

    def counts(self, ids: Tensor) -> Tensor:
        """Return how many indices each bucket gets, [E], or [E + 1] with a bucket for −1 in front."""
        valid = (ids >= self.lowest) & (ids < self.E)
        return torch.bincount(ids[valid] - self.lowest, minlength=self.E - self.lowest)

    def padded(self, counts: Tensor) -> Tensor:
        """Return the places each bucket takes."""
        return (counts + self.B - 1) // self.B * self.B

    def block_experts(self, padded: Tensor) -> Tensor:
        """Return the expert of each block in use."""
        return torch.arange(self.lowest, self.E).repeat_interleave(padded // self.B)

    def pad_value(self) -> int:
        return self.n

    def post_pad(self, padded: Tensor) -> int:
        return int(padded.sum())

    def write(self, sorted_ids: Tensor, experts: Tensor, post: int) -> None:
        """Write the outputs; `sorted_ids` and `experts` may be shorter or longer than the outputs."""
        places, blocks = self.outputs["sorted_token_ids"], self.outputs["expert_ids"]
        places.fill_(self.n)
        places[: len(sorted_ids)] = sorted_ids[: len(places)].to(places.dtype)
        blocks.fill_(-1)
        blocks[: len(experts)] = experts[: len(blocks)].to(blocks.dtype)
        self.outputs["num_tokens_post_pad"].fill_(post)

    def place(self, order: Tensor, buckets: Tensor, counts: Tensor, padded: Tensor) -> Tensor:
        """Return the places in use: `order` spread over the buckets, the gaps padded."""
        within = torch.arange(len(order)) - (counts.cumsum(0) - counts)[buckets]
        at = (padded.cumsum(0) - padded)[buckets] + within
        result = torch.full((max([int(padded.sum()), *(at + 1).tolist()]),), self.pad_value())
        result[at] = order
        return result

    def run(self) -> None:
        self.bind()
        ids = self.mapped(self.read())
        order, counts = self.order(ids), self.counts(ids)
        padded = self.padded(counts)
        places = self.place(order, ids[order] - self.lowest, counts, padded)
        self.write(places, self.block_experts(padded), self.post_pad(padded))


class Append:
    """append_shared_experts, column by column."""

    op = "append_shared_experts"

    def __init__(self, args: dict[str, Any], outputs: dict[str, Tensor], domain: AppendDomain) -> None:
        self.args, self.outputs, self.domain = args, outputs, domain

    def bind(self) -> None:
        """Check the arguments and give them short names."""
        refuse_append(self.args, self.domain)
        self.topk_ids: Tensor = self.args["topk_ids"]
        self.topk_weights: Tensor = self.args["topk_weights"]
        self.given: Tensor = self.args["shared_weights"]
        self.E: int = self.args["num_experts"]
        self.S: int = self.args.get("num_fused_shared_experts", 1)
        self.T, self.k = self.topk_ids.shape
        limit = self.args.get("num_token_non_padded")
        self.limit = self.T if limit is None else int(limit.item())

    def routed_ids(self) -> Tensor:
        return self.topk_ids

    def routed_weights(self) -> Tensor:
        return self.topk_weights

    def spread(self) -> Tensor:
        """Return the shared weights as given, [T, S]."""
        given = self.given[:, None] if self.given.dim() == 1 else self.given
        return given.expand(self.T, self.S)

    def cast(self, shared: Tensor) -> Tensor:
        return shared.to(self.topk_weights.dtype)

    def shared_ids(self) -> Tensor:
        """Return the ids of the shared places, [S]."""
        return torch.arange(self.E, self.E + self.S)

    def blank(self, ids: Tensor, weights: Tensor) -> None:
        """Blank the padding, in place."""
        padded = torch.arange(self.T) >= self.limit
        ids[padded] = -1
        weights[padded] = 0

    def write(self, ids: Tensor, weights: Tensor) -> None:
        self.outputs["ids"].copy_(ids)
        self.outputs["weights"].copy_(weights)

    def run(self) -> None:
        self.bind()
        shared_ids = self.shared_ids().to(self.topk_ids.dtype).expand(self.T, self.S)
        ids = torch.cat([self.routed_ids(), shared_ids], dim=1)
        weights = torch.cat([self.routed_weights(), self.cast(self.spread())], dim=1)
        self.blank(ids, weights)
        self.write(ids, weights)
