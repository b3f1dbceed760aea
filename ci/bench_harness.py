"""Measures the harness itself: examples and rows judged a second, and how long reduction takes.

Usage: bench_harness.py [--seconds N] [--warm-up N] [--out FILE.json]

On a GPU the subjects are the own kernels and the PyTorch reference, otherwise the PyTorch reference. Each runs in a
child process under the watchdog, as in `moeproof fuzz`. Rates are of the time after the warm-up, in which each process
loads its kernels.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from moeproof.verify.campaign import Campaign
from moeproof.verify.config import Config
from moeproof.verify.coordinator import Summary
from moeproof.verify.events import Event


def measure(subject: str, seconds: float, warm_up: float, seed: int) -> dict[str, Any]:
    """Fuzz one subject and return its rates."""
    summary = Summary()
    done = (0, 0, 0.0)  # at the end of the warm-up: cases, rows, seconds

    def sink(event: Event) -> None:
        nonlocal done
        summary(event)
        if event.kind == "progress" and summary.seconds <= warm_up:
            done = summary.cases, summary.rows, summary.seconds

    with tempfile.TemporaryDirectory() as folder:
        config = Config(subjects=(subject,), seconds=warm_up + seconds, seed=seed, out=Path(folder))
        begin = time.monotonic()
        Campaign(config, sink).run()
        wall = time.monotonic() - begin
    spent = max(summary.seconds - done[2], 1e-9)
    return {
        "subject": subject,
        "cases": summary.cases,
        "cases_per_s": round((summary.cases - done[0]) / spent, 1),
        "rows_per_s": round((summary.rows - done[1]) / spent),
        "start_s": round(wall - summary.seconds - summary.reducing, 2),
        "findings": len(summary.findings),
        "reduction_s": [round(f["seconds"], 2) for f in summary.findings.values()],
        "unavailable": summary.unavailable,
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=10.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("subjects", nargs="*")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else f"CPU, {platform.machine()}"
    default = ["torch:fused_gate", "own:fused_gate", "own:moe_align_block_size", "own:append_shared_experts"]
    subjects = options.subjects or (default if gpu else default[:1])
    results = [measure(name, options.seconds, options.warm_up, 0) for name in subjects]
    print(f"device: {device}, torch {torch.__version__}")
    for r in results:
        print(
            f"{r['subject']:28} {r['cases_per_s']:8.1f} cases/s {r['rows_per_s']:10d} rows/s  findings {r['findings']}"
        )
    if options.out is not None:
        options.out.write_text(json.dumps({"device": device, "results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
