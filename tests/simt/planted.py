"""What is planted, how it is launched, and what has to be said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from moeproof.verify.simt import Program, Schedule, Session

FOLDER = Path(__file__).parent
Launches = Callable[[Program, str], None]


@dataclass(frozen=True)
class Planted:
    """One planted kernel.

    Attributes
    ----------
    file, name : str
        Source and template; ``name<true>`` is the wrong one.
    kind : str
        The fault of the wrong one; several, of which the schedule decides, with a bar between them.
    says : tuple of str
        What its report holds.
    grid, block, shared : int
        Launch shape.
    arguments : str
        Names of the arguments in order, from those that `run` knows.
    n : int
        The size.
    result : tuple of int, optional
        What the right one leaves in ``out``.
    always : bool
        The wrong one is caught under every schedule; otherwise under some.
    helpers : tuple of str
        Kernels launched before and after, see `run`.
    """

    file: str
    name: str
    kind: str
    says: tuple[str, ...]
    grid: int = 1
    block: int = 64
    arguments: str = "out n"
    n: int = 16
    result: tuple[int, ...] | None = None
    shared: int = 0
    always: bool = True

    def run(self, wrong: bool, schedule: Schedule) -> list[int]:
        """Launch the wrong or the right one and return ``out``."""
        program, kernel = programs(self.file), f"{self.name}<{str(wrong).lower()}>"
        tensors = {
            "in": torch.arange(self.n, dtype=torch.int32),
            "out": torch.full((self.n,), -9, dtype=torch.int16 if self.name == "half_words" else torch.int32),
            "data": torch.full((max(self.n, self.grid * self.block),), -9, dtype=torch.int32),
            "values": torch.full((self.n,), -9, dtype=torch.int32),
            "flag": torch.zeros(self.n, dtype=torch.int32),
            "words": torch.zeros(self.n, dtype=torch.int64),
        }
        used = [t for t in self.arguments.split() if t in tensors]
        inputs = {t: tensors[t] for t in used if t == "in"}
        outputs = {t: tensors[t] for t in used if t in ("out", "data", "values")}
        updated = {t: tensors[t] for t in used if t in ("flag", "words")}
        with Session(inputs, outputs, updated=updated, schedule=schedule):
            given = [tensors.get(a, self.n) for a in self.arguments.split()]
            program.launch(kernel, self.grid, self.block, *given, shared=self.shared)
        return tensors["out" if "out" in used else used[0]].tolist()


@cache
def programs(file: str) -> Program:
    """Return a planted file's program, all its kernels built together."""
    names = [f"{p.name}<{w}>" for p in PLANTED if p.file == file for w in ("true", "false")]
    return Program(FOLDER / file, *names)


