"""Runs a case again under conditions that races and uninitialised memory do not survive. CUDA only.

A perturbation takes a way to launch the subject, the arguments and a seed, and returns the outputs of some runs, all of
which must be right, and the same bits where the subject promises that.
"""

from __future__ import annotations

import contextlib
import functools
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from moeproof.kernels.compiler import CompileError, nvrtc_version
from moeproof.kernels.launcher import LaunchError, Params, load_kernel, sm_count

from .guard import as_bytes
from .metamorphic.replay import relocated, storage_of
from .trial import Trial
from .violation import Violation

Outputs = dict[str, torch.Tensor]
Launch = Callable[[dict[str, Any]], Outputs]
Perturbation = Callable[[Launch, dict[str, Any], int], list[Outputs]]

SOURCE = str(Path(__file__).resolve().with_name("perturb.cu"))
_params = Params(2, "qiIii")  # PerturbParams of perturb.cu
PATTERNS = (0xFFFFFFFF, 0x3F800000, 0x7F00FFFF)
"""Words that fill shared memory: NaN or −1; 1.0f or an index far out of range; 1.7e38, which outdoes every score, or an
index that is out of range in its lower half as well."""
RESERVED = 1024
"""Bytes of a multiprocessor's shared memory that each block costs beyond its own."""
PLAIN_SHARED = (48 << 10, 16 << 10, 4 << 10)
"""Sizes at which shared memory is filled with the driver's own split between it and the L1, as most kernels have it."""
FILL_NS = 2_000
"""How long blocks stay that fill shared memory."""
LONGEST_NS = 10_000_000
"""How long others stay at most, should a subject wait for the device in its call, and so for them."""
LAGS_NS = (0, 1_000, 4_000, 16_000)
"""By how much each run on the second of two streams falls behind."""
NEVER = 2**31 - 1
RUNS = 4
SINK_WORDS = 1 << 22
"""16 MiB: part of the L2 cache, so that loads of it reach both."""


def poisoned_shared(launch: Launch, args: dict[str, Any], seed: int) -> list[Outputs]:
    """Fill all shared memory of every multiprocessor with a pattern before each run."""
    runs = []
    for pattern in PATTERNS:
        fill_shared(pattern)
        runs.append(launch(args))
    return runs


def background_load(launch: Launch, args: dict[str, Any], seed: int) -> list[Outputs]:
    """Keep every multiprocessor and the memory busy from another stream."""
    return _beside(lambda ticket: _launch("busy", 2 * _multiprocessors(), ticket=ticket), launch, args)


