"""The variants of a case that a further check tries, spelled out for a script."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from moeproof.strategies.case import Case, TensorSpec, literal
from moeproof.strategies.domain_check import why_outside
from moeproof.verify.contract import arguments
from moeproof.verify.subject import Subject

from .batches import BATCHES, ROW_INPUTS, gathered, indices, resized
from .views import WIDE, relabelled, relaid, widened


@dataclass(frozen=True)
class Variant:
    """A variant of a case.

    Attributes
    ----------
    what : str
        What it is, in a few words.
    case : Case
        The variant, in literals.
    batch : str
        Of another batch, the rows of the case that its rows are, −1 for a row of NaN, as Python that knows `tokens`.
    """

    what: str
    case: Case
    batch: str = ""

    def changed(self, case: Case) -> dict[str, TensorSpec]:
        """Return the tensors that differ from those of the original case."""
        return {name: spec for name, spec in self.case.tensors.items() if case.tensors.get(name) != spec}


def variants(name: str, case: Case, subject: Subject, device: str) -> list[Variant]:
    """Return the variants that the check `name` tries on a device (``"cpu"`` or ``"cuda"``); none if it tries none."""
    tensors, _ = case.build("cpu")
    args = arguments(case, tensors)
    if name in BATCHES:
        found = [
            Variant(name.replace("_", " "), _batch(case, args, index), spelled(name, index))
            for index in indices(name, case, subject.domain, device)
        ]
    elif name == "layout":
        found = []
        for choices in relaid(case):
            allowed = [(w, c) for w, c in choices if why_outside(c, subject.domain) is None]
            found += [Variant(what, _spelled(case, args, other, args)) for what, other in allowed[:1]]
    elif name == "dtype" and (wide := widened(case, args)) is not None:
        found = [Variant(WIDE, _spelled(case, args, *wide))]
    elif name == "labels" and case.op == "moe_align_block_size":
        found = [Variant("experts numbered backwards", _spelled(case, args, *relabelled(case, args)))]
    else:
        found = []
    return [v for v in found if why_outside(v.case, subject.domain) is None]


def spelled(name: str, index: torch.Tensor) -> str:
    """Return the rows of another batch as Python that knows the number of `tokens`."""
    if name == "halves":
        return "[*range(tokens // 2)]" if not len(index) or not int(index[0]) else "[*range(tokens // 2, tokens)]"
    return {
        "alone": "[0]",
        "permuted": "[*range(0, tokens, 2), *range(1, tokens, 2)][::-1]",
        "appended": "[*range(tokens), 0]",
        "nan_neighbours": "[-1] + [r for row in range(tokens) for r in (row, -1)]",
        "enlarged": f"[row % tokens for row in range({len(index)})]",
    }[name]


def _batch(case: Case, args: dict[str, Any], index: torch.Tensor) -> Case:
    count = case.main.shape[0]
    if len(index) >= count and bool((index == torch.arange(len(index)) % count).all()):
        # As many literal rows as there are different ones; they are repeated.
        made = gathered(args, torch.arange(count))
    else:
        made = gathered(args, index)
    other = resized(case, len(index))
    names = [n for n in other.tensors if n in ROW_INPUTS and other.tensors[n].shape]
    return other.but(**{n: replace(other.tensors[n], rows=literal(made[n]), recipe=None) for n in names})


def _spelled(case: Case, args: dict[str, Any], other: Case, moved: dict[str, Any]) -> Case:
    names = [n for n, s in other.tensors.items() if s != case.tensors[n] or moved[n] is not args[n]]
    return other.but(**{n: replace(other.tensors[n], rows=literal(moved[n]), recipe=None) for n in names})
