"""ci/compile_report.py: what kernels take, architecture by architecture, without a GPU."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from moeproof.kernels.prebuild import reachable

SCRIPT = Path(__file__).parents[1] / "ci" / "compile_report.py"


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    # On the path, where its own child processes find it too.
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return importlib.import_module(SCRIPT.stem)


def test_hot_kernels_can_be_reached_and_are_of_both_sources(script):
    hot = script.hot_kernels()
    assert len(hot) == len(set(hot)) > 5
    assert set(hot) <= set(reachable())
    assert {file for file, _ in hot} >= {"fused_gate.cu", "align_block_size.cu"}
    assert hot == script.hot_kernels()


def test_a_kernel_is_compiled_for_every_architecture(script, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "hot_kernels", lambda: [("align_block_size.cu", "scan_tiles")])
    monkeypatch.setattr(script, "report", lambda kernels, archs, jobs: [script.build((*kernels[0], a)) for a in archs])
    assert script.main(["--out", str(tmp_path / "report.json")]) == 0
    rows = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert [row["arch"] for row in rows] == ["sm_80", "sm_90", "sm_100", "sm_120"]
    assert all(row["registers"] > 0 and row["shared_bytes"] > 0 and row["hot"] for row in rows)
    assert "4 compiled, 0 hot paths spill, 0 can't be compiled" in capsys.readouterr().out


SPILLING = """
extern "C" __global__ void __launch_bounds__(1024, 2) spilling(float* p) {
  float a[64];
  for (int i = 0; i < 64; i++) a[i] = p[i * threadIdx.x];
  __syncthreads();
  for (int j = 0; j < 64; j++) {
    float sum = 0;
    for (int i = 0; i < 64; i++) sum += a[i] * a[(i + j) % 64];
    p[j * blockDim.x + threadIdx.x] = sum;
  }
}
"""


@pytest.mark.parametrize(("hot", "status"), [(True, 1), (False, 0)])
def test_only_a_hot_path_that_spills_fails(script, monkeypatch, tmp_path, capsys, hot: bool, status: int):
    source = tmp_path / "spilling.cu"
    source.write_text(SPILLING, encoding="utf-8")
    kernel = (str(source), "spilling")
    monkeypatch.setattr(script, "hot_kernels", lambda: [kernel] if hot else [])
    monkeypatch.setattr(script, "reachable", lambda: [kernel])
    monkeypatch.setattr(script, "report", lambda kernels, archs, jobs: [script.build((*k, "sm_90")) for k in kernels])
    assert script.main(["sm_90", "--full"]) == status
    out = capsys.readouterr().out
    assert ("hot path spills" in out) == hot
    assert f"{int(hot)} hot paths spill" in out


def test_what_cannot_be_compiled_is_told_and_fails(script, monkeypatch, capsys):
    monkeypatch.setattr(script, "hot_kernels", lambda: [("align_block_size.cu", "nobody")])
    monkeypatch.setattr(script, "report", lambda kernels, archs, jobs: [script.build((*kernels[0], "sm_90"))])
    assert script.main(["sm_90"]) == 2
    assert "NVRTC can't compile nobody of align_block_size.cu for sm_90" in capsys.readouterr().out


def test_kernels_are_compiled_in_other_processes(script):
    rows = script.report([("align_block_size.cu", "scan_tiles")], ["sm_90"], jobs=1)
    assert [(row["name"], row["arch"]) for row in rows] == [("scan_tiles", "sm_90")]
