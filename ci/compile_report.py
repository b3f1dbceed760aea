"""Compiles CUDA kernels for several architectures, without a GPU, and says what each takes of a multiprocessor.

Usage: compile_report.py [ARCH ...] [--full] [--jobs N] [--out FILE.json]

By default what the shapes of `moeproof bench` run, the hot paths; with --full everything that a call can need, which
takes minutes. Exit code 1 if a hot path spills registers, 2 if something can't be compiled.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from moeproof.kernels.compiler import CompileError
from moeproof.kernels.prebuild import reachable
from moeproof.verify.bench.shapes import NAMES, suite
from moeproof.verify.explain.devices import DEFAULT, DEVICES
from moeproof.verify.explain.explanation import Query, explain
from moeproof.verify.files import write_text
from moeproof.verify.resources import measure

ARCHS = ("sm_80", "sm_90", "sm_100", "sm_120")

Kernel = tuple[str, str]
"""Source file and name expression."""


def hot_kernels() -> list[Kernel]:
    """Return what the shapes of the benchmark run, in their order."""
    found: dict[Kernel, None] = {}
    for s in suite([]):
        query = Query(
            NAMES[s.op],
            s.tokens,
            s.experts,
            s.topk,
            s.dtype,
            s.scoring,
            s.groups,
            s.bias,
            block_size=s.block,
            shared=s.shared,
        )
        launches = explain(query, DEVICES[DEFAULT], compiled=False).launches
        found.update({(one.file, one.name): None for one in launches if one.file.endswith(".cu")})
    return list(found)


def build(task: tuple[str, str, str]) -> dict[str, Any]:
    """Compile one kernel for one architecture; return a row of the report."""
    file, name, arch = task
    try:
        return {"file": file, "name": name, **asdict(measure(file, name, arch))}
    except CompileError as error:
        return {"file": file, "name": name, "arch": arch, "error": str(error)}


def report(kernels: Sequence[Kernel], archs: Sequence[str], jobs: int | None = None) -> list[dict[str, Any]]:
    """Compile kernels for architectures in parallel processes; return a row for each, in order."""
    tasks = [(*kernel, arch) for kernel in kernels for arch in archs]
    # Not forked: the caller may hold threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs or os.cpu_count() or 1, len(tasks)), context) as pool:
        return list(pool.map(build, tasks))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the report as text."""
    lines = [f"{'kernel':52} {'arch':7} {'registers':>9} {'shared':>7} {'stack':>6} {'spills':>7} {'of callees':>10}"]
    for row in rows:
        if "error" in row:
            lines.append(f"{row['name']:52} {row['arch']:7} {' '.join(row['error'].split()):.200}")
            continue
        spills = row["spill_store_bytes"] + row["spill_load_bytes"]
        lines.append(
            f"{row['name']:52} {row['arch']:7} {row['registers']:9} {row['shared_bytes']:7} {row['stack_bytes']:6} "
            f"{spills:7} {row['callee_spill_bytes']:10}" + ("  hot path spills" if row["hot"] and spills else "")
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("arch", nargs="*", help=f"architectures; default: {', '.join(ARCHS)}")
    parser.add_argument("--full", action="store_true", help="everything that a call can need")
    parser.add_argument("--jobs", type=int, help="processes; one a processor by default")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    hot = hot_kernels()
    kernels = hot + [kernel for kernel in reachable() if kernel not in hot] if options.full else hot
    rows = report(kernels, options.arch or ARCHS, options.jobs)
    for row in rows:
        row["hot"] = (row["file"], row["name"]) in hot
    print(table(rows))
    if options.out is not None:
        write_text(options.out, json.dumps(rows, indent=1) + "\n")
    errors = sum("error" in row for row in rows)
    spilling = sum(row["hot"] and row.get("spill_store_bytes", 0) + row.get("spill_load_bytes", 0) > 0 for row in rows)
    print(f"{len(rows)} compiled, {spilling} hot paths spill, {errors} can't be compiled")
    return 2 if errors else 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())
