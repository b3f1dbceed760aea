"""Measures the first call of each own op in a new process: with nothing in the caches, and with what that has left.

Usage: bench_cold.py [--repeat N]

A time is the median over processes, each with torch imported and CUDA started before its clock runs; importing
moeproof's kernels counts. Without a CUDA device only NVRTC and the cubin cache are measured, and Triton not at all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TARGETS = {"empty": 1.5, "filled": 0.2}
"""Seconds that a first call may take, by the state of the caches."""
OPS = ("fused_gate", "moe_align_block_size", "append_shared_experts")
CHILD = """
import json, sys, time
import torch

op, cuda = sys.argv[1], torch.cuda.is_available()
if cuda:
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
begin = time.perf_counter()
if cuda:
    if op == "fused_gate":
        from moeproof.kernels.fused_gate import fused_gate

        fused_gate(torch.zeros(4, 256, device="cuda"), topk=8)
    elif op == "moe_align_block_size":
        from moeproof.kernels.align_block_size import moe_align_block_size

        moe_align_block_size(torch.zeros(4, 8, dtype=torch.int32, device="cuda"), 256, 64)
    else:
        from moeproof.kernels.append_shared_experts import append_shared_experts

        ids = torch.zeros(4, 8, dtype=torch.int32, device="cuda")
        append_shared_experts(ids, torch.zeros(4, 8, device="cuda"), torch.zeros(4, 1, device="cuda"), 256)
    torch.cuda.synchronize()
else:
    from moeproof.kernels.compiler import compile_cubin, load_source

    names = {
        "fused_gate": ("fused_gate.cu", "fused_gate<0, 0, true, false, 32, 8, false>"),
        "moe_align_block_size": ("align_block_size.cu", "align_few<1, 1, 1>"),
    }
    file, name = names[op]
    compile_cubin(load_source(file), (name,))
print(json.dumps(time.perf_counter() - begin))
"""


def first_call(op: str, caches: Path) -> float:
    """Return the seconds of a new process's first call, with caches in a folder."""
    environment = os.environ | {"MOEPROOF_CACHE_DIR": str(caches / "cubin"), "TRITON_CACHE_DIR": str(caches / "triton")}
    command = [sys.executable, "-c", CHILD, op]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{op}: the process ended with {done.returncode}: {done.stderr[-800:]}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="processes for each figure")
    repeat = parser.parse_args().repeat
    if repeat < 1:
        parser.error(f"--repeat is {repeat}; allowed: 1 or more")
    import torch

    cuda = torch.cuda.is_available()
    print(torch.cuda.get_device_name() if cuda else "no CUDA device: NVRTC and the cache alone")
    for op in OPS if cuda else OPS[:2]:
        times: dict[str, list[float]] = {state: [] for state in TARGETS}
        for _ in range(repeat):
            with tempfile.TemporaryDirectory() as folder:
                for state in times:
                    times[state].append(first_call(op, Path(folder)))
        shown = (f"caches {s}: {statistics.median(t):.3f} s (wanted {TARGETS[s]} s)" for s, t in times.items())
        print(f"{op:24} {', '.join(shown)}")


if __name__ == "__main__":
    main()
