"""Shared by all tests: the zoo is importable, and GPU tests skip with a reason where there is no GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch sees none; run `make test-gpu` on one")
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(skip)
