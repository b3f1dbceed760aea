"""Outputs carved from poisoned memory with guard zones, copies of inputs, and what both tell after a run."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from moeproof.strategies.case import contiguous_strides

from .contract import OutputSpec

ZONE = 4096
"""Fewest bytes of guard before and after each output; a multiple of any alignment a kernel may assume."""
ALIGNMENT = 512
"""Outputs start at multiples of this, as what torch allocates on a GPU does."""
POISONS = (0xA5, 0x5A)
"""Bytes that fill buffers in the two runs: odd ids and weights, different in every bit."""
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Span:
    """Where an output lies in an arena, in bytes: its guard zones included, and itself."""

    low: int
    start: int
    end: int
    high: int


@dataclass(frozen=True)
class Carved:
    """Outputs of one run and the memory that holds them.

    Attributes
    ----------
    outputs : dict of str to Tensor
        Contiguous outputs of exactly the contract's size.
    arena : Tensor
        Flat uint8: zone, output, zone for each output in turn.
    spans : dict of str to Span
        Where each output lies in it.
    poison : int
        The byte that filled it.
    """

    outputs: dict[str, torch.Tensor]
    arena: torch.Tensor
    spans: dict[str, Span]
    poison: int

    def first_hit(self) -> str | None:
        """Say which output was overrun, by how many bytes, on which side; None if no guard byte has changed."""
        for name, span in self.spans.items():
            size = span.end - span.start
            changed = (self.arena[span.low : span.high] != self.poison).nonzero().flatten() + span.low
            outside = changed[(changed < span.start) | (changed >= span.end)]
            if len(outside):
                at = int(outside[0])
                side = (
                    f"{span.start - at} bytes before its start"
                    if at < span.start
                    else f"{at - span.end} bytes past its end"
                )
                return f"{name} ({size} bytes): {len(outside)} bytes outside it were written, the first {side}"
        return None


@dataclass(frozen=True)
class Pair:
    """Outputs of two runs, under different poisons.

    Attributes
    ----------
    runs : tuple of Carved
        One a run.
    arenas : Tensor
        ``[2, bytes]`` uint8: the arenas of both.
    """

    runs: tuple[Carved, Carved]
    arenas: torch.Tensor
    _parts: tuple[torch.Tensor, ...]  # zones and outputs in turn, ``[2, words]`` each

    def hold(self, *results: Mapping[str, torch.Tensor]) -> bool:
        """Say whether the results of both runs are the outputs in these arenas, not others of the subject's own."""
        pairs = zip(results, self.runs, strict=True)
        return all(made.get(name) is out for made, carved in pairs for name, out in carved.outputs.items())

    def zones_hit(self) -> torch.Tensor:
        """Return a scalar bool tensor: some guard byte of either run has changed."""
        zones = torch.cat(self._parts[::2], 1)
        return (zones != _poisons(self.arenas.device, zones.dtype)).any()

    def outputs_differ(self) -> torch.Tensor:
        """Return a scalar bool tensor: some byte of an output is not the same after both runs."""
        outputs = self._parts[1::2]
        one, two = (outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)).unbind(0)
        return (one != two).any()

    def first_hit(self) -> str:
        """Say which output was overrun, by how many bytes, on which side."""
        return next((hit for carved in self.runs if (hit := carved.first_hit())), "no guard byte has changed")


