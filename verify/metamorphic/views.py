"""The same values elsewhere in memory, in a wider dtype, or under other experts' numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from moeproof.strategies.case import BAIT, BAIT_FLOAT, Case, TensorSpec, contiguous_strides
from moeproof.strategies.layouts import layouts_of
from moeproof.verify.trial import Trial
from moeproof.verify.violation import Violation

from .batches import owner_name, owners

GAP = 3
"""Elements between the rows of a strided view: odd, so that no vector load fits every row."""
WIDER = {"bfloat16": "float32", "float16": "float32", "int32": "int64"}
WIDE = "in a wider dtype"
WIDENED = {
    "fused_gate": ("logits", "bias"),
    "moe_align_block_size": ("topk_ids",),
    "append_shared_experts": ("shared_weights",),
}
"""Arguments that are read exactly in either dtype, and whose dtype no output has."""


def layout_variance(trial: Trial) -> list[Violation]:
    """Compare views with contiguous copies of them, or a contiguous case with strided, misaligned views."""
    for choices in relaid(trial.case):
        chosen = next(((what, case) for what, case in choices if trial.supports(case)), None)
        if chosen is None:
            continue
        what, case = chosen
        moved = {n: laid(trial.args[n], s) for n, s in case.tensors.items() if s is not trial.case.tensors[n]}
        args = trial.args | moved
        exact = trial.exact and (trial.case.op != "fused_gate" or trial.subject.layout_invariant)
        found = trial.compare("layout_variance", what, case, args, trial.run(case, args), exact=exact)
        if found:
            return found
    return []


def relaid(case: Case) -> list[list[tuple[str, Case]]]:
    """Return other layouts: lists of descriptions and cases, of each of which the first supported one will do."""
    plain = {n: replace(s, strides=None, offset=0) for n, s in case.tensors.items() if s.strides or s.offset}
    if plain:
        return [[("contiguous copies", case.but(**plain))]]
    spec = case.main
    name = next(n for n, s in case.tensors.items() if s is spec)
    rows, columns = spec.shape
    gaps = replace(spec, strides=(columns + GAP, 1))
    forms = {
        f"{name} misaligned, its rows {columns + GAP} elements apart": replace(gaps, offset=1),
        f"{name}, its rows {columns + GAP} elements apart": gaps,
        f"{name} misaligned": replace(spec, offset=1),
    }
    transposed = case.but(**{name: replace(spec, strides=(1, max(rows, 1)))})
    return [[(what, case.but(**{name: form})) for what, form in forms.items()], [(f"{name} transposed", transposed)]]


def laid(values: torch.Tensor, spec: TensorSpec) -> torch.Tensor:
    """Return values in the layout of a spec, with bait in the gaps."""
    bait = BAIT_FLOAT if values.is_floating_point() else BAIT[values.dtype]
    storage = values.new_full((spec.storage_elements,), bait)
    strides = spec.strides if spec.strides is not None else contiguous_strides(spec.shape)
    return storage.as_strided(spec.shape, strides, spec.offset).copy_(values)


def dtype_variance(trial: Trial) -> list[Violation]:
    """Compare bfloat16 or float16 values with the same ones as float32, int32 ids with int64."""
    made = widened(trial.case, trial.args)
    if made is None or not trial.supports(made[0]):
        return []
    case, args = made
    # A NaN among shared weights may be cast to any NaN.
    exact = trial.exact and case.op != "append_shared_experts"
    if case.op == "fused_gate":
        plain = trial.subject.layout_invariant or not layouts_of(trial.case.main)
        exact &= trial.subject.dtype_invariant and plain
    return trial.compare("dtype_variance", WIDE, case, args, trial.run(case, args), exact=exact)


def widened(case: Case, args: dict[str, Any]) -> tuple[Case, dict[str, Any]] | None:
    """Return a case's shapes and dtypes, and its arguments, with narrow dtypes widened; None if none is narrow."""
    specs: dict[str, TensorSpec] = {}
    other = dict(args)
    for name in WIDENED[case.op]:
        spec = case.tensors.get(name)
        if spec is not None and spec.dtype in WIDER:
            specs[name] = replace(spec, dtype=WIDER[spec.dtype], strides=None, offset=0)
            other[name] = args[name].to(getattr(torch, WIDER[spec.dtype])).contiguous()
    return (case.but(**specs), other) if specs else None


def label_variance(trial: Trial) -> list[Violation]:
    """Compare ids with the same ones numbered backwards: each index has to follow its expert.

    With an `expert_map` the map is turned too, so that nothing may change. For `moe_align_block_size` only.
    """
    if trial.case.op != "moe_align_block_size" or not trial.main.numel():
        return []
    case, args = relabelled(trial.case, trial.args)
    made = trial.run(case, args)
    if "expert_map" in args:
        return trial.compare(
            "label_variance", "ids and expert_map numbered backwards", case, args, made, exact=trial.exact
        )
    block, numel = int(case.params["block_size"]), trial.main.numel()
    last = int(case.params["num_experts"]) - 1
    want = owners(trial.made, numel, block)
    want = torch.where(want >= 0, last - want, want)
    got = owners(made, numel, block)
    wrong = (got != want).nonzero().flatten()
    if not len(wrong):
        return []
    at = int(wrong[0])
    message = (
        f"index {at} goes to {owner_name(int(got[at]))} where experts are numbered backwards, not to "
        f"{owner_name(int(want[at]))}"
    )
    return [Violation("label_variance", message, (), len(wrong))]


def relabelled(case: Case, args: dict[str, Any]) -> tuple[Case, dict[str, Any]]:
    """Return a case's shapes, and its arguments, with expert e called E−1−e."""
    experts = int(case.params["num_experts"])
    ids = args["topk_ids"]
    inside = (ids >= 0) & (ids < experts)
    other = args | {"topk_ids": torch.where(inside, experts - 1 - ids, ids).contiguous()}
    if "expert_map" in args:
        other["expert_map"] = args["expert_map"].flip(0)
    return case.but(topk_ids=replace(case.tensors["topk_ids"], strides=None, offset=0)), other
