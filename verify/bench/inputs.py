"""Inputs and outputs to measure on: several sets with fresh random contents each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from moeproof.strategies.case import DTYPES, Case
from moeproof.verify.contract import OutputSpec

from .shapes import Shape

ALIGN = 256
"""Bytes that every tensor starts at a multiple of, as the allocator of torch gives them."""
FEW_SETS = 8
"""Sets of inputs where all together fit into half the last-level cache."""
LEAST_SETS = 3
TIMES_CACHE = 3
"""Sets of larger inputs hold this many times the cache together, so that none is there when its turn comes."""
SKEW_CHUNK = 1 << 26
"""Random numbers made at a time for skewed ids."""


@dataclass(frozen=True)
class InputSet:
    """One set of inputs.

    Attributes
    ----------
    storage : Tensor
        Flat uint8 memory that holds all tensors.
    args : dict
        The contract's arguments by name.
    """

    storage: torch.Tensor
    args: dict[str, Any]


def count_sets(bytes_a_set: int, cache: int) -> tuple[int, bool]:
    """Return how many sets to rotate, and whether each is out of the cache when its turn comes.

    Parameters
    ----------
    bytes_a_set : int
        Bytes of inputs and outputs of one call.
    cache : int
        Bytes of the last-level cache; 0 if unknown.
    """
    if FEW_SETS * bytes_a_set <= cache // 2 or not cache:
        return FEW_SETS, False
    return max(LEAST_SETS, math.ceil(TIMES_CACHE * cache / bytes_a_set)), True


def input_bytes(case: Case) -> int:
    """Return the bytes of a case's tensors."""
    return sum(math.prod(t.shape) * DTYPES[t.dtype].itemsize for t in case.tensors.values())


def output_bytes(specs: Mapping[str, OutputSpec]) -> int:
    """Return the bytes of a call's outputs."""
    return sum(math.prod(shape) * dtype.itemsize for shape, dtype in specs.values())


def make_inputs(shape: Shape, device: torch.device, seed: int) -> InputSet:
    """Return inputs of a shape: normal logits, distinct ids a row, positive weights."""
    generator = torch.Generator(device).manual_seed(seed)
    case = shape.case()
    starts, size = {}, 0
    for name, spec in case.tensors.items():
        starts[name] = size
        size += -(-math.prod(spec.shape) * DTYPES[spec.dtype].itemsize // ALIGN) * ALIGN
    storage = torch.zeros(size, dtype=torch.uint8, device=device)
    args: dict[str, Any] = {}
    for name, spec in case.tensors.items():
        dtype = DTYPES[spec.dtype]
        length = math.prod(spec.shape) * dtype.itemsize
        view = storage[starts[name] : starts[name] + length].view(dtype).view(spec.shape)
        if name == "topk_ids":
            draw = skewed_ids if shape.skewed else distinct_ids
            view.copy_(draw(shape.tokens, shape.topk, shape.experts, generator))
        elif name == "logits":
            view.normal_(generator=generator)
        elif name == "bias":
            # Correction biases of trained models are small beside the spread of the scores.
            view.normal_(std=0.05, generator=generator)
        else:
            view.uniform_(0.01, 1.0, generator=generator)
        args[name] = view
    return InputSet(storage, {**args, **case.params})


def make_outputs(specs: Mapping[str, OutputSpec], device: torch.device) -> dict[str, torch.Tensor]:
    """Return unwritten outputs by name."""
    return {name: torch.empty(shape, dtype=dtype, device=device) for name, (shape, dtype) in specs.items()}


def distinct_ids(rows: int, places: int, experts: int, generator: torch.Generator) -> torch.Tensor:
    """Return ``[rows, places]`` int64 ids: in each row a random subset of the experts, in random order.

    Floyd's sampling: the j-th draw is from the first experts − places + j + 1, and takes the last of them if what
    it drew was taken before.
    """
    device = generator.device
    chosen = torch.empty((rows, places), dtype=torch.int64, device=device)
    for j in range(places):
        last = experts - places + j
        drawn = torch.randint(last + 1, (rows,), generator=generator, device=device)
        taken = (chosen[:, :j] == drawn[:, None]).any(1)
        chosen[:, j] = torch.where(taken, last, drawn)
    order = torch.rand((rows, places), generator=generator, device=device).argsort(1)
    return chosen.gather(1, order)


def skewed_ids(rows: int, places: int, experts: int, generator: torch.Generator) -> torch.Tensor:
    """Return ``[rows, places]`` int64 distinct ids where the n-th busiest expert is 1/n as likely as the busiest."""
    device = generator.device
    busy = torch.randperm(experts, generator=generator, device=device).add_(1).double().log_().neg_().float()
    step = max(1, SKEW_CHUNK // experts)
    parts = []
    for start in range(0, rows, step):
        # The largest of log-probability plus Gumbel noise are a sample without replacement.
        noise = torch.rand((min(step, rows - start), experts), generator=generator, device=device)
        parts.append((busy - (-noise.clamp_(min=1e-20).log_()).log_()).topk(places, dim=1).indices)
    return torch.cat(parts)
