"""The pytest plugin, as a user's repository has it: ten lines of test, findings in the report."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moeproof.verify.pytest_plugin import gpu_count, pin

EXAMPLE = """
import torch
from moeproof.testing import AlignDomain, GateDomain, parity, subject

def gate(logits, bias=None, *, topk, **flags):
    scores = logits.double().sigmoid()
    # By logits: torch's loops on a CPU end in other code, which gives equal logits other scores.
    order = logits.argsort(dim=-1, descending=True, stable=True)[:, :topk]
    return scores.gather(1, order).float(), order.int()

def wrong_gate(logits, bias=None, *, topk, **flags):
    weights, ids = gate(logits.flip(-1), topk=topk)
    return weights, logits.shape[1] - 1 - ids

DOMAIN = GateDomain(experts=range(1, 65), topk=range(1, 5), scorings=("sigmoid",), groups="none", bias="none",
                    shared=range(1), renormalize=(False,), scale_on_output=(False,), padding=False, expert_map=False,
                    nan=False, tokens=range(33))
right = subject(gate, "fused_gate", domain=DOMAIN, device="cpu", batch_invariant=False)
wrong = subject(wrong_gate, "fused_gate", domain=DOMAIN, device="cpu", batch_invariant=False)
absent = subject(gate, "fused_gate", name="test_kernels:absent", domain=DOMAIN, device="cuda")
test_right = parity(right, examples=20)
test_wrong = parity(wrong, examples=60)
test_absent = parity(absent, examples=5)
"""


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run pytest in a folder, in a process of its own with the plugin."""
    installed = any(e.name == "moeproof" for e in importlib.metadata.entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "moeproof.verify.pytest_plugin"]
    command = [sys.executable, "-m", "pytest", *plugin, "-p", "no:cacheprovider"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "CI", "COV"))}
    environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "test_kernels.py").write_text(EXAMPLE, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers --strict-config\n")
    return tmp_path


def test_right_passes_wrong_fails_with_its_finding_and_absent_is_skipped(folder: Path) -> None:
    code, text = run(folder, "-n", "2", "--junitxml", "junit.xml", "-rs", "--hypothesis-profile", "ci")
    assert code == 1, text
    # The wrong kernel's corpus test fails too if it begins after the finding is kept: two workers have no fixed order.
    assert re.search("1 failed, 3 passed, 2 skipped|2 failed, 2 passed, 2 skipped", text), text
    assert "needs a CUDA device" in text
    errors = re.findall(r"\w+Error: test_kernels:\w+: .*", text)
    assert errors, text
    # Either class names this fault rightly.
    assert all(
        e.startswith(("TieOrderError: test_kernels:wrong", "SelectionError: test_kernels:wrong")) for e in errors
    ), errors
    assert "run it alone: python .moeproof/findings/" in text
    assert "- moeproof repro.py -" in text
    (place,) = (folder / ".moeproof" / "findings").iterdir()
    junit = (folder / "junit.xml").read_text()
    assert f'<property name="moeproof_finding" value="{place.name}"' in junit
    # What was found is in the corpus: the next run fails at once, on the kept case.
    code, text = run(folder, "-k", "wrong and corpus")
    assert code == 1, text
    assert "1 failed, 5 deselected" in text


def test_collection_starts_no_cuda_and_the_plugin_no_torch(folder: Path) -> None:
    (folder / "test_kernels.py").write_text("import sys\n\ndef test_light():\n    assert 'torch' not in sys.modules\n")
    code, text = run(folder, "--hypothesis-profile", "nightly")
    assert code == 0, text


@pytest.mark.parametrize("name", ["dev", "ci", "nightly"])
def test_profiles_are_there(name: str) -> None:
    from hypothesis import settings

    profile = settings.get_profile(name)
    assert profile.deadline is None
    if name == "nightly":
        assert not profile.derandomize
        assert profile.max_examples == 20_000


@pytest.mark.parametrize(
    ("worker", "visible", "count", "device"),
    [
        ("gw0", None, 4, "0"),
        ("gw5", None, 4, "1"),
        ("gw3", "4,5, 6", 3, "4"),
        ("gw1", "GPU-a,GPU-b", 2, "GPU-b"),
        ("gw1", None, 1, None),
        ("gw1", None, 0, None),
        ("", None, 4, None),
        ("master", None, 4, None),
    ],
)
def test_a_worker_gets_one_gpu(worker: str, visible: str | None, count: int, device: str | None) -> None:
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert pin(worker, environment, count) == device


def test_gpus_are_counted_without_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_count(tmp_path) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,7")
    assert gpu_count(tmp_path) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu_count(tmp_path) == 0
