"""A small kernel in plain C++, and a judge that compiles and calls it: mutation testing without the executor."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify.mutate.judge import Attempt, Failure, NotCompiled, Session

TOY = """\
// Counts ids by expert. A comment with x < y, and __syncthreads().
constexpr int UNUSED = 7;
#ifdef __CUDA_ARCH__
__device__ int never(int x) { return x + 1; }
#else
__device__ int bucket(int id, int experts) { return id < 0 || id >= experts ? -1 : id; }
#endif

extern "C" __global__ void count_ids(const int* ids, int n, int experts, int* counts) {
  static_assert(sizeof(int) == 4, "32 bits");
  for (int e = 0; e < experts; ++e) counts[e] = 0;
  for (int i = 0; i < n; ++i) {
    const int at = bucket(ids[i], experts);
    if (at < 0) continue;
    counts[at] += 1;
  }
  if (n > 1000) counts[0] += n;
}
"""


@dataclass(frozen=True)
class _Toy:
    library: ctypes.CDLL

    def prepare(self, attempt: Attempt) -> None:
        pass

    def run(self, attempt: Attempt) -> Failure | None:
        ids = [place[0] for place in attempt.case.tensors["topk_ids"].rows]
        experts = attempt.case.params["num_experts"]
        # Guarded like the real thing: a mutant may write beside its output.
        memory = (ctypes.c_int * (experts + 64))(*[-7] * (experts + 64))
        counts = ctypes.cast(ctypes.addressof(memory) + 128, ctypes.POINTER(ctypes.c_int))
        self.library.count_ids((ctypes.c_int * len(ids))(*ids), len(ids), experts, counts)
        if any(memory[i] != -7 for i in (*range(32), *range(32 + experts, experts + 64))):
            return Failure("guard_zone", "something beside counts is written")
        right = [ids.count(e) for e in range(experts)]
        return None if counts[:experts] == right else Failure("align_layout", f"counts are {counts[:experts]}")


@dataclass(frozen=True)
class ToyJudge:
    """Judges the toy kernel; `slow` seconds go by before its first case, and its device takes no text `refused`."""

    slow: float = 0.0
    refused: str = ""
    name: str = "toy"

    def missing(self) -> str | None:
        return None if shutil.which("g++") else "no g++"

    def ops(self, file: str) -> tuple[str, ...]:
        return ("moe_align_block_size",)

    def attempts(self, op: str, count: int, seed: int) -> Sequence[Attempt]:
        lists = [(0, 1), (2, 2, 0), (1, -1, 3), (3,), (0, 0, 0, 1)]
        return [Attempt(op, align_case(lists[i % 5], 2 + i % 3), build="toy") for i in range(count)]

    def load(self, sources: Path, cache: Path | None) -> Session:
        (file,) = sources.glob("*.cu")
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "toy.so"
            flags = ["-shared", "-fPIC", "-O1", "-w", "-x", "c++", "-D__device__=static", "-D__global__="]
            made = subprocess.run(["g++", *flags, str(file), "-o", str(target)], capture_output=True, text=True)
            if made.returncode:
                raise NotCompiled(made.stderr)
            toy = _Toy(ctypes.CDLL(str(target)))
        time.sleep(self.slow)
        return toy

    def machine_code(self, sources: Path, builds: Sequence[str], cache: Path | None) -> Iterator[bytes | None] | None:
        if self.refused and self.refused in (sources / "toy.cu").read_text():
            return iter([None])
        flags = ["-S", "-O2", "-w", "-x", "c++", "-D__device__=static", "-D__global__=", "-o", "-"]
        made = subprocess.run(["g++", *flags, str(sources / "toy.cu")], capture_output=True, check=True)
        lines = made.stdout.splitlines()
        return iter([b"\n".join(line for line in lines if not line.lstrip().startswith(b".file"))])


def align_case(ids: tuple[int, ...], experts: int) -> Case:
    """Return a case of one id a token."""
    spec = TensorSpec("int32", (len(ids), 1), rows=tuple((i,) for i in ids))
    return Case("moe_align_block_size", {"num_experts": experts, "block_size": 1}, {"topk_ids": spec})