@functools.cache
def _poisons(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Return ``[2, 1]``: a word of each poison."""
    with torch.inference_mode(False):
        poisons = torch.tensor(POISONS, dtype=torch.uint8, device=device)[:, None]
        return poisons.expand(2, dtype.itemsize).contiguous().view(dtype)


def carve(specs: Mapping[str, OutputSpec], device: torch.device | str, poison: int) -> Carved:
    """Return outputs of exact size, filled with `poison`, each between poisoned zones of its own."""
    spans, size = _spans(specs)
    arenas = torch.full((1, size), poison, dtype=torch.uint8, device=device)
    return Carved(_outputs(specs, spans, arenas)[0], arenas[0], spans, poison)


def carve_pair(specs: Mapping[str, OutputSpec], device: torch.device) -> Pair:
    """Return outputs for two runs: as `carve` gives them, with each of `POISONS`."""
    spans, size = _spans(specs)
    arenas = torch.empty((2, size), dtype=torch.uint8, device=device)
    filled = [arena.fill_(poison) for arena, poison in zip(arenas.unbind(0), POISONS, strict=True)]
    outputs = _outputs(specs, spans, arenas)
    first, second = (Carved(outputs[n], filled[n], spans, poison) for n, poison in enumerate(POISONS))
    bounds = [0, *(at for span in spans.values() for at in (span.start, span.end)), size]
    item = math.gcd(8, *bounds)  # bytes are compared as words: torch is slow on single ones
    sizes = [(end - start) // item for start, end in itertools.pairwise(bounds)]
    return Pair((first, second), arenas, torch.split_with_sizes(arenas.view(_WORDS[item]), sizes, 1))


def _spans(specs: Mapping[str, OutputSpec]) -> tuple[dict[str, Span], int]:
    """Return where outputs lie in an arena, and its size."""
    spans, at = {}, 0
    for name, (shape, dtype) in specs.items():
        start = at + ZONE
        end = start + math.prod(shape) * dtype.itemsize
        high = end + ZONE + (-end % ALIGNMENT)
        spans[name] = Span(at, start, end, high)
        at = high
    return spans, at


def _outputs(
    specs: Mapping[str, OutputSpec], spans: dict[str, Span], arenas: torch.Tensor
) -> list[dict[str, torch.Tensor]]:
    """Return the outputs in each of the arenas ``[runs, bytes]``; all runs' at once, as each call of torch costs."""
    runs, size = arenas.shape
    made: list[dict[str, torch.Tensor]] = [{} for _ in range(runs)]
    for name, (shape, dtype) in specs.items():
        item = dtype.itemsize
        strides = (size // item, *contiguous_strides(shape))
        both = arenas.view(dtype).as_strided((runs, *shape), strides, spans[name].start // item)
        for outputs, output in zip(made, both.unbind(0), strict=True):
            outputs[name] = output
    return made


def poison_allocator(specs: Mapping[str, OutputSpec], device: torch.device, poison: int) -> None:
    """Leave poisoned blocks of the outputs' sizes in torch's caching allocator.

    A subject that allocates its own outputs most likely gets these blocks, so what it leaves unwritten shows.
    """
    if device.type == "cuda":
        blocks = [
            torch.full((math.prod(shape) * dtype.itemsize,), poison, dtype=torch.uint8, device=device)
            for shape, dtype in specs.values()
        ]
        del blocks


class Kept:
    """What storages hold, to tell whether a run changed it and to bring it back.

    Parameters
    ----------
    storages : mapping of str to Tensor
        Flat tensors by name.
    """

    def __init__(self, storages: Mapping[str, torch.Tensor]) -> None:
        sizes = [storage.numel() * storage.itemsize for storage in storages.values()]
        item = math.gcd(8, *sizes)
        self._names = list(storages)
        self._held = [storage.view(_WORDS[item]) for storage in storages.values()]
        self._sizes = [size // item for size in sizes]
        self._before = self.now()
        self._parts = torch.split_with_sizes(self._before, self._sizes)

    def now(self) -> torch.Tensor:
        """Return a copy of what all storages hold at present."""
        return torch.cat(self._held)

    def restore(self) -> None:
        """Give the storages what they held at first."""
        torch._foreach_copy_(self._held, self._parts)

    def changed(self, now: torch.Tensor) -> torch.Tensor:
        """Return a scalar bool tensor: what `now` returned is not what the storages held at first."""
        return (now != self._before).any()

    def names_changed(self, now: torch.Tensor) -> list[str]:
        """Return the names of the storages that did not hold what they held at first."""
        parts = torch.split_with_sizes(now, self._sizes)
        pairs = zip(self._names, parts, self._parts, strict=True)
        return [name for name, part, before in pairs if not torch.equal(part, before)]


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's contents as bytes, ``[rows, bytes a row]``."""
    rows = tensor.shape[0] if tensor.dim() else 1
    # Contiguous is not enough: a stride beside a length of 1 may be anything, and views of other types refuse that.
    flat = tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8)
    return flat.view(rows, flat.numel() // max(rows, 1))
