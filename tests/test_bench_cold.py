"""The measurement of first calls runs, here of NVRTC and the cache alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moeproof.kernels.compiler import CompileError, nvrtc_version

FILE = Path(__file__).parents[1] / "ci" / "bench_cold.py"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(FILE), *options], capture_output=True, text=True, check=False)


def test_a_line_for_each_op() -> None:
    try:
        nvrtc_version()
    except CompileError as missing:
        pytest.skip(str(missing))
    done = run("--repeat", "1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()[1:]
    assert [line.split()[0] for line in lines][:2] == ["fused_gate", "moe_align_block_size"]
    assert all("caches empty" in line and "caches filled" in line for line in lines)


def test_no_process_is_no_figure() -> None:
    done = run("--repeat", "0")
    assert done.returncode == 2
    assert "--repeat is 0; allowed: 1 or more" in done.stderr
