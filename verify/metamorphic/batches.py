"""The same rows in another batch: alone, in another order, cut in two, with more rows, between rows of NaN.

Another batch is an index: for each of its rows the row of the case that it is, or `NAN` for a row of NaN (of −1 where
rows hold ids alone).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from moeproof.strategies.case import Case
from moeproof.strategies.domain import AlignDomain, Domain, GateDomain
from moeproof.strategies.layouts import layouts_of
from moeproof.verify.trial import Trial
from moeproof.verify.violation import MAX_ROWS, Violation

NAN = -1
ROW_INPUTS = ("logits", "topk_ids", "topk_weights", "shared_weights")
"""Arguments with a row for each token; `shared_weights` may also be a scalar."""
MAX_ENLARGED = {"cpu": 1 << 14, "cuda": 1 << 21}
"""Most elements of a batch that is enlarged to a threshold."""

Batches = Callable[[int, Sequence[int]], list[torch.Tensor]]


def alone(tokens: int, thresholds: Sequence[int]) -> list[torch.Tensor]:
    """Return the first row by itself."""
    return [torch.arange(1)]


def permuted(tokens: int, thresholds: Sequence[int]) -> list[torch.Tensor]:
    """Return all rows, odd ones first, backwards: no row keeps its neighbours."""
    rows = torch.arange(tokens)
    return [torch.cat([rows[0::2], rows[1::2]]).flip(0)]


def halves(tokens: int, thresholds: Sequence[int]) -> list[torch.Tensor]:
    """Return the two halves of the batch."""
    middle = tokens // 2
    return [torch.arange(middle), torch.arange(middle, tokens)]


def appended(tokens: int, thresholds: Sequence[int]) -> list[torch.Tensor]:
    """Return all rows, and the first one once more."""
    return [torch.cat([torch.arange(tokens), torch.arange(1)])]


def nan_neighbours(tokens: int, thresholds: Sequence[int]) -> list[torch.Tensor]:
    """Return all rows with a row of NaN before each and after the last."""
    index = torch.full((2 * tokens + 1,), NAN)
    index[1::2] = torch.arange(tokens)
    return [index]


def enlarged(tokens: int, thresholds: Sequence[int]) -> list[torch.Tensor]:
    """Return all rows over and over, in batches of each threshold and of one row more."""
    sizes = sorted({size for t in thresholds for size in (t, t + 1) if size >= 1})
    return [torch.arange(size) % tokens for size in sizes]


BATCHES: dict[str, Batches] = {
    "alone": alone,
    "permuted": permuted,
    "halves": halves,
    "appended": appended,
    "nan_neighbours": nan_neighbours,
    "enlarged": enlarged,
}


def indices(name: str, case: Case, domain: Domain, device: str) -> list[torch.Tensor]:
    """Return the other batches of a relation that a case has and a domain allows.

    Parameters
    ----------
    name : str
        A key of `BATCHES`.
    case : Case
        The case.
    domain : Domain
        The subject's domain.
    device : str
        ``"cpu"`` or ``"cuda"``: sets the size of enlarged batches.
    """
    tokens, width = case.main.shape
    if not tokens or (name == "nan_neighbours" and not _allows_nan(domain)):
        return []
    limit = MAX_ENLARGED[device] // max(width, 1)
    found = BATCHES[name](tokens, _thresholds(domain, width))
    return [
        index
        for index in found
        if len(index) and (len(index) <= limit or name != "enlarged") and not _is_identity(index, tokens)
    ]


def batch_variance(name: str) -> Callable[[Trial], list[Violation]]:
    """Return the check that rows give the same result in other batches.

    It compares bit for bit: of subjects that promise it, or whose op leaves no room. Other batches are contiguous: a
    case that isn't is compared with them only if the subject promises the same bits in every layout. For
    `moe_align_block_size` each index must go to the expert that it has in the whole batch.
    """

    def check(trial: Trial) -> list[Violation]:
        subject = trial.subject
        if trial.case.op == "fused_gate":
            alike = subject.layout_invariant or not layouts_of(trial.case.main)
            if not (subject.batch_invariant and subject.bitwise and alike):
                return []
        compare = _compare_owners if trial.case.op == "moe_align_block_size" else _compare_rows
        for index in indices(name, trial.case, trial.subject.domain, trial.device.type):
            other = resized(trial.case, len(index))
            found = compare(trial, other, index.to(trial.device)) if trial.supports(other) else None
            if found is not None:
                return [replace(found, message=f"{found.message} ({name})")]
        return []

    return check


def resized(case: Case, tokens: int) -> Case:
    """Return a case's shapes, dtypes and params for another number of rows, contiguous and without padding."""
    rows = {
        name: replace(spec, shape=(tokens, *spec.shape[1:]), strides=None, offset=0)
        for name, spec in case.tensors.items()
        if name in ROW_INPUTS and spec.shape
    }
    return case.but(num_token_non_padded=None, **rows)


