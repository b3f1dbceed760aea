"""How an implementation becomes a subject of the zoo, with what the harness must make of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from moeproof.strategies.domain import AlignDomain, AppendDomain, Domain, GateDomain
from moeproof.verify.subject import Subject

FRONT_DOOR = Path(__file__).resolve().with_name("subjects.py")
"""The file from which a child process loads any subject of the zoo."""

DOMAINS: dict[str, Domain] = {
    "fused_gate": GateDomain(experts=range(1, 129), topk=range(1, 17), tokens=range(129)),
    "moe_align_block_size": AlignDomain(
        experts=range(1, 129), topk=range(1, 17), block_sizes=range(1, 129), tokens=range(257)
    ),
    "append_shared_experts": AppendDomain(topk=range(1, 17), tokens=range(129)),
}
"""Domain of a wrong subject that declares none: small, so that a CPU runs a case in milliseconds."""


class Implementation(Protocol):
    """What `Gate`, `Align` and `Append` have in common."""

    op: str

    def __init__(self, args: dict[str, Any], outputs: dict[str, torch.Tensor], domain: Any) -> None: ...

    def run(self) -> None: ...


@dataclass(frozen=True)
class Entry:
    """A planted wrong subject, and what finding it means.

    Attributes
    ----------
    subject : Subject
        The implementation.
    check : tuple of str
        Check classes that name its fault rightly.
    examples : int
        Generated cases within which it must be found.
    rows, experts, topk : int or None
        Largest T, E and k that the reduced case may have; None where the size isn't what the fault is about.
    why : str
        What is wrong, one sentence.
    """

    subject: Subject
    check: tuple[str, ...]
    examples: int
    rows: int | None
    experts: int | None
    topk: int | None
    why: str


def _execute(
    kind: type[Implementation], domain: Domain, args: dict[str, Any], outputs: dict[str, torch.Tensor]
) -> None:
    kind(args, outputs, domain).run()


def make_subject(kind: type[Implementation], slug: str, domain: Domain, **fields: Any) -> Subject:
    """Return the subject ``zoo:<slug>`` that runs `kind` on the CPU and refuses what is outside `domain`."""
    name = f"zoo:{slug}"
    return Subject(
        name=name,
        op=kind.op,
        load=lambda: functools.partial(_execute, kind, domain),
        domain=domain,
        device="cpu",
        refuses=True,
        source=f"{FRONT_DOOR}:{name}",
        **fields,
    )


Kind = TypeVar("Kind", bound=type[Implementation])


def planter(entries: list[Entry]) -> Callable[..., Callable[[Kind], Kind]]:
    """Return a class decorator that adds a wrong subject to `entries`; the docstring becomes its `why`."""

    def plant(
        slug: str,
        *check: str,
        examples: int = 200,
        rows: int | None = 1,
        experts: int | None = None,
        topk: int | None = None,
        domain: Domain | None = None,
        **fields: Any,
    ) -> Callable[[Kind], Kind]:
        def decorate(kind: Kind) -> Kind:
            subject = make_subject(kind, slug, domain or DOMAINS[kind.op], **fields)
            why = (kind.__doc__ or "").strip()
            entries.append(Entry(subject, check, examples, rows, experts, topk, why))
            return kind

        return decorate

    return plant
