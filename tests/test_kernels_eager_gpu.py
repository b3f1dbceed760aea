"""Eager calls on a GPU: whatever came before them, they give what the same call gives a fresh process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from eager_kit import FUNCTIONS, MODULES, NAMES, Variant, forget, variants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from moeproof.kernels import eager, ops

pytestmark = pytest.mark.gpu
OPS = tuple(FUNCTIONS)
Outputs = tuple[torch.Tensor, ...]
WAYS: dict[str, Callable[[], Any]] = {
    "plain": torch.enable_grad,
    "inference": torch.inference_mode,
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cuda"),
    "stream": lambda: torch.cuda.stream(torch.cuda.Stream()),
}


def made(op: str, variant: Variant) -> Outputs:
    args, kwargs = variant
    result: Outputs = FUNCTIONS[op](*args, **kwargs)
    return result


def fresh(op: str, variant: Variant) -> Outputs:
    """Make a call that nothing is kept for, and keep nothing of it."""
    forget()
    result = made(op, variant)
    forget()
    return result


def same(got: Outputs, wanted: Outputs) -> bool:
    """Compare bits: weights may be NaN."""

    def bits(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous().view(torch.uint8)

    return all(torch.equal(bits(a), bits(b)) for a, b in zip(got, wanted, strict=True))


def renew(variant: Variant, generator: torch.Generator) -> None:
    """Give the first tensor of a call new contents."""
    first = variant[0][0]
    if first.is_floating_point():
        first.copy_(torch.randn(first.shape, generator=generator))
    else:
        first.copy_(torch.randint(-1, 60, first.shape, generator=generator))


@pytest.fixture(scope="module")
def calls() -> list[tuple[str, Variant, Outputs]]:
    every = [(op, call) for op, calls in variants("cuda").items() for call in calls]
    return [(op, call, fresh(op, call)) for op, call in every]


STEPS = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(sorted(WAYS)), st.booleans()), min_size=2, max_size=40
)


@given(steps=STEPS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_sequence_of_calls(calls: list[tuple[str, Variant, Outputs]], steps: list[tuple[int, str, bool]]) -> None:
    """In several modes and on several streams, with outputs given and not."""
    forget()
    for number, way, given_out in steps:
        op, (args, kwargs), wanted = calls[number % len(calls)]
        torch.cuda.synchronize()
        with WAYS[way]():
            if given_out:
                out = tuple(torch.full_like(t, 77) for t in wanted)
                got = FUNCTIONS[op](*args, **kwargs, out=out)
                assert all(a is b for a, b in zip(got, out, strict=True))
            else:
                got = made(op, (args, kwargs))
            torch.cuda.synchronize()
            assert same(got, wanted), (op, number % len(calls), way)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("first", ["plain", "captured"])
def test_graphs_replay_kept_calls_with_new_contents(op: str, first: str) -> None:
    """Prepared before, or while it is captured; then from what is kept."""
    generator = torch.Generator().manual_seed(5)
    for variant in (variants("cuda")[op][0], variants("cuda")[op][-1]):
        forget()
        if first == "plain":
            made(op, variant)
        torch.cuda.synchronize()
        graph, got = torch.cuda.CUDAGraph(), []
        with torch.cuda.graph(graph):
            got += [made(op, variant) for _ in range(3)]
        for _ in range(2):
            renew(variant, generator)
            graph.replay()
            torch.cuda.synchronize()
            eager_result = made(op, variant)
            wanted = fresh(op, variant)
            assert all(same(each, wanted) for each in (*got, eager_result))


@pytest.mark.parametrize("op", OPS)
def test_each_stream_waits_for_its_own_work(op: str) -> None:
    """A call on a second stream comes after what is queued there, though the one before it was on another."""
    generator = torch.Generator().manual_seed(6)
    variant = variants("cuda")[op][0]
    later = variants("cuda")[op][0]
    renew(later, generator)
    wanted = fresh(op, later)
    made(op, variant)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        variant[0][0].copy_(later[0][0])
        got = made(op, variant)
    torch.cuda.current_stream().wait_stream(side)
    assert same(got, wanted)


@pytest.mark.parametrize("op", OPS)
def test_threads_at_once(op: str) -> None:
    """Each on a stream of its own, with calls of its own, one of them in inference mode."""
    chosen = [call for call in variants("cuda")[op] if call[0][0].numel()][:3]
    wanted = [fresh(op, call) for call in chosen]
    torch.cuda.synchronize()
    wrong: list[int] = []

    def repeat(number: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()), torch.inference_mode(number == 1):
            for turn in range(300):
                which = number if turn % 3 else len(chosen) - 1 - number
                got = made(op, chosen[which])
                torch.cuda.current_stream().synchronize()
                if not same(got, wanted[which]):
                    wrong.append(which)

    threads = [threading.Thread(target=repeat, args=(number,)) for number in range(len(chosen))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("op", OPS)
def test_compiled_after_kept_calls(op: str) -> None:
    """The graph holds the op, and gives the eager result; so do eager calls after it."""
    variant = variants("cuda")[op][0]
    args, kwargs = variant
    wanted = fresh(op, variant)
    made(op, variant)
    torch._dynamo.reset()

    def call(*tensors: Any) -> Any:
        return FUNCTIONS[op](*tensors, **kwargs)

    assert same(torch.compile(call, fullgraph=True)(*args), wanted)
    assert same(made(op, variant), wanted)
    assert same(getattr(ops, NAMES[op])(*args, **kwargs), wanted)
    assert same(made(op, variant), wanted)
    torch.library.opcheck(getattr(ops, NAMES[op]), args, kwargs)


@pytest.mark.parametrize("op", OPS)
def test_a_mode_sees_the_op(op: str) -> None:
    seen: list[str] = []

    class Seeing(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    variant = variants("cuda")[op][0]
    plain = made(op, variant)
    with Seeing():
        under = made(op, variant)
    assert seen == [NAMES[op]]
    assert same(under, plain)


@pytest.mark.parametrize("op", OPS)
def test_devices_keep_their_own_calls(op: str) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    both = [variants(f"cuda:{index}")[op][0] for index in range(2)]
    wanted = [fresh(op, call) for call in both]
    for index in (0, 1, 1, 0):
        for current in (0, 1):
            with torch.cuda.device(current):
                got = made(op, both[index])
                assert torch.cuda.current_device() == current
            assert all(tensor.device.index == index for tensor in got)
            assert same(got, wanted[index])


def test_a_freed_tensor_is_refused() -> None:
    """Its address is null: a kernel that read it would end every other one, too."""
    x = torch.randn(3, 64, device="cuda")
    for _ in range(2):
        FUNCTIONS["gate"](x, topk=2)
    x.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="logits has 0 bytes of memory"):
        FUNCTIONS["gate"](x, topk=2)
    torch.cuda.synchronize()


def test_the_private_functions_are_found() -> None:
    """Without them results are the same and calls take longer, so this is where a new torch shows."""
    device = torch.device("cuda", torch.cuda.current_device())
    tensor = eager.empty_on(device)((2, 3), (3, 1), torch.int32)
    assert (tensor.shape, tensor.dtype, tensor.device) == ((2, 3), torch.int32, device)
    assert eager._known_empty(device.index) is not None
    assert eager.guard(tensor)(tensor)


@pytest.mark.parametrize("op", OPS)
def test_the_same_call_is_not_looked_up(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = variants("cuda")[op][0]
    made(op, variant)
    monkeypatch.setattr(MODULES[op]._calls, "find", None)
    made(op, variant)