_IOTA = tuple(range(16))
_BOUNDS = (
    Planted("bounds.cu", "past_end", "out_of_bounds", ("writes out", "1 element past its end"), result=_IOTA),
    Planted(
        "bounds.cu", "before_start", "out_of_bounds", ("reads in", "1 element before its start"), arguments="in out n"
    ),
    Planted("bounds.cu", "far_away", "out_of_bounds", ("reads",), arguments="in out n", result=(0,) * 16),
    Planted("bounds.cu", "shared_neighbour", "out_of_bounds", ("mine", "outside it"), n=64),
    Planted("bounds.cu", "shared_index", "out_of_bounds", ("index 21", "thread 5")),
    Planted("bounds.cu", "local_index", "out_of_bounds", ("index 4",)),
    Planted("bounds.cu", "last_member", "out_of_bounds", ("index 3",)),
    Planted("bounds.cu", "dynamic_shared", "out_of_bounds", ("writes dynamic", "thread 63"), shared=256, result=_IOTA),
    Planted("bounds.cu", "vector_past_end", "out_of_bounds", ("reads in",), arguments="in out n", n=18),
    Planted("bounds.cu", "misaligned", "misaligned", ("a multiple of 16",), arguments="in out n"),
    Planted("bounds.cu", "misaligned_shared", "misaligned", ("a multiple of 8",)),
    Planted("bounds.cu", "device_variable", "out_of_bounds", ("table[8]",), result=tuple(i % 8 for i in range(16))),
    Planted(
        "bounds.cu", "input_written", "read_only", ("writes in[3]", "thread 3"), arguments="in out n", result=_IOTA
    ),
    Planted("bounds.cu", "half_words", "out_of_bounds", ("writes out", "1 element past its end"), result=_IOTA),
    Planted("bounds.cu", "copied", "out_of_bounds", ("writes out",), result=(0,) * 16),
    Planted("bounds.cu", "foreign_stack", "foreign_stack", ("thread 40",), result=(0,) * 16),
    Planted("bounds.cu", "atomic_past_end", "out_of_bounds", ("updates atomically out", "thread 9")),
)
_UNWRITTEN = (
    Planted("unwritten.cu", "shared_tail", "uninitialised", ("reads sums[31]",), result=(496,) * 16),
    Planted("unwritten.cu", "output_first", "uninitialised", ("reads out[",), result=_IOTA),
    Planted("unwritten.cu", "counter", "uninitialised", ("updates atomically count[0]",), result=(64,) * 16),
    Planted("unwritten.cu", "half_of_a_word", "uninitialised", ("reads words[",), result=_IOTA),
    Planted("unwritten.cu", "last_block", "uninitialised", ("reads left[0]",), grid=3, n=3, result=(0, 1, 2)),
)
_RACES = (
    Planted("races.cu", "missing_barrier", "race|uninitialised", ("values[",), block=128, n=128),
    Planted("races.cu", "missing_warp_barrier", "race|uninitialised", ("values[",), block=32, n=32),
    Planted("races.cu", "half_warp", "race|uninitialised", ("values[",), block=32, n=32),
    Planted("races.cu", "chain_of_masks", "race|uninitialised", ("value[0]", "thread 2"), block=32, n=1, result=(5,)),
    Planted("races.cu", "reused_too_early", "race", ("totals[",), block=128, result=(3 * 3 + 6,) * 16),
    Planted("races.cu", "many_writers", "race", ("writes out[0]",), n=1, result=(1,)),
    Planted("races.cu", "plain_read_of_counter", "race", ("count[0]", "updates atomically"), n=1, result=(64,)),
    Planted("races.cu", "plain_increment", "race", ("flag[",), arguments="flag n", grid=2, result=(8,) * 16),
    Planted("races.cu", "blocks_overlap", "race", ("out[8]", "block 1", "block 2"), grid=4, n=16),
    Planted("races.cu", "shuffle_is_no_barrier", "race|uninitialised", ("value[0]",), block=32, result=(7,) * 16),
    Planted("races.cu", "block_scope", "race", ("flag[",), arguments="flag n", grid=2, result=(8,) * 16),
    Planted("races.cu", "bytes_of_a_word", "race", ("words", "thread 37"), result=(0x01010101,) * 16),
    Planted("races.cu", "forgotten_reader", "race", ("value[0]", "writes", "reads"), block=128),
    Planted(
        "races.cu", "histogram", "race|uninitialised", ("counts[",), block=128, arguments="in out n", result=(1,) * 16
    ),
    Planted("races.cu", "dynamic_race", "race|uninitialised", ("dynamic[",), block=128, shared=512),
)
_FLAGS = (
    Planted("flags.cu", "release_fence", "race", ("data[0]",), 2, 32, "data flag out", 1, (42,)),
    Planted("flags.cu", "acquire_fence", "race", ("data[0]",), 2, 32, "data flag out", 1, (42,)),
    Planted("flags.cu", "ordered_atomics", "race", ("data[0]",), 2, 32, "data flag out", 1, (42,)),
    Planted("flags.cu", "builtin_atomics", "race", ("data[0]",), 2, 32, "data flag out", 1, (42,)),
    Planted("flags.cu", "plain_flag", "race", ("flag[0]",), 2, 32, "data flag out", 1, (42,)),
    Planted("flags.cu", "fence_scope", "race", ("data[0]",), 2, 32, "data flag out", 1, (42,)),
    Planted("flags.cu", "warp_to_warp", "race", ("value[0]",), n=1, result=(9,)),
    Planted("flags.cu", "last_block_sums", "race", (), 4, 64, "data flag out", 4),
    Planted("flags.cu", "ticket_of_thread_0", "race", ("data[",), 4, 64, "data flag out", 4),
    Planted(
        "flags.cu", "look_back", "race", ("values[",), 8, 32, "in out words values n", 8, (0, 0, 1, 3, 6, 10, 15, 21)
    ),
    Planted("flags.cu", "warp_look_back", "race", (), 8, 32, "in out flag values data", 8, (0, 0, 1, 3, 6, 10, 15, 21)),
    Planted("flags.cu", "spin_lock", "race", ("flag[0]",), 3, 64, "words flag out", 1, (1,)),
    Planted("flags.cu", "grid_barrier", "race", ("data[",), 4, 32, "data flag out", 128, tuple(range(127, -1, -1))),
    Planted("flags.cu", "through_an_exchange", "race", ("data[0]",), 3, 32, "data flag out", 1, (42,), always=False),
)
_WAITS = (
    Planted("waits.cu", "two_barriers", "divergent_barrier", ("waits.cu:7", "waits.cu:9"), result=(1,) * 16),
    Planted("waits.cu", "barrier_against_warp", "deadlock", ("a warp collective",), block=32, result=(1,) * 16),
    Planted("waits.cu", "missing_lane", "deadlock", ("waits.cu",), block=32),
    Planted("waits.cu", "not_in_mask", "bad_mask", ("not in the mask",), block=32, result=(496,) * 16),
    Planted("waits.cu", "mixed_collectives", "divergent_barrier", ("different warp operations",), block=32),
    Planted("waits.cu", "nobody_sets_it", "deadlock", ("waits in a loop", "waits.cu"), 2, 32, "flag out", 2, (1, 1)),
    Planted("waits.cu", "endless", "timeout", ("waits.cu",)),
    Planted(
        "waits.cu", "early_exit", "race|uninitialised", ("values[",), block=128, n=100, result=tuple(range(99, -1, -1))
    ),
    Planted("waits.cu", "trap", "trap", ("__trap()", "thread 5")),
    Planted("waits.cu", "asserted", "trap", ("assert",)),
    Planted("waits.cu", "deep_recursion", "stack_overflow", ()),
)
_EXCHANGED = tuple((block + 1) % 4 * 32 + 31 - lane for block in range(4) for lane in range(32))
_CLUSTERS = (
    Planted("clusters.cu", "exchange", "race|uninitialised", ("mine[",), 4, 32, n=128, result=_EXCHANGED),
    Planted("clusters.cu", "written_between", "race|uninitialised", ("second[",), 2, 32, n=64, result=(3,) * 64),
    Planted("clusters.cu", "remote_past_end", "out_of_bounds", ("values", "outside it"), 4, 32, n=128),
    Planted("clusters.cu", "left_too_early", "out_of_bounds", ("has ended",), 2, 32, n=32, always=False),
)
PLANTED = (*_BOUNDS, *_UNWRITTEN, *_RACES, *_FLAGS, *_WAITS, *_CLUSTERS)
