"""A process that times one tree's implementations, a sample at a time, on request.

Started as ``python -m moeproof.verify.gate.timed FD``; each request is a tuple, and is answered by ``("ok", value)``
or ``("failed", why)``.
"""

from __future__ import annotations

import importlib
import itertools
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .tree import TreeError, graft, place, strays

if TYPE_CHECKING:
    from moeproof.verify.bench.shapes import Shape

DEVICE, HOST = "device", "host"
"""Clocks: of the GPU by graph replay, and of the host, Python and launch included."""


class AbsentError(Exception):
    """The tree does not have the implementation."""


class HostTimer:
    """Times a row of calls on the host's clock, and waits for the device at its end.

    Unlike `EagerTimer` it makes as many calls as it is told: what a sample costs besides its calls has to weigh the
    same in both processes.

    Parameters
    ----------
    calls : sequence of callable
        One for each set of inputs; they are called in turn.
    wait : callable
        Waits for the device.

    Attributes
    ----------
    number : int
        Calls in a sample: to begin with, as many as take about `EAGER_US`.
    """

    def __init__(self, calls: Sequence[Callable[[], object]], wait: Callable[[], object]) -> None:
        from moeproof.verify.bench.timers import EAGER_CALLS, EAGER_US

        self._calls = list(calls)
        self._wait = wait
        self.number = len(self._calls)
        self.sample()
        once = min(self.sample() for _ in range(3))
        self.number = max(1, min(EAGER_CALLS, math.ceil(EAGER_US / max(once, 1e-3))))

    def sample(self) -> float:
        """Return microseconds a call."""
        # What ran in between, in the other process, has taken the caches.
        self._calls[0]()
        self._wait()
        begin = time.perf_counter_ns()
        for call in itertools.islice(itertools.cycle(self._calls), self.number):
            call()
        self._wait()
        return (time.perf_counter_ns() - begin) / 1e3 / self.number


class Bench:
    """What this process knows.

    Parameters
    ----------
    root, tree : Path
        As in `graft`.
    device : str
        ``"cuda"`` or ``"cpu"``.
    """

    def __init__(self, root: Path, tree: Path, device: str) -> None:
        import torch

        torch.set_num_threads(1)
        self._root, self._tree = root, tree
        self._device = torch.device(device)
        self._calls: dict[Any, Callable[..., Any]] = {}
        self._timers: dict[str, Any] = {}

    def prepare(self, what: tuple[str, ...], shape: Shape, seed: int) -> dict[str, int]:
        """Make inputs of a shape and timers for an implementation; return the clocks, with the calls in a sample.

        Parameters
        ----------
        what : tuple of str
            ``("own", OP, MODULE)`` or ``("file", FILE, NAME)`` with a file of the root.
        shape : Shape
            What to measure.
        seed : int
            Of the inputs' contents.
        """
        from functools import partial

        import torch

        from moeproof.verify.bench.graph import GraphTimer
        from moeproof.verify.bench.inputs import count_sets, input_bytes, make_inputs, make_outputs, output_bytes
        from moeproof.verify.bench.timers import EventTimer
        from moeproof.verify.contract import output_specs

        self._timers = {}
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # what graphs have held is theirs for ever otherwise
        call, subject = self._loaded(what)
        case = shape.case()
        specs = output_specs(case, subject)
        cuda = self._device.type == "cuda"
        cache = int(torch.cuda.get_device_properties(self._device).L2_cache_size) if cuda else 0
        sets, _ = count_sets(input_bytes(case) + output_bytes(specs), cache)
        inputs = [make_inputs(shape, self._device, seed + i) for i in range(sets)]
        calls = [partial(call, s.args, make_outputs(specs, self._device)) for s in inputs]
        if cuda:
            self._timers[DEVICE] = GraphTimer(calls) if subject.capturable else EventTimer(calls)
        self._timers[HOST] = HostTimer(calls, torch.cuda.synchronize if cuda else lambda: None)
        if found := strays(self._root, self._tree):
            raise AbsentError(f"{found[0]} was not taken from the base, so it would be compared with itself")
        return {clock: timer.number for clock, timer in self._timers.items()}

    def settle(self, number: int) -> None:
        """Have a sample on the host's clock make so many calls."""
        self._timers[HOST].number = number

    def sample(self, clock: str) -> float:
        """Return microseconds a call."""
        return float(self._timers[clock].sample())

    def _loaded(self, what: tuple[str, ...]) -> tuple[Callable[..., Any], Any]:
        if what not in self._calls:
            self._calls[what] = (_own if what[0] == "own" else self._of_file)(*what[1:])
        return self._calls[what]  # type: ignore[return-value]

    def _of_file(self, file: str, name: str) -> Any:
        from moeproof.verify.subject import load_file

        there = place(file, self._root, self._tree)
        if not Path(there).is_file():
            raise AbsentError(f"the base has no {Path(file).relative_to(self._root)}")
        subject = next((s for s in load_file(there) if s.name == name), None)
        if subject is None:
            raise AbsentError(f"the base's {Path(file).relative_to(self._root)} has no subject {name}")
        return subject.load(), subject


def _own(op: str, module: str) -> Any:
    from moeproof.strategies.domain import AlignDomain, AppendDomain, Domain, GateDomain
    from moeproof.verify.subject import Subject, from_function

    try:
        function = getattr(importlib.import_module(f"moeproof.kernels.{module}"), op)
    except (ModuleNotFoundError, AttributeError) as error:
        raise AbsentError(f"no {op} in its kernels: {error}") from error
    domains: dict[str, Domain] = {
        "fused_gate": GateDomain(),
        "moe_align_block_size": AlignDomain(),
        "append_shared_experts": AppendDomain(),
    }
    load = from_function(function, op, out=True)
    return load(), Subject(f"own:{op}", op, load, domains[op], capturable=True)


def main() -> None:
    """Serve requests until the parent hangs up."""
    from moeproof.verify.worker import die_with_parent

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    channel = Connection(int(sys.argv[1]))
    root, tree, device = channel.recv()
    try:
        if hasattr(os, "sched_setaffinity"):
            # Both processes on one core, as they take turns: cores differ in what else they have to do, which on a
            # machine with a GPU made the host's clock of the same code differ by a third and more.
            os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        graft(Path(root), Path(tree))
        os.chdir(tree)
        bench = Bench(Path(root), Path(tree), device)
    except (ImportError, OSError, TreeError) as error:
        channel.send(("failed", f"{type(error).__name__}: {error}"))
        return
    channel.send(("ok", None))
    import torch

    with torch.inference_mode():
        while True:
            try:
                name, *arguments = channel.recv()
            except EOFError:
                return
            try:
                answer: tuple[str, Any] = ("ok", getattr(bench, name)(*arguments))
            except AbsentError as error:
                answer = ("failed", str(error))
            except Exception as error:  # whatever an implementation raises is its own
                answer = ("failed", f"{type(error).__name__}: {error}"[:600])
            channel.send(answer)


if __name__ == "__main__":
    main()
