"""Ties each op to its outputs and its oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from moeproof.strategies.case import Case

from .oracle.align import AlignRules, capacity, judge_align
from .oracle.append import judge_append
from .oracle.gate import Failures, GateRules, judge_gate
from .subject import Subject
from .violation import MAX_ROWS, Violation

OutputSpec = tuple[tuple[int, ...], torch.dtype]


def output_specs(case: Case, subject: Subject) -> dict[str, OutputSpec]:
    """Return shape and dtype of each output that the contract asks for, by name."""
    if case.op == "fused_gate":
        shape = (case.tensors["logits"].shape[0], int(case.params["topk"]))
        return {"weights": (shape, torch.float32), "indices": (shape, torch.int32)}
    tokens, topk = case.tensors["topk_ids"].shape
    if case.op == "moe_align_block_size":
        block = int(case.params["block_size"])
        size = capacity(tokens * topk, int(case.params["num_experts"]), block, subject.minus_one)
        return {
            "sorted_token_ids": ((size,), torch.int32),
            "expert_ids": ((size // block,), torch.int32),
            "num_tokens_post_pad": ((1,), torch.int32),
        }
    shape = (tokens, topk + int(case.params.get("num_fused_shared_experts", 1)))
    dtypes = {name: getattr(torch, case.tensors[name].dtype) for name in ("topk_ids", "topk_weights")}
    return {"ids": (shape, dtypes["topk_ids"]), "weights": (shape, dtypes["topk_weights"])}


def arguments(case: Case, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return a case's arguments by name: its tensors as built, and its params."""
    return {**tensors, **case.params}


def gate_rules(subject: Subject) -> GateRules:
    """Return what a subject of fused_gate documents instead of the contract's own rules."""
    return GateRules(subject.tie_order, subject.weights_scaled, subject.unranked)


def judge(
    case: Case, subject: Subject, args: Mapping[str, Any], outputs: Mapping[str, torch.Tensor]
) -> list[Violation]:
    """Judge a subject's outputs by its op's contract.

    Parameters
    ----------
    case : Case
        The case.
    subject : Subject
        Says which rules it documents.
    args : mapping
        The arguments, unchanged, on the device of the outputs.
    outputs : mapping
        The outputs by name.

    Returns
    -------
    list of Violation
        Empty if all is right.
    """
    for name, (shape, dtype) in output_specs(case, subject).items():
        value = outputs.get(name)
        if value is None or tuple(value.shape) != shape or value.dtype != dtype:
            got = "missing" if value is None else f"{tuple(value.shape)} {value.dtype}"
            return [Violation("ids_invalid", f"output {name} is {got}, expected {shape} {dtype}")]
    if case.op == "fused_gate":
        rules = gate_rules(subject)
        if not args["logits"].shape[0]:
            return []
        return _violations(judge_gate(args, outputs, rules))
    if case.op == "moe_align_block_size":
        return judge_align(args, outputs, AlignRules(subject.order, subject.minus_one))
    return judge_append(args, outputs)


def _violations(failures: Failures) -> list[Violation]:
    if not failures.masks:
        return []
    names = list(failures.masks)
    stacked = torch.stack([failures.masks[n] for n in names])
    counts = stacked.sum(1).tolist()
    found = []
    for name, count in zip(names, counts, strict=True):
        if count:
            rows = failures.masks[name].nonzero().flatten()[:MAX_ROWS].tolist()
            message = f"row {rows[0]}: {failures.explain[name](rows[0])}"
            found.append(Violation(name, message, tuple(rows), count))
    return found
