"""Kept calls: one that is launched from what an earlier one left is the call that a fresh process would make."""

from __future__ import annotations

import contextlib
import gc
import itertools
import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from eager_kit import FUNCTIONS, MODULES, Variant, forget, tensors, variants
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from moeproof.kernels import (
    align_block_size,
    append_shared_experts,
    eager,
    fused_gate,
    kept,
    launcher,
    tuning,
    validate,
)

Record = list[tuple[Any, ...]]
gate, align, append = FUNCTIONS["gate"], FUNCTIONS["align"], FUNCTIONS["append"]
OPS = tuple(FUNCTIONS)


class Noting(threading.local):
    """The launches of a thread: everything that a kernel would get."""

    def __init__(self) -> None:
        self.record: Record = []


@pytest.fixture
def noting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Noting]:
    """Have calls with CPU tensors kept, and noted instead of launched."""
    made = Noting()

    def kernel(*what: Any) -> Any:
        def launch(grid: int, block: int, params: Any, shared: int = 0, overlap: bool = False) -> None:
            made.record.append((*what, grid, block, shared, overlap, params))

        return SimpleNamespace(launch=launch)

    monkeypatch.setattr(launcher.Params, "pack", lambda self, frozen, *pointers: (frozen, pointers))
    monkeypatch.setattr(validate, "on_cuda", lambda name, value: None)
    monkeypatch.setattr(fused_gate, "device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(align_block_size, "capability", lambda device: (9, 0))
    for module in (fused_gate, align_block_size):
        monkeypatch.setattr(module, "sm_count", lambda device: 132)
        monkeypatch.setattr(module, "load_kernel", lambda file, name, device, shared=0: kernel(file, name))
    monkeypatch.setattr(append_shared_experts, "_loaded", lambda *what: (kernel(*what[1:]), 128, 0))
    monkeypatch.setattr(eager, "is_kept", lambda tensor: True)
    forget()
    yield made
    forget()


@pytest.fixture
def launched(noting: Noting) -> Record:
    return noting.record


def described(record: Record, op: str, variant: Variant) -> list[Any]:
    """Make a call; return what it launched, with inputs for their addresses, and what its outputs are."""
    record.clear()
    args, kwargs = variant
    outputs = FUNCTIONS[op](*args, **kwargs)
    names = {t.data_ptr(): n for n, t in enumerate(tensors(variant))}
    names |= {t.data_ptr(): -n for n, t in enumerate(outputs, 1)}
    launches: list[Any] = []
    for *what, (frozen, pointers) in record:
        launches.append((*what, frozen, [names.get(p, "other") if p else "none" for p in pointers]))
    return [
        launches,
        [(tuple(t.shape), t.stride(), t.dtype, t.device, t.requires_grad, t.is_inference()) for t in outputs],
    ]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("guarded", [True, False])
def test_a_kept_call_is_a_fresh_one(launched: Record, op: str, guarded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call after each other one."""
    if not guarded:
        monkeypatch.setattr(eager, "guard", lambda *tensors: eager.never)
    calls = variants()[op]
    fresh = []
    for call in calls:
        forget()
        fresh.append(described(launched, op, call))
    assert len({str(each) for each in fresh}) > len(fresh) * 2 // 3, "calls differ in what they launch"
    forget()
    for number in itertools.chain.from_iterable(itertools.permutations(range(len(calls)), 2)):
        assert described(launched, op, calls[number]) == fresh[number], calls[number]


@pytest.mark.parametrize("most", [3, 4096])
def test_random_calls_are_fresh_ones(launched: Record, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In and out of inference mode and autocast, without gradients, with parameters, whatever came before."""
    ways: list[Callable[[], Any]] = [
        contextlib.nullcontext,
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.autocast("cpu"),
        Seeing,
    ]
    for module in MODULES.values():
        monkeypatch.setattr(module._calls, "most", most)
    all_calls = [(op, call) for op, calls in variants().items() for call in calls]
    chance = random.Random(7)
    fresh: dict[tuple[int, int], list[Any]] = {}
    for _ in range(1500):
        way, number = chance.randrange(len(ways)), chance.randrange(len(all_calls))
        if chance.random() < 0.5:
            number = min(number, 3)  # often the same: the last call is at hand
        with ways[way]():
            made = described(launched, *all_calls[number])
        if (way, number) not in fresh:
            known = {module: (module._calls.last, dict(module._calls._known)) for module in MODULES.values()}
            forget()
            with ways[way]():
                fresh[way, number] = described(launched, *all_calls[number])
            for module, (last, calls) in known.items():
                module._calls.clear()
                module._calls.last = last
                module._calls._known.update(calls)
        assert made == fresh[way, number], (way, all_calls[number])
        assert all(len(module._calls) <= most for module in MODULES.values())


class Seeing(TorchDispatchMode):
    """A mode that sees every call and changes nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("op", OPS)
def test_the_same_call_is_not_looked_up(launched: Record, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With new tensors and new contents, of parameters and of optional tensors too."""
    for (args, kwargs), (new, new_kwargs) in zip(variants()[op], variants()[op], strict=True):
        if not args[0].numel() or isinstance(kwargs.get("routed_scaling_factor"), int):
            continue
        FUNCTIONS[op](*args, **kwargs)
        with monkeypatch.context() as patch:
            patch.setattr(MODULES[op]._calls, "find", None)
            FUNCTIONS[op](*args, **kwargs)
            FUNCTIONS[op](*new, **new_kwargs)


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
        gate(x, topk=1)
    with pytest.raises(TypeError, match=message):
        gate(x, **{"topk": 1, **wrong})
    with pytest.raises(TypeError, match=message):
        gate(x, **{"topk": 1, **wrong})


OTHER_WRONG: list[tuple[str, dict[str, Any]]] = [
    ("append", {"num_experts": 1.0}),
    ("append", {"num_experts": True}),
    ("append", {"num_fused_shared_experts": True}),
    ("append", {"num_token_non_padded": 1}),
    ("align", {"num_experts": 1.0}),
    ("align", {"num_experts": True}),
    ("align", {"block_size": 1.0}),
    ("align", {"block_size": True}),
    ("align", {"expert_map": 1}),
]


@pytest.mark.parametrize(("op", "wrong"), OTHER_WRONG)
def test_other_ops_refuse_what_equals_a_kept_value(launched: Record, op: str, wrong: dict[str, Any]) -> None:
    ids, weights = torch.zeros(3, 2, dtype=torch.int32), torch.zeros(3, 2)
    given: tuple[Any, ...] = (ids, weights, torch.zeros(3)) if op == "append" else (ids,)
    right = {"num_experts": 1} | ({"num_fused_shared_experts": 1} if op == "append" else {"block_size": 1})
    for _ in range(2):
        FUNCTIONS[op](*given, **right)
    with pytest.raises(TypeError, match="{} is ".format(*wrong)):
        FUNCTIONS[op](*given, **{**right, **wrong})


@pytest.mark.parametrize("op", OPS)
def test_right_outputs_are_filled_and_wrong_ones_named(launched: Record, op: str) -> None:
    (args, kwargs) = variants()[op][0]
    right = tuple(torch.empty_like(t) for t in FUNCTIONS[op](*args, **kwargs))
    for out in (right, list(right), right, right):
        launched.clear()
        made = FUNCTIONS[op](*args, **kwargs, out=out)
        assert all(map(lambda a, b: a is b, made, right))
        assert {t.data_ptr() for t in right} <= set(launched[-1][-1][1])
    first, *rest = right
    freed = torch.empty_like(first)
    freed.untyped_storage().resize_(0)
    wrongs: list[tuple[Any, str]] = [
        (first, "out is Tensor"),
        ((*right, first), "out is tuple"),
        ((first.double(), *rest), r"out\[0\] .* has dtype float64"),
        ((torch.stack([first, first], -1)[..., 0], *rest), r"out\[0\] .* has strides"),
        ((first[1:], *rest), r"out\[0\] .* has shape"),
        ((*right[:-1], right[-1].to("meta")), r"out\[\d\] .* is on meta"),
        ((freed, *rest), r"has 0 bytes of memory"),
        ((torch._to_functional_tensor(first), *rest), r"out\[0\] .* is a wrapper without memory"),
    ]
    for wrong, message in wrongs:
        with pytest.raises((TypeError, ValueError), match=message):
            FUNCTIONS[op](*args, **kwargs, out=wrong)
        assert FUNCTIONS[op](*args, **kwargs, out=right)[0] is first
    used = right[0].untyped_storage()
    used.resize_(0)
    launched.clear()
    with pytest.raises(ValueError, match="has 0 bytes of memory"):
        FUNCTIONS[op](*args, **kwargs, out=right)
    assert launched == []


def memoryless(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return tensors that a guard could take for a tensor, but whose memory does not hold its elements."""
    freed, cut = tensor.clone(), tensor.clone()
    freed.untyped_storage().resize_(0)
    cut.untyped_storage().resize_(cut.untyped_storage().nbytes() - 1)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(tensor)
    found = {"freed": freed, "cut": cut, "functional": torch._to_functional_tensor(tensor), "fake": fake}
    if tensor.is_floating_point():
        found["negated"] = torch.imag(torch.complex(tensor.float(), tensor.float()).conj()).to(tensor.dtype)
        assert found["negated"].is_neg()
    return found


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("before", [True, False])
def test_what_has_no_memory_is_not_launched(launched: Record, op: str, before: bool) -> None:
    for args, kwargs in (variants()[op][0], *variants()[op][-2:]):
        named = {**dict(enumerate(args)), **kwargs}
        for name in (n for n, value in named.items() if isinstance(value, torch.Tensor)):
            for kind, bad in memoryless(named[name]).items():
                if kind == "fake" and name == 0:
                    continue  # that is a traced call
                forget()
                if before and kind != "cut":
                    FUNCTIONS[op](*args, **kwargs)
                launched.clear()
                wrong = {**named, name: bad}
                with pytest.raises(
                    (TypeError, ValueError), match=r"allowed: (at least|its resolve_neg|the tensor that)"
                ):
                    FUNCTIONS[op](*(wrong[n] for n in range(len(args))), **{n: wrong[n] for n in kwargs})
                assert launched == [], (op, name, kind)


@pytest.mark.parametrize("op", OPS)
def test_what_vmap_wraps_is_named(launched: Record, op: str) -> None:
    args, kwargs = variants()[op][0]
    FUNCTIONS[op](*args, **kwargs)
    with pytest.raises(TypeError, match="is a wrapper without memory"):
        torch.vmap(lambda first: FUNCTIONS[op](first, *args[1:], **kwargs))(args[0][None])


@pytest.mark.parametrize("op", OPS)
def test_no_tensor_is_kept_alive(launched: Record, op: str) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def calls() -> None:
        for args, kwargs in (variants()[op][0], variants()[op][-1]):
            out = tuple(torch.empty_like(t) for t in FUNCTIONS[op](*args, **kwargs))
            FUNCTIONS[op](*args, **kwargs, out=out)
            alive.extend(map(weakref.ref, (*tensors((args, kwargs)), *out)))

    calls()
    gc.collect()
    assert [each() for each in alive if each() is not None] == []
    assert len(MODULES[op]._calls) == 2


@pytest.mark.parametrize("op", OPS)
def test_another_current_device_is_left_for_the_call(
    launched: Record, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call of device 5 makes it current, stays with it, and leaves what is current as it was."""
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
    MODULES[op]._calls.last.current = 5
    FUNCTIONS[op](*args, **kwargs)
    assert entered == []
    current[0] = 2
    made = len(launched)
    FUNCTIONS[op](*args, **kwargs)
    assert (entered, current, len(launched)) == ([5], [2], made + 1)


@pytest.mark.parametrize("op", OPS)
def test_a_call_on_the_cpu_asks_for_no_device(launched: Record, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch with CUDA refuses the question where there is no driver."""
    monkeypatch.setattr(MODULES[op], "current_device", None)
    for args, kwargs in [variants()[op][0]] * 2:
        FUNCTIONS[op](*args, **kwargs)


@pytest.mark.parametrize("op", OPS)
def test_threads_at_once(noting: Noting, op: str) -> None:
    """Each thread makes calls of its own, in a mode of its own, and gets what it would get alone."""
    calls = variants()[op]
    calls = [call for call in calls if call[0][0].numel()][:4]
    fresh, wrong = [], []
    for call in calls:
        forget()
        fresh.append(described(noting.record, op, call))

    def repeat(number: int) -> None:
        other = len(calls) - 1 - number
        for turn in range(300):
            which = number if turn % 3 else other
            made = described(noting.record, op, calls[which])
            if made != fresh[which]:
                wrong.append((which, made))

    threads = [threading.Thread(target=repeat, args=(number,)) for number in range(len(calls))]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []


@pytest.mark.parametrize("tokens", [9, 2600])
def test_align_launches_all_that_is_planned(launched: Record, tokens: int) -> None:
    """In order, each overlapping the one before it, with the same pointers and one scratch memory."""
    ids = torch.zeros(tokens, 4, dtype=torch.int32)
    for _ in range(2):
        launched.clear()
        align(ids, 64, 16)
        names = [name.partition("<")[0] for _, name, *_ in launched]
        assert names == (["align_few"] if tokens == 9 else ["tile_histogram", "scan_tiles", "place_ids"])
        assert all(overlap for *_, overlap, _ in launched)
        assert len({packed for *_, packed in launched}) == 1
        assert (launched[0][-1][1][-1] != 0) == (tokens != 9)


def test_another_tuning_table_takes_effect(launched: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(600, 256)

    def block() -> int:
        launched.clear()
        gate(x, topk=2)
        return int(launched[0][3])

    few, many = (tuning.GateTuning(single_rows_per_sm=n) for n in (1 << 20, 0))
    seen = []
    for table in ((("H100", few),), (("H100", many),), (("H100", few),), (("A100", few),)):
        monkeypatch.setattr(tuning, "GATE", table)
        seen += [block(), block()]
    assert seen == [seen[0]] * 2 + [seen[2]] * 2 + [seen[0]] * 2 + [seen[6]] * 2
    assert seen[0] != seen[2]


@pytest.mark.parametrize("op", ["gate", "align"])
def test_each_executor_runs_its_own_kernels(op: str) -> None:
    asked: list[int] = []

    def executor(number: int) -> Any:
        kernel = SimpleNamespace(launch=lambda *args: asked.append(number))
        return SimpleNamespace(sm_count=2, load=lambda file, name: kernel)

    args, kwargs = variants()[op][0]
    for number in (1, 2, 1):
        with launcher.use_executor(executor(number)):
            FUNCTIONS[op](*args, **kwargs)
            FUNCTIONS[op](*args, **kwargs)
    assert asked == [1, 1, 2, 2, 1, 1]
    with pytest.raises(ValueError, match="is on cpu; allowed: a CUDA device"):
        FUNCTIONS[op](*args, **kwargs)


STAND_IN = {
    "is_neg": False, "address": 64, "shape": (3, 4), "strides": (4, 1), "dtype": torch.int32, "device": "cuda:0",
}  # fmt: skip


class StandIn:
    """What `Calls` looks at of a tensor."""

    def __init__(self, **changed: Any) -> None:
        how = {**STAND_IN, **changed}
        self.shape, self.dtype, self.device = how["shape"], how["dtype"], how["device"]
        self.stride = lambda: how["strides"]
        self.is_neg = lambda: how["is_neg"]
        self.data_ptr = lambda: how["address"]
        self.untyped_storage = lambda: self


class OtherStandIn(StandIn):
    pass


def test_a_call_is_found_by_all_it_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "is_kept", lambda tensor: True)
    monkeypatch.setattr(eager, "guard", lambda *tensors: eager.never)
    made: list[Any] = []

    def prepare() -> Any:
        made.append(kept.Prepared(current=None, empty=torch.empty_strided))
        return made[-1]

    calls: kept.Calls[kept.Prepared] = kept.Calls(aligned=1)

    def find(values: tuple[Any, ...], *given: Any) -> kept.Prepared:
        return calls.find(values, given, prepare)

    right = find((1, "a"), StandIn(), StandIn())
    assert find((1, "a"), StandIn(address=128), StandIn(address=1)) is right
    others: list[dict[str, Any]] = [
        {"is_neg": True}, {"shape": (4, 4)}, {"strides": (5, 1)}, {"dtype": torch.int64},
        {"device": "cuda:1"}, {"address": 0}, {"address": 68},
    ]  # fmt: skip
    found = [find((1, "a"), StandIn(**how), StandIn()) for how in others]
    found += [find((1, "a"), StandIn(), StandIn(**how)) for how in others[:-1]]
    found += [find((1, "a"), StandIn(), OtherStandIn()), find((1, "a"), StandIn()), find((True, "a"), StandIn())]
    found += [find((1.0, "a"), StandIn()), find((1, "b"), StandIn())]
    assert len({*map(id, found), id(right)}) == len(found) + 1 == len(made)
    assert find((1, "a"), StandIn(), StandIn()) is right
    assert find(([1], "a"), StandIn()) is not find(([1], "a"), StandIn()), "what has no hash is not kept"


@pytest.mark.parametrize("before", [True, False])
def test_a_trace_holds_the_op(noting: Noting, before: bool) -> None:
    """torch.compile reads the public functions without a break, and finds the registered ops."""
    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        found.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return lambda *args: (torch.zeros(3, 2),)

    ids, weights = torch.zeros(3, 2, dtype=torch.int32), torch.zeros(3, 2)

    def all_ops(x: torch.Tensor) -> torch.Tensor:
        made, indices = gate(x, topk=2)
        return made.sum() + append(ids, weights, made, 16, 2)[1].sum() + align(indices, 16, 4)[0].sum()

    if before:
        all_ops(torch.zeros(3, 16))
    noting.record.clear()
    torch._dynamo.reset()
    torch.compile(all_ops, fullgraph=True, backend=backend)(torch.zeros(3, 16))
    assert [name for name in found if "moeproof" in name] == [
        "moeproof.fused_gate.default",
        "moeproof.append_shared_experts.default",
        "moeproof.moe_align_block_size.default",
    ]
    assert noting.record == []
