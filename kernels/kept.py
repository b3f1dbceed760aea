"""Calls that were prepared before: an op finds them by everything that they depend on, and compares the last first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from . import eager
from .eager import Empty, Guard, always, never


@dataclass(slots=True, kw_only=True)
class Prepared:
    """A validated call: everything but addresses. Each op adds the values of the call, and what it launches."""

    current: int | None
    """Which CUDA device has to be current; None: any."""
    empty: Empty
    same: Guard = never
    """Says whether the tensors given are as they were."""
    fits: Guard = never
    """Says whether the outputs given are as they were."""


P = TypeVar("P", bound=Prepared)


class Calls(Generic[P]):
    """An op's prepared calls. Threads may share it: what they race for is equal.

    Parameters
    ----------
    aligned : int
        Number of tensors, the first ones, whose address modulo 16 a prepared call depends on.
    most : int
        Most calls that are kept; all are dropped then.

    Attributes
    ----------
    last : P or None
        That of the last call that had to be looked up.
    """

    def __init__(self, aligned: int = 0, most: int = 4096) -> None:
        self.last: P | None = None
        self.most = most
        self._aligned = aligned
        self._known: dict[Any, P] = {}

    def __len__(self) -> int:
        return len(self._known)

    def clear(self) -> None:
        """Forget all calls."""
        self._known.clear()
        self.last = None

    def find(self, values: tuple[Any, ...], tensors: Sequence[torch.Tensor], prepare: Callable[[], P]) -> P:
        """Return the prepared call of these arguments: an earlier one, or a new one.

        Parameters
        ----------
        values : tuple
            All that a call depends on but its tensors, and which of these are given where their number does not say.
        tensors : sequence of Tensor
            Those that are given, still unchecked.
        prepare : callable
            Checks the arguments and prepares the call.
        """
        if not eager.is_kept(tensors[0]):
            only = prepare()
            only.fits = always  # it serves this call only, whose outputs are checked by now
            return only
        try:
            # What equals a right value may be of a wrong type, as True equals 1.
            key = (values, *map(type, values), *map(_signature, tensors), *map(_alignment, tensors[: self._aligned]))
            prepared = self._known.get(key)
        except (TypeError, AttributeError, RuntimeError):  # an argument of a wrong kind, which `prepare` names
            return prepare()
        if prepared is None:
            prepared = prepare()
        if not prepared.same(*tensors):
            prepared.same = eager.guard(*tensors)
        if len(self._known) >= self.most:
            self._known.clear()
        self._known[key] = self.last = prepared
        return prepared


def _signature(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what a check of a tensor depends on; raises AttributeError or RuntimeError for none with a storage."""
    in_memory = tensor.untyped_storage().data_ptr() != 0
    return type(tensor), tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.is_neg(), in_memory


def _alignment(tensor: torch.Tensor) -> int:
    return tensor.data_ptr() & 15
