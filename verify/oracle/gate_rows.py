"""Rows of fused_gate scored in float64, and the selection that float64 makes of them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .scores import TINY, U, score_error, scores, sum_error

LAST = -1e300
"""Key of c = -inf and of dropped experts: below every finite score. NaN has -inf, below that."""
LIMIT_CLASS = 0x7FC00000 << 32
"""Tie class of c = -inf; those of NaN and +inf follow. No finite logit has these upper bits."""


@dataclass(frozen=True)
class GateRules:
    """What a subject documents instead of the contract's own rules.

    Attributes
    ----------
    tie_order : str
        ``lower_id``, or ``any`` where equal scores may come in any order.
    weights_scaled : str
        ``flag``, or ``renormalized``: the scale is applied only together with `renormalize`.
    unranked : str
        ``score``, or ``any``: the weight of an expert whose c is NaN or −inf, or whose group is dropped, is open, and
        the order of those with NaN.
    """

    tie_order: str = "lower_id"
    weights_scaled: str = "flag"
    unranked: str = "score"


@dataclass(frozen=True)
class GateParams:
    """The plain arguments of fused_gate."""

    topk: int
    scoring: str = "sigmoid"
    num_expert_group: int = 1
    topk_group: int = 1
    renormalize: bool = True
    routed_scaling_factor: float = 1.0
    apply_routed_scaling_factor_on_output: bool = False
    num_fused_shared_experts: int = 0

    @classmethod
    def of(cls, args: Mapping[str, Any]) -> GateParams:
        """Return the plain ones among some arguments by name."""
        return cls(**{name: value for name, value in args.items() if name in cls.__dataclass_fields__})

    @property
    def routed(self) -> int:
        """Places that go to routed experts."""
        return self.topk - self.num_fused_shared_experts

    @property
    def may_be_open(self) -> bool:
        """Whether a weight can be inf / inf, which is open."""
        return self.renormalize and self.scoring == "sqrtsoftplus"


@dataclass(frozen=True)
class Rows:
    """A block of rows in float64.

    Attributes
    ----------
    x, s, c, key : Tensor
        ``[R, E]`` float64: logits, scores, ranking scores, and the ranking key of `rank_key`.
    bias : Tensor, optional
        ``[E]`` float64.
    """

    x: torch.Tensor
    s: torch.Tensor
    c: torch.Tensor
    key: torch.Tensor
    bias: torch.Tensor | None

    def take(self, index: torch.Tensor | slice) -> Rows:
        """Return some of the rows."""
        return Rows(self.x[index], self.s[index], self.c[index], self.key[index], self.bias)

    def interval(self, scoring: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return lower and upper bounds of the ranking score of a float32 evaluation."""
        # Without a bias the error of softmax's sum is common to the row: it can't reorder it.
        common = sum_error(self.x, self.s) if scoring == "softmax" and self.bias is not None else None
        error = score_error(self.x, self.s, scoring, top=top_of(self.x, scoring), common=common)
        if self.bias is not None:
            error = error + U * (self.c.abs() + error) + TINY
        error = torch.where(self.c.isfinite(), error, 0.0)
        return self.key - error, self.key + error

    def tie_classes(self) -> torch.Tensor:
        """Return ``[R, E]`` int64, equal where experts are provably tied.

        They are if logit and bias are the same, or if the score is the same and not finite.
        """
        classes = _bits(self.x) << 32
        if self.bias is not None:
            classes = classes | (_bits(self.bias) & 0xFFFFFFFF)
        below, above = self.key <= LAST, self.key == torch.inf
        limit = LIMIT_CLASS + 2 * above + (below & (self.key < LAST))
        return torch.where(below | above, limit, classes)


def _bits(values: torch.Tensor) -> torch.Tensor:
    """Return the float32 bits of values that came from float32 or narrower, -0 as +0."""
    return (values.float() + 0.0).view(torch.int32).long()


def numbers(count: int, device: torch.device) -> torch.Tensor:
    """Return 0 … count−1 as int64; not to be written."""
    return _numbers_below(1 << max(count - 1, 0).bit_length(), device)[:count]


@functools.lru_cache(maxsize=64)
def _numbers_below(end: int, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.arange(end, device=device)


def top_of(x: torch.Tensor, scoring: str) -> torch.Tensor | None:
    """Return ``[R, 1]``: what softmax subtracts; None for other scores."""
    return x.amax(1, keepdim=True) if scoring == "softmax" else None


def rank_key(c: torch.Tensor) -> torch.Tensor:
    """Return keys that order like the contract does: NaN below -inf, both below every finite number."""
    return c.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=LAST).add_(0.0)


def score_rows(logits: torch.Tensor, bias: torch.Tensor | None, params: GateParams) -> Rows:
    """Score rows in float64."""
    x = logits.double()
    s = scores(x, params.scoring)
    b = None if bias is None else bias.double()
    c = s if b is None else s + b
    return Rows(x, s, c, rank_key(c), b)


def top_two(rows: Rows, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each group's score ``[R, G]``, and the expert ids of its best two ``[R, G, 2]`` (or one)."""
    count, experts = rows.key.shape
    size = experts // groups
    best = rows.key.view(count, groups, size).topk(min(2, size), dim=2).indices
    score = rows.c.view(count, groups, size).gather(2, best).sum(2)
    return score, best + (numbers(groups, best.device) * size)[:, None]


def gold_groups(rows: Rows, params: GateParams) -> torch.Tensor:
    """Return ``[R, G]`` bool: the groups that a float64 evaluation keeps."""
    score, _ = top_two(rows, params.num_expert_group)
    order = torch.sort(rank_key(score), dim=1, descending=True, stable=True).indices[:, : params.topk_group]
    kept = torch.zeros_like(score, dtype=torch.bool)
    return kept.scatter_(1, order, True)


def per_expert(kept: torch.Tensor, experts: int) -> torch.Tensor:
    """Spread ``[R, G]`` over the experts of each group: ``[R, E]``."""
    return kept[:, :, None].expand(-1, -1, experts // kept.shape[1]).reshape(-1, experts)


def kept_key(rows: Rows, kept: torch.Tensor | None) -> torch.Tensor:
    """Return the ranking key with dropped experts as -inf."""
    return rows.key if kept is None else torch.where(per_expert(kept, rows.key.shape[1]), rows.key, LAST)


def gold_ids(rows: Rows, kept: torch.Tensor | None, params: GateParams) -> torch.Tensor:
    """Return ``[R, k-S]`` int64: the routed ids of a float64 evaluation."""
    key = kept_key(rows, kept)
    return torch.sort(key, dim=1, descending=True, stable=True).indices[:, : params.routed]


def is_gold(key: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Say for each row whether `chosen`, in range, is what `gold_ids` gives, without a sort."""
    keys = key.gather(1, chosen)
    last, last_id = keys[:, -1:], chosen[:, -1:]
    # Where keys are equal, ids decide.
    ahead = torch.where(key == last, numbers(key.shape[1], key.device) <= last_id, key > last)
    right = ahead.sum(1) == chosen.shape[1]
    if chosen.shape[1] > 1:
        earlier, later = keys[:, :-1], keys[:, 1:]
        right &= torch.where(earlier == later, chosen[:, :-1] < chosen[:, 1:], earlier > later).all(1)
    # Places in order are distinct and none is behind the last: if the counts agree, none is missing.
    return right


def finite_counts(rows: Rows, groups: int) -> torch.Tensor:
    """Return ``[R, G]``: how many experts of each group have a score above -inf."""
    return (rows.key > LAST).view(len(rows.key), groups, -1).sum(2)
