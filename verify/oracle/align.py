"""The oracle of moe_align_block_size: the one right answer, up to order where that is free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from moeproof.verify.violation import Violation


@dataclass(frozen=True)
class AlignRules:
    """What a subject declares.

    Attributes
    ----------
    order : str
        ``stable`` or ``any``, within an expert.
    minus_one : str
        ``drop`` or ``sentinel_blocks``.
    """

    order: str = "stable"
    minus_one: str = "drop"


def capacity(numel: int, num_experts: int, block_size: int, minus_one: str = "drop") -> int:
    """Return the largest total that can occur: the length of `sorted_token_ids`."""
    buckets = num_experts + (minus_one == "sentinel_blocks")
    return (numel + min(numel, buckets) * (block_size - 1)) // block_size * block_size


def expected_align(args: Mapping[str, Any], rules: AlignRules) -> dict[str, torch.Tensor]:
    """Return the stable answer, outputs by name, on the device of the ids."""
    ids = args["topk_ids"].reshape(-1).long()
    experts, block = int(args["num_experts"]), int(args["block_size"])
    numel, device = ids.numel(), ids.device
    if args.get("expert_map") is not None:
        inside = (ids >= 0) & (ids < experts)
        mapped = args["expert_map"].long()[torch.where(inside, ids, 0)]
        ids = torch.where(inside, mapped, torch.where(ids == -1, -1, -2))
    sentinel = int(rules.minus_one == "sentinel_blocks")
    bucket = torch.where((ids >= 0) & (ids < experts), ids + sentinel, -1)
    if sentinel:
        bucket = torch.where(ids == -1, 0, bucket)
    order = torch.sort(bucket, stable=True).indices
    counts = torch.bincount(bucket + 1, minlength=experts + sentinel + 1)
    dropped, counts = counts[0], counts[1:]
    padded = (counts + block - 1) // block * block
    ends = padded.cumsum(0)
    shift = (ends - padded) - (counts.cumsum(0) - counts)
    size = capacity(numel, experts, block, rules.minus_one)
    # Dropped ids come first in the order, and go to a place past the end that is cut off.
    rank = torch.arange(numel, device=device) - dropped
    owners = bucket[order]
    place = torch.where(owners >= 0, rank + shift[owners.clamp(min=0)], size)
    sorted_ids = torch.full((size + 1,), numel, dtype=torch.int32, device=device)
    sorted_ids = sorted_ids.scatter_(0, place, order.int())[:size]
    starts = torch.arange(0, size, block, device=device)
    owner = torch.searchsorted(ends, starts, right=True)
    expert_ids = torch.where(starts < ends[-1], owner - sentinel, -1).int()
    return {
        "sorted_token_ids": sorted_ids,
        "expert_ids": expert_ids,
        "num_tokens_post_pad": ends[-1:].int(),
    }


def judge_align(args: Mapping[str, Any], outputs: Mapping[str, torch.Tensor], rules: AlignRules) -> list[Violation]:
    """Judge a result of moe_align_block_size.

    Parameters
    ----------
    args : mapping
        The arguments by name.
    outputs : mapping
        The outputs by name, on the same device.
    rules : AlignRules
        What the subject declares.

    Returns
    -------
    list of Violation
        At most one, of class ``align_layout``; rows are places of the first output that differs.
    """
    expected = expected_align(args, rules)
    got = dict(outputs)
    if rules.order == "any":
        got["sorted_token_ids"] = _ordered(got["sorted_token_ids"], expected, int(args["block_size"]))
    differ = {n: got[n] != expected[n] for n in ("num_tokens_post_pad", "expert_ids", "sorted_token_ids")}
    wrong = torch.stack([d.any() for d in differ.values()]).tolist()
    for name, hit in zip(differ, wrong, strict=True):
        if hit:
            return [_violation(name, differ[name], got, expected, args)]
    return []


def _ordered(values: torch.Tensor, expected: dict[str, torch.Tensor], block: int) -> torch.Tensor:
    """Sort the places of each expert, so that any order within an expert compares equal."""
    owner = expected["expert_ids"].long().repeat_interleave(block)
    # Blocks of -1 may border on the tail, which has no order to be free in.
    place = torch.arange(len(owner), device=owner.device)
    owner = torch.where(place < expected["num_tokens_post_pad"], owner, -2)
    # An owner's blocks follow one another: a stable sort by value, then by owner, keeps segments in place.
    runs = torch.zeros_like(owner)
    runs[1:] = (owner[1:] != owner[:-1]).long().cumsum(0)
    by_value = torch.sort(values.long(), stable=True).indices
    return values[by_value[torch.sort(runs[by_value], stable=True).indices]]


def _violation(
    name: str,
    differs: torch.Tensor,
    outputs: Mapping[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
    args: Mapping[str, Any],
) -> Violation:
    places = differs.nonzero().flatten()
    first, count = int(places[0]), len(places)
    total, block = int(expected["num_tokens_post_pad"]), int(args["block_size"])
    value, want = int(outputs[name][first]), int(expected[name][first])
    numel = args["topk_ids"].numel()
    message = f"{name}[{first}] is {value}, expected {want}"
    if name == "sorted_token_ids":
        where = "past num_tokens_post_pad" if first >= total else f"in block {first // block}"
        message += f" ({where}, of expert {int(expected['expert_ids'][first // block])}; padding is {numel})"
    elif name == "expert_ids" and first * block >= total:
        message += " (past num_tokens_post_pad)"
    message += f"; {count} of {differs.numel()} places differ"
    return Violation("align_layout", message, (), count)
