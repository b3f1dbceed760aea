"""The script that measures eager calls, with a stub for the driver."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from eager_kit import MODULES, forget

from moeproof.kernels import eager, fused_gate, launcher

FILE = Path(__file__).parents[1] / "ci" / "bench_eager.py"


@pytest.fixture
def script() -> Any:
    spec = importlib.util.spec_from_file_location("bench_eager", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_prints_and_keeps_its_times(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "eager.json"
    monkeypatch.setattr(sys, "argv", ["bench_eager.py", "--repeat", "2", "--out", str(out)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    script.main()
    kept = json.loads(out.read_text())
    assert kept["device"] == "a stub for the driver"
    assert {"fused_gate", "moe_align_block_size", "append_shared_experts"} <= set(kept["calls"])
    assert all(0 < times["least"] <= times["median"] for times in kept["calls"].values())
    assert capsys.readouterr().out.count(" us, least ") == len(kept["calls"])


def test_a_stubbed_call_takes_the_way_of_a_real_one(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is bound to the driver and found without a look-up; nothing of the stub is left behind."""
    before = (launcher._driver, eager.is_kept, fused_gate.load_kernel)
    forget()
    with script.stubbed():
        calls = script.calls(torch.device("cpu"))
        launches: list[Any] = []
        for name in ("fused_gate", "moe_align_block_size", "append_shared_experts"):
            calls[name]()
            with monkeypatch.context() as patch:
                for module in MODULES.values():
                    patch.setattr(module._calls, "find", None)
                calls[name]()
        launches += [MODULES["gate"]._calls.last.launch, *MODULES["align"]._calls.last.launches]
        launches.append(MODULES["append"]._calls.last.launch)
        assert [each.__qualname__ for each in launches] == ["Kernel.bind.<locals>.launch"] * 3
    assert (launcher._driver, eager.is_kept, fused_gate.load_kernel) == before
    assert all(module._calls.last is None for module in MODULES.values())
