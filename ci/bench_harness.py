"""Measures the harness itself: examples and rows judged a second, and how long reduction takes.

Usage: bench_harness.py [--seconds N] [--out FILE.json]

On a GPU the subjects are the own kernels and the PyTorch reference, otherwise the PyTorch reference. Each runs in a
child process under the watchdog, as in `moeproof fuzz`.
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


def measure(subject: str, seconds: float, workers_seed: int) -> dict[str, Any]:
    """Fuzz one subject and return its rates."""
    summary = Summary()
    with tempfile.TemporaryDirectory() as folder:
        config = Config(subjects=(subject,), seconds=seconds, seed=workers_seed, out=Path(folder))
        begin = time.monotonic()
        Campaign(config, summary).run()
        wall = time.monotonic() - begin
    spent = max(summary.seconds, 1e-9)
    return {
        "subject": subject,
        "cases": summary.cases,
        "cases_per_s": round(summary.cases / spent, 1),
        "rows_per_s": round(summary.rows / spent),
        "start_s": round(wall - spent - summary.reducing, 2),
        "findings": len(summary.findings),
        "reduction_s": [round(f["seconds"], 2) for f in summary.findings.values()],
        "unavailable": summary.unavailable,
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("subjects", nargs="*")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else f"CPU, {platform.machine()}"
    default = ["torch:fused_gate", "own:fused_gate", "own:moe_align_block_size", "own:append_shared_experts"]
    subjects = options.subjects or (default if gpu else default[:1])
    results = [measure(name, options.seconds, 0) for name in subjects]
    print(f"device: {device}, torch {torch.__version__}")
    for r in results:
        print(
            f"{r['subject']:28} {r['cases_per_s']:8.1f} cases/s {r['rows_per_s']:10d} rows/s  findings {r['findings']}"
        )
    if options.out is not None:
        options.out.write_text(json.dumps({"device": device, "results": results}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
