"""One judged case, and what a further check needs to run the same subject on a variant of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from moeproof.strategies.case import Case
from moeproof.strategies.domain_check import why_outside

from .contract import judge, output_specs
from .guard import POISONS, as_bytes, carve
from .subject import Call, Subject
from .violation import MAX_ROWS, Violation


def settle(device: torch.device) -> None:
    """Have a launch that failed, and that nobody checked, raise here rather than in a later call."""
    if device.type == "cuda":
        torch.zeros(1, device=device)


@dataclass(frozen=True)
class Trial:
    """A case that has been run and found right.

    Attributes
    ----------
    subject : Subject
        The implementation.
    call : callable
        What its `load` returned.
    case : Case
        The case.
    args : dict
        The case's arguments by name; not to be written.
    made : mapping
        Its outputs by name.
    """

    subject: Subject
    call: Call
    case: Case
    args: dict[str, Any]
    made: Mapping[str, torch.Tensor]

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return next(v for v in self.args.values() if isinstance(v, torch.Tensor)).device

    @property
    def main(self) -> torch.Tensor:
        """The tensor with a row for each token."""
        main: torch.Tensor = self.args["logits" if self.case.op == "fused_gate" else "topk_ids"]
        return main

    @property
    def exact(self) -> bool:
        """Whether the subject gives the same bits in every run."""
        return self.subject.bitwise and self.subject.order == "stable"

    def supports(self, case: Case) -> bool:
        """Say whether a variant lies inside the subject's domain."""
        return why_outside(case, self.subject.domain) is None

    def run(self, case: Case, args: dict[str, Any], *, settled: bool = True) -> dict[str, torch.Tensor]:
        """Run the subject on a variant, with outputs to match it.

        Parameters
        ----------
        case : Case
            The variant: its shapes, dtypes and params count, not its contents.
        args : dict
            The variant's arguments by name.
        settled : bool
            A pending launch error is raised, which costs a launch.
        """
        carved = carve(output_specs(case, self.subject), self.device, POISONS[0])
        made = self.call(args, carved.outputs)
        if settled:
            settle(self.device)
        return dict(carved.outputs if made is None else made)

    def bits(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Return an output's bytes, ``[rows, bytes a row]``, with one NaN for all that a cast may have made."""
        if (self.case.op, name) != ("append_shared_experts", "weights"):
            return as_bytes(value)
        first = value.shape[1] - int(self.case.params["num_fused_shared_experts"])
        cast = value[:, first:]
        return as_bytes(torch.cat([value[:, :first], cast.masked_fill(cast.isnan(), torch.nan)], 1))

    def differs(self, made: Mapping[str, torch.Tensor]) -> tuple[str, tuple[int, ...], int] | None:
        """Compare outputs, bit for bit, with those of the case: what differs first, in which rows, in how many."""
        for name, want in self.made.items():
            got = made.get(name)
            if got is None or got.shape != want.shape or got.dtype != want.dtype:
                kind = "missing" if got is None else f"{tuple(got.shape)} {got.dtype}"
                return f"{name} is {kind} instead of {tuple(want.shape)} {want.dtype}", (), 1
            if not got.numel():
                continue
            rows = (self.bits(name, got) != self.bits(name, want)).any(1).nonzero().flatten()
            if len(rows):
                row = int(rows[0])
                text = f"{name}[{row}] is {got[row].tolist()} instead of {want[row].tolist()}"
                return text, tuple(rows[:MAX_ROWS].tolist()), len(rows)
        return None

    def compare(
        self, check: str, what: str, case: Case, args: dict[str, Any], made: Mapping[str, torch.Tensor], *, exact: bool
    ) -> list[Violation]:
        """Hold a variant's outputs against those of the case, or judge them by the contract where bits may differ.

        Parameters
        ----------
        check : str
            Class of the violation.
        what : str
            What the variant is, in a few words.
        case, args, made
            The variant, its arguments and its outputs.
        exact : bool
            The outputs must be those of the case, bit for bit.
        """
        if exact:
            found = self.differs(made)
            return [Violation(check, f"{what}: {found[0]}", found[1], found[2])] if found else []
        wrong = judge(case, self.subject, args, made)
        return [Violation(check, f"{what}: {v.check}: {v.message}", v.rows, v.count) for v in wrong[:1]]