def gathered(args: dict[str, Any], index: torch.Tensor) -> dict[str, Any]:
    """Return the arguments of another batch; a padded row has no result of its own, so none is padded there."""
    other = {k: v for k, v in args.items() if k != "num_token_non_padded"}
    for name in ROW_INPUTS:
        value = other.get(name)
        if isinstance(value, torch.Tensor) and value.dim():
            rows = value[index.clamp(min=0)]
            filler = float("nan") if value.is_floating_point() else -1
            other[name] = rows.masked_fill(index.view(-1, *[1] * (value.dim() - 1)) == NAN, filler).contiguous()
    return other


def _compare_rows(trial: Trial, case: Case, index: torch.Tensor) -> Violation | None:
    limit = trial.args.get("num_token_non_padded")
    valid = index != NAN
    if limit is not None:
        valid &= index < limit.reshape(())
    tokens = trial.main.shape[0]
    made = trial.run(case, gathered(trial.args, index))
    for name, want in trial.made.items():
        got = made.get(name)
        if got is None or got.shape != (len(index), *want.shape[1:]) or got.dtype != want.dtype:
            kind = "missing" if got is None else f"{tuple(got.shape)} {got.dtype}"
            return Violation("batch_variance", f"{name} is {kind} in a batch of {len(index)} rows")
        differ = trial.bits(name, got) != trial.bits(name, want)[index.clamp(min=0)]
        wrong = (differ.any(1) & valid).nonzero().flatten()
        if len(wrong):
            at = int(wrong[0])
            row = int(index[at])
            message = (
                f"row {row}: {name} are {want[row].tolist()} in a batch of {tokens} rows and "
                f"{got[at].tolist()} in one of {len(index)}"
            )
            return Violation("batch_variance", message, tuple(index[wrong][:MAX_ROWS].tolist()), len(wrong))
    return None


def _compare_owners(trial: Trial, case: Case, index: torch.Tensor) -> Violation | None:
    tokens, topk = trial.main.shape
    if not topk:
        return None
    block = int(case.params["block_size"])
    made = trial.run(case, gathered(trial.args, index))
    whole = owners(trial.made, tokens * topk, block).view(tokens, topk)
    want = whole[index.clamp(min=0)]
    nowhere = -1 if trial.subject.minus_one == "sentinel_blocks" else NOWHERE
    want = want.masked_fill((index == NAN)[:, None], nowhere).flatten()
    got = owners(made, len(want), block)
    wrong = (got != want).nonzero().flatten()
    if len(wrong):
        at = int(wrong[0])
        row, place = int(index[at // topk]), at % topk
        message = (
            f"place {place} of row {row} goes to {owner_name(int(want[at]))} in a batch of {tokens} rows and "
            f"to {owner_name(int(got[at]))} in one of {len(index)}"
        )
        rows = index[wrong // topk]
        return Violation("batch_variance", message, tuple(rows[rows != NAN].unique()[:MAX_ROWS].tolist()), len(wrong))
    descent = first_descent(made, len(want), block) if trial.subject.order == "stable" else None
    if descent is not None:
        message = (
            f"indices descend at place {descent} in a batch of {len(index)} rows, which they do not in one of {tokens}"
        )
        return Violation("batch_variance", message)
    return None


NOWHERE = -2
"""Owner of an index that is in no block."""


def owners(made: Mapping[str, torch.Tensor], numel: int, block: int) -> torch.Tensor:
    """Return ``[numel]`` int64: the expert in whose blocks each flat index stands; `NOWHERE` if in none."""
    places, owner, used = _placed(made, numel, block)
    # What is no index goes to an element that is cut off.
    at = torch.where(used, places, numel)
    return torch.full((numel + 1,), NOWHERE, device=places.device).scatter_(0, at, owner)[:numel]


def first_descent(made: Mapping[str, torch.Tensor], numel: int, block: int) -> int | None:
    """Return the first place of `sorted_token_ids` whose index is below the one before it in the same expert."""
    places, owner, used = _placed(made, numel, block)
    at = used.nonzero().flatten()
    places, owner = places[at], owner[at]
    descents = ((places[1:] < places[:-1]) & (owner[1:] == owner[:-1])).nonzero().flatten()
    return int(at[int(descents[0]) + 1]) if len(descents) else None


def _placed(
    made: Mapping[str, torch.Tensor], numel: int, block: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return what stands at each place, whose place it is, and whether it is an index in use."""
    places, owner = made["sorted_token_ids"].long(), made["expert_ids"].long().repeat_interleave(block)
    used = torch.arange(len(places), device=places.device) < made["num_tokens_post_pad"].long()
    return places, owner, used & (places >= 0) & (places < numel)


def owner_name(expert: int) -> str:
    """Put an entry of `owners` into words."""
    return "no block" if expert == NOWHERE else f"expert {expert}"


def _allows_nan(domain: Domain) -> bool:
    if isinstance(domain, GateDomain):
        return domain.nan
    return domain.minus_one if isinstance(domain, AlignDomain) else True


def _thresholds(domain: Domain, width: int) -> list[int]:
    """Return the numbers of rows at which a subject switches path."""
    return [*domain.thresholds.get("tokens", ()), *(n // max(width, 1) for n in domain.thresholds.get("ids", ()))]


def _is_identity(index: torch.Tensor, tokens: int) -> bool:
    return len(index) == tokens and bool((index == torch.arange(tokens)).all())
