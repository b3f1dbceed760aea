"""The speed of what a change touches, against the base: two processes, one for each tree, timed in turns."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from moeproof.strategies.domain_check import why_outside
from moeproof.verify.bench.shapes import NAMES, Shape, parse
from moeproof.verify.channel import describe_exit, end_group, start, tail
from moeproof.verify.subject import Subject

from .rule import SLOWER, UNCLEAR, Ratio, compare
from .sources import MODULES, source_file
from .timed import HOST

PREPARE_SECONDS = 300.0
"""How long a process may take to compile an implementation and make its inputs."""
SAMPLE_SECONDS = 60.0
LAST_WORDS = 600
"""How much of a lost process's output is shown."""
LEAST_HOST_THRESHOLD = 0.10
"""On a GPU, the least change that counts on the host's clock: two processes of the same Python code differ by several
percent there, for what their memory happens to look like."""
USUAL = {
    "cuda": (
        "gate:E=256,T=1/64/512/16384",
        "gate:E=256,T=512/16384,groups=8,kept=4",
        "gate:E=384,T=1/16384",
        "gate:E=128,T=512,scoring=softmax,bias=0",
        "gate:E=256,T=16384,dtype=bfloat16",
        "align:E=64/256,ids=64/8192/65536",
        "append:E=256,T=1/512/65536",
    ),
    "cpu": ("gate:E=64,T=1/64", "gate:E=256,T=64", "align:E=64,ids=64/1024", "append:E=64,T=1/256"),
}
"""Shapes that are measured where a lane names none; one outside a subject's domain is left out."""


class SpeedError(RuntimeError):
    """A tree's implementation can't be timed; says why.

    Attributes
    ----------
    of_base : bool
        It is the base's.
    """

    def __init__(self, message: str, *, of_base: bool) -> None:
        super().__init__(message)
        self.of_base = of_base


@dataclass(frozen=True)
class Target:
    """What is timed.

    Attributes
    ----------
    subject : Subject
        An own kernel, or one from a file of the checkout.
    shapes : tuple of Shape
        Of its op, inside its domain.
    threshold : float
        What a change has to exceed, as a part of the time.
    """

    subject: Subject
    shapes: tuple[Shape, ...]
    threshold: float

    @property
    def what(self) -> tuple[str, ...]:
        """The subject, as `timed.Bench` takes it."""
        file = source_file(self.subject)
        if file is None:
            return ("own", self.subject.op, MODULES[self.subject.op])
        return ("file", str(file.resolve()), self.subject.name)


@dataclass
class Speed:
    """The speed of one subject at one shape, on one clock.

    Attributes
    ----------
    subject, shape, clock : str
        What was timed, and whose time: ``"device"`` or ``"host"``.
    first : Ratio
        What was measured.
    second : Ratio, optional
        The same in two fresh processes, where the first says that it is slower.
    """

    subject: str
    shape: str
    clock: str
    first: Ratio
    second: Ratio | None = None

    @property
    def ratio(self) -> Ratio:
        """The measurement that counts: the second where there is one."""
        return self.second or self.first

    @property
    def change(self) -> str:
        """As `Ratio.change`; slower only where both measurements say so."""
        if self.second is not None and self.second.change != SLOWER:
            return UNCLEAR
        return self.first.change


@dataclass
class Timed:
    """What came of the targets.

    Attributes
    ----------
    speeds : list of Speed
    absent : dict of str to str
        Subjects that the base does not have, or can't run, and why.
    failed : dict of str to str
        Subjects that the checkout can't run, and why.
    """

    speeds: list[Speed] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def shapes_of(subject: Subject, texts: Sequence[str], device: str) -> tuple[Shape, ...]:
    """Return the shapes to measure a subject at: those named, else the usual, of its op and inside its domain.

    Raises
    ------
    ShapeError
        If a text can't be read.
    """
    shapes = [shape for text in texts or USUAL[device] for shape in parse(text)]
    return tuple(s for s in shapes if NAMES[s.op] == subject.op and why_outside(s.case(), subject.domain) is None)


