"""What of the benchmark needs a CUDA device: graph capture, events, floors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moeproof.verify.bench.graph import MAX_CALLS, CaptureError, GraphTimer
from moeproof.verify.bench.inputs import make_inputs
from moeproof.verify.bench.runner import Runner
from moeproof.verify.bench.session import Session, Settings
from moeproof.verify.bench.shapes import Shape
from moeproof.verify.bench.timers import EagerTimer, EventTimer
from moeproof.verify.contract import judge
from moeproof.verify.subject import Subject, find, load_file

pytestmark = pytest.mark.gpu


def _copies(count: int, size: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    sources = [torch.randn(size, device="cuda") for _ in range(count)]
    return sources, [torch.empty_like(s) for s in sources]


def test_a_replay_runs_every_call_on_its_own_memory():
    sources, targets = _copies(5, 1000)
    timer = GraphTimer([lambda s=s, t=t: t.copy_(s) for s, t in zip(sources, targets, strict=True)])
    assert timer.number % 5 == 0
    assert 5 < timer.number <= MAX_CALLS
    for target in targets:
        target.zero_()
    timer.replay()
    assert all(torch.equal(s, t) for s, t in zip(sources, targets, strict=True))
    assert 0.5 < timer.sample() < 50


def test_results_of_captured_calls_are_kept_apart():
    sources, _ = _copies(4, 100)
    timer = GraphTimer([lambda s=s: s + 1 for s in sources])
    for source in sources:
        source.mul_(2)
    timer.replay()
    assert all(torch.equal(r, s + 1) for r, s in zip(timer.results, sources, strict=True))
    assert len({r.data_ptr() for r in timer.results}) == 4


def test_time_by_replay_grows_with_the_work_and_is_under_eager_time():
    small, large = (_copies(3, n) for n in (1 << 10, 1 << 26))
    times = [
        GraphTimer([lambda s=s, t=t: t.copy_(s) for s, t in zip(*pair, strict=True)]).sample()
        for pair in (small, large)
    ]
    # 512 MiB moved; no GPU does that in less than 40 µs or has launches of more than 30.
    assert times[0] < 30 < 40 < times[1]
    calls = [lambda s=s, t=t: t.copy_(s) for s, t in zip(*small, strict=True)]
    assert times[0] < EagerTimer(calls, torch.device("cuda")).sample() * 1.2
    assert times[0] < EventTimer(calls).sample() * 1.2


def test_floors_move_bytes_and_bound_each_other():
    from moeproof.verify.bench.floor import empty_timer, floor_timer

    inputs = [torch.randint(255, (64 << 20,), dtype=torch.uint8, device="cuda") for _ in range(3)]
    empty, tiny = empty_timer().sample(), floor_timer([x[:1024] for x in inputs], 64).sample()
    large = floor_timer(inputs, 4 << 20).sample()
    assert 0.3 < empty <= tiny * 1.1 < large
    # Between 200 GB/s and 20 TB/s.
    assert 3 < large < 400


@pytest.mark.parametrize("shape", [Shape("gate", 3, 256), Shape("align", 64, 256), Shape("append", 7, 256)])
def test_own_kernels_are_measured_on_the_device(shape: Shape):
    (subject,) = find([f"own:{shape.case().op}"])
    result = Session(Settings("cuda", rounds=7)).measure(shape, [subject])
    measured = result.subjects[subject.name]
    assert (measured.status, measured.detail) == ("right", "")
    assert measured.device is not None
    assert measured.eager is not None
    assert measured.device.method == "graph"
    assert result.floor is not None
    assert result.empty is not None
    # A launch that overlaps the end of the one before comes out below the empty kernel's, which does not.
    assert 0.2 * result.empty.estimate.value < measured.device.estimate.value < 100
    assert measured.device.estimate.value < measured.eager.estimate.value * 1.2


def _subject(call, name: str) -> Subject:
    (own,) = find(["own:fused_gate"])
    return Subject(f"{name}:fused_gate", "fused_gate", lambda: call, own.domain, device="cuda")


SYNCHRONIZES = """
import torch

from moeproof.verify.subject import Subject, find

(own,) = find(["own:fused_gate"])


def load():
    right = own.load()

    def call(args, outputs):
        right(args, outputs)
        torch.cuda.synchronize()

    return call


sync = Subject("sync:fused_gate", "fused_gate", load, own.domain, device="cuda")
"""


def test_what_cannot_be_captured_is_timed_with_events_in_another_process(tmp_path: Path):
    # Not in this process: a capture that fails may upset the allocator for the tests that follow.
    file = tmp_path / "suspects.py"
    file.write_text(SYNCHRONIZES, encoding="utf-8")
    with Runner([*load_file(file), *find(["own:fused_gate"])], Settings("cuda", rounds=7)) as runner:
        result = runner.measure(Shape("gate", 3, 64))
    methods = {name: m.device.method for name, m in result.subjects.items() if m.device is not None}
    assert methods == {"sync:fused_gate": "events", "own:fused_gate": "graph"}
    assert {m.status for m in result.subjects.values()} == {"right"}
    assert "not captured" in result.subjects["sync:fused_gate"].detail


def test_a_graph_that_computes_nothing_is_told_from_one_that_does():
    (own,) = find(["own:fused_gate"])
    right = own.load()

    def idle_in_graphs(args, outputs):
        if not torch.cuda.is_current_stream_capturing():
            right(args, outputs)

    result = Session(Settings("cuda", rounds=7)).measure(Shape("gate", 3, 64), [_subject(idle_in_graphs, "idle")])
    measured = result.subjects["idle:fused_gate"]
    assert measured.status == "wrong"
    assert measured.detail.startswith("replayed from a graph")


def test_an_error_in_a_capture_is_told():
    def fails():
        raise ValueError("no")

    calls = iter([lambda: None, fails])
    with pytest.raises(CaptureError, match="ValueError: no"):
        GraphTimer([lambda: next(calls)()])


@pytest.mark.parametrize("text", ["gate", "align", "append"])
def test_inputs_on_the_device_are_right_for_the_oracle(text: str):
    shape = Shape(text, 500, 300, skewed=text != "gate")
    (subject,) = [s for s in find(["torch"]) if s.op == shape.case().op]
    args = make_inputs(shape, torch.device("cuda"), 1).args
    assert judge(shape.case(), subject, args, subject.load()(args, {}) or {}) == []
