"""The lane on a GPU: each planted fault is found by its tool, and by no other; the right kernel passes all."""

from __future__ import annotations

from pathlib import Path

import pytest
from sanitize import planted

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify.coordinator import Summary, tee
from moeproof.verify.sanitize import tools
from moeproof.verify.sanitize.lane import Lane, LaneRun, Work
from moeproof.verify.subject import Unavailable

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]


def append(tokens: int, topk: int, shared: int) -> Case:
    weights = tuple(tuple(float(i + 1) / 64 for i in range(topk)) for _ in range(tokens))
    return Case(
        "append_shared_experts",
        {"num_experts": 40, "num_fused_shared_experts": shared},
        {
            "topk_ids": TensorSpec("int32", (tokens, topk), rows=(tuple(range(topk)),)),
            "topk_weights": TensorSpec("float32", (tokens, topk), rows=weights),
            "shared_weights": TensorSpec("float32", (tokens, shared), rows=((1.0,) * shared,)),
        },
    )


CASES = tuple(append(*sizes) for sizes in ((1, 2, 1), (5, 7, 2), (13, 32, 3)))


@pytest.mark.parametrize("tool", tools.TOOLS)
def test_each_fault_is_found_by_its_tool_alone(tool: str, tmp_path: Path) -> None:
    try:
        program = tools.locate()
    except Unavailable as missing:
        pytest.skip(str(missing))
    work = tuple(Work(subject, (tools.TOOLS[tool],), CASES) for subject in planted.SUBJECTS)
    summary = Summary()
    LaneRun(Lane(program, work, tmp_path, reduce_seconds=5), tee(summary, [])).run()
    assert summary.errors == []
    found = [f["subject"].partition("@")[2] for f in summary.findings.values()]
    assert found == [name for name, finder in planted.FAULTS.items() if finder == tool]
    for finding in summary.findings.values():
        assert finding["check"] == tool
        assert found[0] in finding["message"]