class Process:
    """One tree's process.

    Parameters
    ----------
    root, tree : Path
        As in `tree.graft`.
    device : str
        ``"cuda"`` or ``"cpu"``.
    """

    def __init__(self, root: Path, tree: Path, device: str) -> None:
        self._of_base = tree != root
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        command = [sys.executable, "-m", "moeproof.verify.gate.timed", str(theirs.fileno())]
        # The same hashes in both: dictionaries and sets are laid out alike.
        variables = {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = start(command, self._log, pass_fds=[theirs.fileno()], variables=variables)
        theirs.close()
        self._channel = Connection(ours.detach())
        self._channel.send((str(root), str(tree), device))
        self._started = False

    def ask(self, *request: Any, seconds: float = SAMPLE_SECONDS) -> Any:
        """Send a request and return what it gives.

        Raises
        ------
        SpeedError
            If it fails, the tree does not have it, or the process is lost.
        """
        try:
            if not self._started:
                self._answer(PREPARE_SECONDS)
                self._started = True
            self._channel.send(request)
            return self._answer(seconds)
        except (EOFError, OSError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            how = describe_exit(self._process.returncode or 0)
            said = tail(self._log, LAST_WORDS)
            raise SpeedError(f"the process ended ({how}) {said}".rstrip(), of_base=self._of_base) from None

    def _answer(self, seconds: float) -> Any:
        if not self._channel.poll(seconds):
            raise SpeedError(f"no answer within {seconds:.0f} s", of_base=self._of_base)
        status, value = self._channel.recv()
        if status != "ok":
            raise SpeedError(value, of_base=self._of_base)
        return value

    def close(self) -> None:
        """End the process."""
        end_group(self._process)
        self._channel.close()
        self._log.close()


@dataclass(frozen=True)
class Trees:
    """The two trees, and where they are timed.

    Attributes
    ----------
    root : Path
        Top folder of the checkout: the candidate.
    base : Path
        Folder with the base's files.
    device : str
        ``"cuda"`` or ``"cpu"``.
    """

    root: Path
    base: Path
    device: str

    @contextlib.contextmanager
    def processes(self, *, swapped: bool = False) -> Iterator[tuple[Process, Process]]:
        """Give the candidate's and the base's process, started in that order or the other."""
        with contextlib.ExitStack() as stack:
            made: dict[Path, Process] = {}
            for tree in (self.base, self.root) if swapped else (self.root, self.base):
                made[tree] = Process(self.root, tree, self.device)
                stack.callback(made[tree].close)
            yield made[self.root], made[self.base]


def measure(
    trees: Trees,
    targets: Sequence[Target],
    *,
    seed: int,
    deadline: float | None = None,
    each: Callable[[Speed], None] = lambda speed: None,
) -> Timed:
    """Time targets in both trees.

    A slow-down counts if it shows again in two fresh processes, started in the other order: where memory happens to
    lie differs from process to process.

    Parameters
    ----------
    trees : Trees
        The two trees.
    targets : sequence of Target
        What to time.
    seed : int
        Of contents and orders.
    deadline : float, optional
        Time on the monotonic clock to aim at.
    each : callable, optional
        Takes each result as it is final.
    """
    made = Timed()
    suspects: dict[tuple[str, str], Target] = {}
    waiting: dict[tuple[str, str, str], Speed] = {}
    for target, shape, speeds in _pass(trees, targets, made, seed, deadline):
        made.speeds += speeds
        for speed in speeds:
            if speed.change == SLOWER:
                suspects[speed.subject, speed.shape] = Target(target.subject, (shape,), target.threshold)
                waiting[speed.subject, speed.shape, speed.clock] = speed
            else:
                each(speed)
    for _, _, speeds in _pass(trees, list(suspects.values()), made, seed + 1, deadline, swapped=True):
        for speed in speeds:
            known = waiting.get((speed.subject, speed.shape, speed.clock))
            if known is not None:
                known.second = speed.first
                each(known)
    return made


def _pass(
    trees: Trees, targets: Sequence[Target], made: Timed, seed: int, deadline: float | None, *, swapped: bool = False
) -> Iterator[tuple[Target, Shape, list[Speed]]]:
    """Yield what two fresh processes give for each target and shape; where one fails, two others go on."""
    waiting = list(targets)
    while waiting:
        with trees.processes(swapped=swapped) as pair:
            while waiting:
                target = waiting.pop(0)
                try:
                    for number, shape in enumerate(target.shapes):
                        count = len(target.shapes) - number + sum(len(t.shapes) for t in waiting)
                        left = None if deadline is None else max(0.0, deadline - time.monotonic()) / count
                        yield target, shape, _compared(pair, target, shape, seed, left, trees.device)
                except SpeedError as error:
                    (made.absent if error.of_base else made.failed)[target.subject.name] = str(error)
                    break


def _compared(
    pair: tuple[Process, Process], target: Target, shape: Shape, seed: int, seconds: float | None, device: str
) -> list[Speed]:
    """Return the speed on each clock."""
    clocks = [process.ask("prepare", target.what, shape, seed, seconds=PREPARE_SECONDS) for process in pair]
    for process in pair:
        process.ask("settle", max(found[HOST] for found in clocks))
    found = []
    for clock in (c for c in clocks[0] if c in clocks[1]):
        on_host_of_gpu = device == "cuda" and clock == HOST
        ratio = compare(
            partial(pair[0].ask, "sample", clock),
            partial(pair[1].ask, "sample", clock),
            threshold=max(target.threshold, LEAST_HOST_THRESHOLD) if on_host_of_gpu else target.threshold,
            seed=seed,
            seconds=None if seconds is None else seconds / len(clocks[0]),
        )
        found.append(Speed(target.subject.name, shape.label, clock, ratio))
    return found