def odd_occupancy(launch: Launch, args: dict[str, Any], seed: int) -> list[Outputs]:
    """Take all or part of the shared memory of some multiprocessors away."""
    chosen = random.Random(seed)
    count, most = _multiprocessors(), _shared_per_block()
    blocks = chosen.choice((1, count // 2 + 1, max(count - 1, 1)))
    shared = most // chosen.choice((1, 2, 3)) // RESERVED * RESERVED
    return _beside(lambda ticket: _launch("hold", blocks, shared=shared, ticket=ticket), launch, args)


def two_streams(launch: Launch, args: dict[str, Any], seed: int) -> list[Outputs]:
    """Run on two streams at once; both are held up until all work is on them."""
    lags = random.Random(seed)
    here = torch.cuda.current_stream()
    sides = (torch.cuda.Stream(), torch.cuda.Stream())
    runs = []
    with _until_queued() as ticket:
        for side in sides:
            side.wait_stream(here)
            with torch.cuda.stream(side):
                _launch("hold", 1, ticket=ticket)
        for number in range(2 * RUNS):
            with torch.cuda.stream(sides[number % 2]):
                if number % 2:
                    _launch("hold", 1, lags.choice(LAGS_NS))
                runs.append(launch(args))
    for side in sides:
        here.wait_stream(side)
    return runs


def late_inputs(launch: Launch, args: dict[str, Any], seed: int) -> list[Outputs]:
    """Write the inputs by a slow producer just before, on a stream that is not the default one."""
    late = {k: relocated(v) if isinstance(v, torch.Tensor) else v for k, v in args.items()}
    pairs = [(storage_of(v), storage_of(args[k])) for k, v in late.items() if isinstance(v, torch.Tensor)]
    for target, _ in pairs:
        target.zero_()
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    with _until_queued() as ticket, torch.cuda.stream(side):
        _launch("hold", 1, ticket=ticket)
        for target, source in pairs:
            target.copy_(source)
        made = launch(late)
    here.wait_stream(side)
    return [made]


def repeated(launch: Launch, args: dict[str, Any], seed: int) -> list[Outputs]:
    """Run over and over without a pause."""
    return [launch(args) for _ in range(2 * RUNS)]


PERTURBATIONS: dict[str, Perturbation] = {
    "poisoned_shared": poisoned_shared,
    "background_load": background_load,
    "odd_occupancy": odd_occupancy,
    "two_streams": two_streams,
    "late_inputs": late_inputs,
    "repeated": repeated,
}


def perturbation(name: str) -> Callable[[Trial], list[Violation]]:
    """Return the check that a case gives the same result, or a right one, under a perturbation."""
    what = name.replace("_", " ")

    def check(trial: Trial) -> list[Violation]:
        if trial.device.type != "cuda" or not trial.main.numel() or not usable(torch.cuda.current_device()):
            return []
        seed = zlib.crc32(trial.case.dumps().encode())
        runs = PERTURBATIONS[name](lambda args: trial.run(trial.case, args, settled=False), trial.args, seed)
        if trial.exact and _all_equal(trial, runs):
            return []
        # Judging costs more than a comparison: of runs that may differ, the last two.
        for made in runs if trial.exact else runs[-2:]:
            found = trial.compare("perturbation", what, trial.case, trial.args, made, exact=trial.exact)
            if found:
                return found
        return []

    return check


def _all_equal(trial: Trial, runs: list[Outputs]) -> bool:
    """Say whether all runs gave the case's outputs, in one transfer from the device."""
    flags = []
    for made in runs:
        for name, want in trial.made.items():
            got = made.get(name)
            if got is None or got.shape != want.shape or got.dtype != want.dtype:
                return False
            flags.append((as_bytes(got) != as_bytes(want)).any())
    return not bool(torch.stack(flags).any())


def missing() -> str:
    """Say what a machine with a GPU lacks for perturbation; empty if nothing."""
    try:
        nvrtc_version()
    except CompileError as error:
        return str(error)
    return ""


@functools.cache
def usable(device: int) -> bool:
    """Say whether the kernels of perturb.cu can be loaded; `missing` says why not, as `moeproof doctor` does."""
    try:
        for name in ("hold", "busy"):
            load_kernel(SOURCE, name, device)
    except (CompileError, LaunchError, ValueError):
        return False
    return True


def fill_shared(pattern: int) -> None:
    """Fill all shared memory of the current device's multiprocessors with a word, on the current stream."""
    count, total = _multiprocessors(), _shared_per_multiprocessor()
    _launch("hold", count, FILL_NS, _shared_per_block(), pattern)
    for size in PLAIN_SHARED:
        _launch("hold", count * max(1, total // (size + RESERVED)), FILL_NS, size, pattern, plain=True)


def _beside(disturb: Callable[[int], None], launch: Launch, args: dict[str, Any]) -> list[Outputs]:
    """Run while a kernel that `disturb` launches, with a ticket, runs on another stream."""
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    with _until_queued() as ticket:
        with torch.cuda.stream(side):
            disturb(ticket)
        runs = [launch(args) for _ in range(RUNS)]
    here.wait_stream(side)
    return runs


@contextlib.contextmanager
def _until_queued() -> Iterator[int]:
    """Give a ticket: kernels that have it stay until the block is left, so until the host has queued what is in it."""
    word = _released(torch.cuda.current_device())
    ticket = int(word[0]) + 1
    try:
        yield ticket
    finally:
        word[0] = ticket


def _launch(
    name: str,
    blocks: int,
    nanoseconds: int = LONGEST_NS,
    shared: int = 0,
    pattern: int = PATTERNS[0],
    *,
    plain: bool = False,
    ticket: int = NEVER,
) -> None:
    """Launch a kernel of perturb.cu on the current stream; `plain` leaves the L1 what the driver would leave it."""
    device = torch.cuda.current_device()
    kernel = load_kernel(SOURCE, name, device, 0 if plain or not shared else _shared_per_block())
    constants = _params.freeze(nanoseconds, shared // 4, pattern, SINK_WORDS, ticket)
    pointers = (_sink(device).data_ptr(), _released(device).ctypes.data)
    kernel.launch(blocks, 128, _params.pack(constants, *pointers), shared)


@functools.cache
def _released(device: int) -> npt.NDArray[np.int32]:
    """Return the word of page-locked memory that a device's kernels look at; the address is the same for both."""
    with torch.cuda.device(device):
        word: npt.NDArray[np.int32] = torch.zeros(1, dtype=torch.int32, pin_memory=True).numpy()
    return word


@functools.cache
def _sink(device: int) -> torch.Tensor:
    return torch.zeros(SINK_WORDS, dtype=torch.int32, device=f"cuda:{device}")


def _multiprocessors() -> int:
    return sm_count(torch.cuda.current_device())


def _shared_per_multiprocessor() -> int:
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).shared_memory_per_multiprocessor)


def _shared_per_block() -> int:
    """Return the most shared memory that a block can have, in bytes."""
    return _shared_per_multiprocessor() - RESERVED
