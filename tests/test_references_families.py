"""What holds the families apart, what the gold references refuse, and the Numba ones in Numba's simulator."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from moeproof import references
from moeproof.references import gold

HERE = Path(__file__).parent
FAMILIES = Path(references.__file__).parent
SIMULATING = os.environ.get("NUMBA_ENABLE_CUDASIM") == "1"


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("family", ["gold", "torch_ref", "numba_ref"])
def test_a_family_imports_nothing_else_of_moeproof(family: str) -> None:
    files = list((FAMILIES / family).glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{file.name} imports from outside its family"
                names = [node.module or ""] if node.level == 0 else []
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            assert not [n for n in names if n.startswith("moeproof")], f"{file.name} imports {names}"


def test_numba_is_not_needed_to_import_its_family() -> None:
    script = (
        "import sys; sys.modules['numba'] = sys.modules['numba.cuda'] = None\n"
        "from moeproof.references import numba_ref\n"
        "print(numba_ref.available())"
    )
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    assert "can't be imported" in done.stdout


@pytest.mark.skipif(SIMULATING, reason="runs inside the simulator already")
def test_numba_without_a_device_says_so_and_names_the_simulator() -> None:
    script = (
        "import torch\n"
        "from moeproof.references import numba_ref\n"
        "print(numba_ref.available())\n"
        "numba_ref.fused_gate(torch.zeros(1, 2), topk=1)"
    )
    done = python("-c", script, CUDA_VISIBLE_DEVICES="")
    assert "NUMBA_ENABLE_CUDASIM=1" in done.stdout
    assert "ValueError: device is cpu; allowed: cuda" in done.stderr


@pytest.mark.skipif(SIMULATING, reason="runs inside the simulator already")
def test_numba_family_in_the_simulator() -> None:
    pytest.importorskip("numba")
    files = sorted(str(f) for f in HERE.glob("test_references_*.py") if f.name != Path(__file__).name)
    done = python(
        *(
            "-W",
            "error::RuntimeWarning",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-k",
            "numba_ref-cpu",
        ),
        *files,
        NUMBA_ENABLE_CUDASIM="1",
        CUDA_VISIBLE_DEVICES="",
        PYTEST_ADDOPTS="",
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed
    assert int(passed[1]) > 150


LOGITS = torch.zeros(2, 6)
BAD_GATES: list[tuple[dict[str, Any], str]] = [
    ({"logits": torch.zeros(6)}, r"logits.shape is \[6\]; allowed: \[any, any\]"),
    (
        {"logits": torch.zeros(2, 6, dtype=torch.float64)},
        "logits.dtype is torch.float64; allowed: float32, bfloat16",
    ),
    ({"logits": torch.zeros(2, 0)}, r"logits.shape is \[2, 0\]; allowed: \[T, E\] with E >= 1"),
    ({"logits": [[0.0]]}, r"logits is \[\[0.0\]\]; allowed: a tensor of float32"),
    ({"bias": torch.zeros(5)}, r"bias.shape is \[5\]; allowed: \[6\]"),
    ({"topk": 0}, "topk is 0; allowed: an int >= 1 and <= 6"),
    ({"topk": 7}, "topk is 7; allowed: an int >= 1 and <= 6"),
    ({"topk": 2, "num_fused_shared_experts": 2}, "topk is 2; allowed: an int >= 3 and <= 8"),
    ({"num_fused_shared_experts": -1}, "num_fused_shared_experts is -1; allowed: an int >= 0"),
    ({"scoring": "relu"}, "scoring is 'relu'; allowed: sigmoid, softmax, sqrtsoftplus"),
    ({"num_expert_group": 4}, "num_expert_group is 4; allowed: a divisor of 6"),
    ({"num_expert_group": 2, "topk_group": 3}, "topk_group is 3; allowed: an int >= 1 and <= 2"),
    ({"renormalize": 1}, "renormalize is 1; allowed: True or False"),
    ({"routed_scaling_factor": 0.0}, "routed_scaling_factor is 0.0; allowed: a finite number > 0"),
    ({"routed_scaling_factor": float("inf")}, "routed_scaling_factor is inf; allowed: a finite"),
    ({"num_token_non_padded": torch.zeros(2, dtype=torch.int32)}, r"shape is \[2\]; allowed: \[\] or \[1\]"),
    ({"num_token_non_padded": torch.tensor(1)}, "num_token_non_padded.dtype is torch.int64; allowed: int32"),
    ({"expert_map": torch.zeros(7, dtype=torch.int32)}, r"expert_map.shape is \[7\]; allowed: \[6\]"),
]
IDS = torch.zeros(2, 3, dtype=torch.int32)
BAD_ALIGNS: list[tuple[dict[str, Any], str]] = [
    ({"topk_ids": IDS[0]}, r"topk_ids.shape is \[3\]"),
    ({"topk_ids": IDS.to(torch.int16)}, "topk_ids.dtype is torch.int16; allowed: int32, int64"),
    ({"num_experts": 0}, "num_experts is 0; allowed: an int >= 1 and <= 4096"),
    ({"block_size": 0}, "block_size is 0; allowed: an int >= 1"),
    ({"block_size": 2**31 - 1}, "allowed: a capacity up to 2147483647"),
    ({"expert_map": torch.zeros(3, dtype=torch.int32)}, r"expert_map.shape is \[3\]; allowed: \[4\]"),
    (
        {"expert_map": torch.full((4,), 4, dtype=torch.int32)},
        r"expert_map is \[4, 4, 4, 4\]; allowed: values -1",
    ),
]
BAD_APPENDS: list[tuple[dict[str, Any], str]] = [
    ({"topk_weights": torch.zeros(2, 4)}, r"topk_weights.shape is \[2, 4\]; allowed: \[2, 3\]"),
    ({"topk_weights": torch.zeros(2, 3).double()}, "topk_weights.dtype is torch.float64"),
    (
        {"shared_weights": torch.zeros(3)},
        r"shared_weights.shape is \[3\]; allowed: \[2, 1\] or \[2\] or \[\]",
    ),
    ({"num_fused_shared_experts": 0}, "num_fused_shared_experts is 0; allowed: an int >= 1"),
    ({"num_experts": 2**31}, "num_experts is 2147483648; allowed: ids that fit torch.int32"),
    ({"num_token_non_padded": 1}, "num_token_non_padded is 1; allowed: a tensor of int32"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_GATES)
def test_gold_gate_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gold.fused_gate(**{"logits": LOGITS, "topk": 2, **changes})


@pytest.mark.parametrize(("changes", "message"), BAD_ALIGNS)
def test_gold_align_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gold.moe_align_block_size(**{"topk_ids": IDS, "num_experts": 4, "block_size": 2, **changes})


@pytest.mark.parametrize(("changes", "message"), BAD_APPENDS)
def test_gold_append_refuses(changes: dict[str, Any], message: str) -> None:
    good = {
        "topk_ids": IDS,
        "topk_weights": torch.zeros(2, 3),
        "shared_weights": torch.zeros(2),
        "num_experts": 4,
    }
    with pytest.raises(ValueError, match=message):
        gold.append_shared_experts(**{**good, **changes})
