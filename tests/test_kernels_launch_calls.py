"""Kept calls: one that is launched from what an earlier one left is the call that a fresh process would make."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moeproof.kernels import append_shared_experts, eager, fused_gate, launcher, validate

Record = list[tuple[Any, ...]]


def gate(*args: Any, **kwargs: Any) -> Any:
    return fused_gate.fused_gate(*args, **{"topk": 1, **kwargs})


def append(*args: Any, **kwargs: Any) -> Any:
    return append_shared_experts.append_shared_experts(*args, **kwargs)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Record]:
    """Have calls with CPU tensors kept, and noted instead of launched: everything that a kernel would get."""
    record: Record = []

    def kernel(*what: Any) -> Any:
        def launch(grid: int, block: int, params: Any, shared: int = 0, overlap: bool = False) -> None:
            record.append((*what, grid, block, shared, overlap, params))

        return SimpleNamespace(launch=launch)

    def packed(self: launcher.Params, frozen: bytes, *pointers: int) -> Any:
        return frozen, pointers

    monkeypatch.setattr(launcher.Params, "pack", packed)
    monkeypatch.setattr(validate, "on_cuda", lambda name, value: None)
    monkeypatch.setattr(fused_gate, "sm_count", lambda device: 132)
    monkeypatch.setattr(fused_gate, "device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(fused_gate, "load_kernel", lambda file, name, device: kernel(file, name))
    monkeypatch.setattr(append_shared_experts, "_loaded", lambda *what: (kernel(*what[1:]), 128, 0))
    for module in (fused_gate, append_shared_experts):
        monkeypatch.setattr(module, "is_kept", lambda tensor: True)
        module._prepared.clear()
    yield record
    for module in (fused_gate, append_shared_experts):
        module._prepared.clear()


def variants() -> dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """Return calls, by op, that differ in one thing from the first or from another."""
    x, b = torch.zeros(4, 64), torch.zeros(64)
    spread, shifted = torch.zeros(4, 128), torch.zeros(4 * 64 + 1)[1:].view(4, 64)
    limit, mapping = torch.tensor([2], dtype=torch.int32), torch.zeros(65, dtype=torch.int32)
    gates: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        (tensors, {})
        for tensors in [
            (x, b), (x,), (x[:3], b), (x.half(), b), (x, b.bfloat16()), (spread[:, ::2], b), (spread[:, :64], b),
            (shifted, b), (x, torch.zeros(65)[1:]), (x, torch.zeros(128)[::2]), (torch.zeros(4, 32), torch.zeros(32)),
            (x, torch.nn.Parameter(b)), (torch.zeros(0, 64), b), (x[:1], b),
        ]
    ]  # fmt: skip
    gates += [
        ((x, b), flags)
        for flags in [
            {"topk": 2}, {"topk": 8, "num_expert_group": 8, "topk_group": 4}, {"renormalize": False},
            {"topk": 8, "num_expert_group": 8, "topk_group": 2}, {"routed_scaling_factor": 2.5},
            {"routed_scaling_factor": 2}, {"routed_scaling_factor": 2.0},
            {"routed_scaling_factor": 2.5, "apply_routed_scaling_factor_on_output": True}, {"scoring": "softmax"},
            {"topk": 2, "num_fused_shared_experts": 1}, {"num_token_non_padded": limit},
            {"num_token_non_padded": limit[0]}, {"topk": 2, "num_fused_shared_experts": 1, "expert_map": mapping},
            {"expert_map": mapping[1:]}, {"expert_map": torch.zeros(128, dtype=torch.int32)[::2]},
        ]
    ]  # fmt: skip
    ids, w, s = torch.zeros(4, 8, dtype=torch.int32), torch.zeros(4, 8), torch.zeros(4, 2)
    appends: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        (call, {})
        for call in [
            (ids, w, s, 64, 2), (ids.long(), w, s, 64, 2), (ids, w.half(), s, 64, 2), (ids, w, s.half(), 64, 2),
            (ids, w, s, 65, 2), (ids, w, s, 1000, 2), (ids, w, s[:, :1], 64, 1), (ids, w, s[:, 0], 64, 2),
            (ids, w, s[0, 0], 64, 2), (ids, w, s[0, 0], 64, 300), (ids[:3], w[:3], s[:3], 64, 2),
            (ids[:0], w[:0], s[:0], 64, 2),
            (ids.t().contiguous().t(), w, s, 64, 2), (ids, w.t().contiguous().t(), s, 64, 2),
            (ids, w, s.t().contiguous().t(), 64, 2), (ids[:, 1:], w[:, 1:], s, 64, 2),
            (torch.zeros(5000, 8, dtype=torch.int32), torch.zeros(5000, 8), torch.zeros(5000), 64, 1),
        ]
    ]  # fmt: skip
    appends += [((ids, w, s, 64, 2), {"num_token_non_padded": limit})]
    return {"gate": gates, "append": appends}


FUNCTIONS: dict[str, Callable[..., Any]] = {"gate": gate, "append": append}
MODULES = {"gate": fused_gate, "append": append_shared_experts}


def described(record: Record, call: Callable[[], Any], inputs: list[torch.Tensor]) -> list[Any]:
    """Make a call; return what it launched, with inputs for their addresses, and what its outputs are."""
    record.clear()
    outputs = call()
    names = {t.data_ptr(): n for n, t in enumerate(inputs)} | {t.data_ptr(): -n for n, t in enumerate(outputs, 1)}
    launches: list[Any] = []
    for *what, (frozen, pointers) in record:
        launches.append((*what, frozen, [names.get(p, "other") if p else "none" for p in pointers]))
    return [launches, [(tuple(t.shape), t.stride(), t.dtype, t.requires_grad) for t in outputs]]


@pytest.mark.parametrize("op", FUNCTIONS)
@pytest.mark.parametrize("guarded", [True, False])
def test_a_kept_call_is_a_fresh_one(launched: Record, op: str, guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not guarded:
        monkeypatch.setattr(MODULES[op], "guard", lambda *tensors: eager.never)
    calls = variants()[op]

    def made(number: int) -> list[Any]:
        args, kwargs = calls[number]
        inputs = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        return described(launched, lambda: FUNCTIONS[op](*args, **kwargs), inputs)

    fresh = []
    for number in range(len(calls)):
        MODULES[op]._prepared.clear()
        fresh.append(made(number))
    MODULES[op]._prepared.clear()
    for number in itertools.chain.from_iterable(itertools.permutations(range(len(calls)), 2)):
        assert made(number) == fresh[number], calls[number]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"topk": True}, "topk is True"),
    ({"topk": 1.0}, "topk is 1.0"),
    ({"num_expert_group": True}, "num_expert_group is True"),
    ({"num_expert_group": 1.0}, "num_expert_group is 1.0"),
    ({"topk_group": True}, "topk_group is True"),
    ({"renormalize": 1}, "renormalize is 1"),
    ({"renormalize": 1.0}, "renormalize is 1.0"),
    ({"routed_scaling_factor": True}, "routed_scaling_factor is True"),
    ({"apply_routed_scaling_factor_on_output": 0}, "apply_routed_scaling_factor_on_output is 0"),
    ({"num_fused_shared_experts": False}, "num_fused_shared_experts is False"),
    ({"num_fused_shared_experts": 0.0}, "num_fused_shared_experts is 0.0"),
    ({"scoring": None}, "scoring is None"),
    ({"bias": 1.0}, "bias is float"),
    ({"num_token_non_padded": 3}, "num_token_non_padded is int"),
    ({"expert_map": [1]}, "expert_map is list"),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_what_equals_a_kept_value_is_still_refused(launched: Record, wrong: dict[str, Any], message: str) -> None:
    x = torch.zeros(3, 16)
    for _ in range(2):
        gate(x)
    with pytest.raises(TypeError, match=message):
        gate(x, **wrong)


@pytest.mark.parametrize("wrong", [{"num_experts": 1.0}, {"num_experts": True}, {"num_fused_shared_experts": True}])
def test_append_refuses_what_equals_a_kept_value(launched: Record, wrong: dict[str, Any]) -> None:
    ids, weights = torch.zeros(3, 2, dtype=torch.int32), torch.zeros(3, 2)
    right = {"num_experts": 1, "num_fused_shared_experts": 1}
    for _ in range(2):
        append(ids, weights, torch.zeros(3), **right)
    with pytest.raises(TypeError, match="{} is {}".format(*next(iter(wrong.items())))):
        append(ids, weights, torch.zeros(3), **{**right, **wrong})


def test_right_outputs_are_filled_and_wrong_ones_named(launched: Record) -> None:
    x = torch.zeros(3, 16)
    right = (torch.zeros(3, 1), torch.zeros(3, 1, dtype=torch.int32))
    for out in (right, list(right), right, right):
        made = gate(x, out=out)
        assert made[0] is right[0]
        assert made[1] is right[1]
        assert launched[-1][-1][1][2:4] == (right[0].data_ptr(), right[1].data_ptr())
    wrongs: list[tuple[Any, str]] = [
        (right[::-1], r"out\[0\] \(weights\) has dtype int32"),
        (right[0], "out is Tensor"),
        ((*right, right[0]), "out is tuple"),
        ((torch.zeros(3, 2)[:, :1], right[1]), r"out\[0\] \(weights\) has strides"),
        ((right[0], torch.zeros(4, 1, dtype=torch.int32)), r"out\[1\] \(indices\) has shape"),
        ((right[0], torch.zeros(3, 1, dtype=torch.int32, device="meta")), r"out\[1\] \(indices\) is on meta"),
    ]
    for wrong, message in wrongs:
        with pytest.raises((TypeError, ValueError), match=message):
            gate(x, out=wrong)
        assert gate(x, out=right)[0] is right[0]


@pytest.mark.parametrize("op", FUNCTIONS)
def test_another_current_device_is_left_for_the_call(
    launched: Record, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is prepared with device 5 current, stays with it, and leaves what is current as it was."""
    current, entered = [5], []

    @contextlib.contextmanager
    def device(index: int) -> Iterator[None]:
        before, current[0] = current[0], index
        entered.append(index)
        yield
        current[0] = before

    monkeypatch.setattr(MODULES[op], "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    args, kwargs = variants()[op][0]
    FUNCTIONS[op](*args, **kwargs)
    assert entered == []
    current[0] = 2
    made = len(launched)
    FUNCTIONS[op](*args, **kwargs)
    assert (entered, current, len(launched)) == ([5], [2], made + 1)


def test_kept_calls_stay_few(launched: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_gate, "_MAX_PREPARED", 5)
    for tokens in range(1, 20):
        gate(torch.zeros(tokens, 16))
        assert len(fused_gate._prepared) <= 5 + 1


def test_a_trace_holds_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile reads the public functions without a break, and finds the registered ops."""
    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        found.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return lambda *args: (torch.zeros(3, 2),)

    ids, weights = torch.zeros(3, 2, dtype=torch.int32), torch.zeros(3, 2)

    def both(x: torch.Tensor) -> torch.Tensor:
        made, _ = fused_gate.fused_gate(x, topk=2)
        return made.sum() + append(ids, weights, made, 16, 2)[1].sum()

    torch.compile(both, fullgraph=True, backend=backend)(torch.zeros(3, 16))
    assert [name for name in found if "moeproof" in name] == [
        "moeproof.fused_gate.default",
        "moeproof.append_shared_experts.default",
    ]


# -- on a GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_mode_sees_the_op() -> None:
    seen: list[str] = []

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    x = torch.randn(3, 64, device="cuda")
    plain = gate(x, topk=4)
    with Seeing():
        made = gate(x, topk=4)
    assert seen == ["fused_gate"]
    assert all(map(torch.equal, made, plain))


@pytest.mark.gpu
def test_the_private_functions_are_found() -> None:
    """Without them results are the same and calls take longer, so this is where a new torch shows."""
    device = torch.device("cuda", torch.cuda.current_device())
    made = eager.empty_on(device)((2, 3), (3, 1), torch.int32)
    assert (made.shape, made.dtype, made.device) == ((2, 3), torch.int32, device)
    assert eager._known_empty(device.index) is not None


@pytest.mark.gpu
@pytest.mark.parametrize("op", FUNCTIONS)
def test_kept_calls_take_new_values(op: str) -> None:
    """Repeated, in inference mode, in another thread, on another stream and in a graph: as on first use."""
    import threading

    generator = torch.Generator().manual_seed(5)
    x = torch.randn(9, 64, generator=generator).cuda()
    ids = torch.arange(36, dtype=torch.int32).reshape(9, 4).cuda()
    calls = {"gate": lambda: gate(x, topk=4), "append": lambda: append(ids, x[:, :4], x[:, 7], 64)}
    call, module = calls[op], MODULES[op]

    def fresh() -> Any:
        module._prepared.clear()
        made = call()
        module._prepared.clear()
        return made

    got: list[Any] = []

    def repeat() -> None:
        got[:] = [call() for _ in range(3)]

    def inference() -> None:
        with torch.inference_mode():
            repeat()

    def threaded() -> None:
        thread = threading.Thread(target=repeat)
        thread.start()
        thread.join()

    def on_a_stream() -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            repeat()
        torch.cuda.current_stream().wait_stream(side)

    for way in (repeat, inference, threaded, on_a_stream):
        x.copy_(torch.randn(9, 64, generator=generator))
        wanted = fresh()
        call()
        way()
        torch.cuda.synchronize()
        assert len(got) == 3
        assert all(torch.equal(a, b) for made in got for a, b in zip(made, wanted, strict=True)), way

    module._prepared.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # prepared while it is captured, then twice from what is kept
        repeat()
    x.copy_(torch.randn(9, 64, generator=generator))
    graph.replay()
    wanted = fresh()
    assert all(torch.equal(a, b) for made in got for a, b in zip(made, wanted, strict=True))
