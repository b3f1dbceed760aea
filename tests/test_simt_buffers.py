"""Buffers that share a storage: what host code fills is told apart from what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify.contract import output_specs
from moeproof.verify.guard import POISONS, carve
from moeproof.verify.simt import own
from moeproof.verify.simt.buffers import Buffers


class Runtime:
    """Notes what the real one is told."""

    def __init__(self) -> None:
        self.added: list[int] = []
        self.filled: list[int] = []

    def simt_begin(self) -> None:
        pass

    def simt_add_range(self, low: int, *_: Any) -> int:
        self.added.append(low)
        return len(self.added) - 1

    def simt_reset_range(self, number: int) -> None:
        self.filled.append(number)


@pytest.mark.parametrize("name", ["weights", "indices"])
def test_filling_one_output_leaves_its_neighbour_in_the_arena_unwritten(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime()
    monkeypatch.setattr("moeproof.verify.simt.buffers.runtime", lambda: runtime)
    case = Case("fused_gate", {"topk": 2}, {"logits": TensorSpec("float32", (3, 4), rows=((0.0, 1.0, 2.0, 3.0),))})
    carved = carve(output_specs(case, own("fused_gate")), "cpu", POISONS[0])
    buffers = Buffers()
    for output, tensor in carved.outputs.items():
        buffers.add(output, tensor, initialised=False, read_only=False)
    with buffers:
        carved.outputs[name][1].zero_()
    assert runtime.added == [t.data_ptr() for t in carved.outputs.values()]
    assert runtime.filled == [list(carved.outputs).index(name)]
    with buffers:
        carved.arena.fill_(0)
    assert sorted(runtime.filled[1:]) == [0, 1]
