"""Measures what an eager call of each own op costs the host, part by part, at one token.

Usage: bench_eager.py [--repeat N] [--out FILE.json]

On a CUDA device a time is of a row of calls, short enough for the queue of launches to take them all: the host never
waits. Elsewhere a stub stands in for the driver and for torch's CUDA allocator, calls with CPU tensors are kept as
those on a device are, and nothing is computed: then only differences between two versions of this package count. A
time is the median of many rows; the least of them is printed beside it, since other programs only ever add to one.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from moeproof.kernels import align_block_size, append_shared_experts, eager, fused_gate, launcher, ops, validate

TARGET = 9.0
"""Microseconds that an eager call may take on a host with an H100."""
CALLS = 100
"""Calls a row. A device's queue takes about a thousand launches."""
EXPERTS, PLACES, BLOCK = 256, 8, 64
MODULES = (fused_gate, align_block_size, append_shared_experts)


@contextlib.contextmanager
def stubbed() -> Iterator[None]:
    """Have calls with CPU tensors kept, and bound to a driver that takes launches and does nothing."""
    # It compares its first two arguments, which differ, and looks at nothing else: the least that a call can cost.
    driver = SimpleNamespace(cuLaunchKernelEx=ctypes.CDLL(None).pthread_equal)
    with contextlib.ExitStack() as stack:

        def put(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value, create=True))

        put(launcher, "_driver", lambda: driver)
        put(launcher, "capability", lambda device: (9, 0))
        put(torch._C, "_cuda_getCurrentRawStream", lambda device: 0)
        kernel = launcher.Kernel(0, 1, 2)
        put(validate, "on_cuda", lambda name, value: None)
        put(eager, "is_kept", lambda tensor: True)
        put(fused_gate, "device_name", lambda device: "H100")
        put(align_block_size, "capability", lambda device: (9, 0))
        put(append_shared_experts, "_loaded", lambda *what: (kernel, 128, 0))
        for module in MODULES:
            put(module, "empty_on", lambda device: vars(torch._C._dynamo.guards)["_empty_strided_cpu"])
            put(module, "sm_count", lambda device: 132)
            put(module, "load_kernel", lambda *what, **how: kernel)
            module._calls.clear()
        try:
            yield
        finally:
            for module in MODULES:
                module._calls.clear()


def calls(device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return what is measured, by name."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    x, bias, weights, shared = random(1, EXPERTS), random(EXPERTS), random(1, PLACES), random(1, 1)
    ids = torch.randperm(EXPERTS, generator=generator)[None, :PLACES].int().to(device)
    limit = torch.ones(1, dtype=torch.int32, device=device)
    gate, align = fused_gate.fused_gate, align_block_size.moe_align_block_size
    append = append_shared_experts.append_shared_experts
    flags: dict[str, Any] = {"topk": PLACES, "routed_scaling_factor": 2.5}
    outs = gate(x, bias, **flags), align(ids, EXPERTS, BLOCK), append(ids, weights, shared, EXPERTS, 1)
    return {
        "fused_gate": lambda: gate(x, bias, **flags),
        "fused_gate, a limit": lambda: gate(x, bias, **flags, num_token_non_padded=limit),
        "fused_gate, out=": lambda: gate(x, bias, **flags, out=outs[0]),
        "fused_gate, two calls that are looked up": lambda: (gate(x, bias, **flags), gate(x, **flags)),
        "torch.ops.moeproof.fused_gate": lambda: ops.fused_gate(x, bias, **flags),
        "moe_align_block_size": lambda: align(ids, EXPERTS, BLOCK),
        "moe_align_block_size, out=": lambda: align(ids, EXPERTS, BLOCK, out=outs[1]),
        "append_shared_experts": lambda: append(ids, weights, shared, EXPERTS, 1),
        "append_shared_experts, out=": lambda: append(ids, weights, shared, EXPERTS, 1, out=outs[2]),
    }


def rivals(device: torch.device) -> dict[str, Callable[[], Any]]:
    """Return a part of what torch takes to do the same, by name."""
    x, bias, ids = torch.randn(1, EXPERTS, device=device), torch.randn(EXPERTS, device=device), None
    ids = torch.arange(PLACES, dtype=torch.int32, device=device)[None]
    one = torch.full((1, 1), EXPERTS, dtype=torch.int32, device=device)
    return {
        "torch.sigmoid": lambda: torch.sigmoid(x),
        "torch.topk(torch.sigmoid + bias)": lambda: torch.topk(torch.sigmoid(x) + bias, PLACES),
        "torch.sort of ids": lambda: torch.sort(ids.flatten(), stable=True),
        "torch.cat of ids": lambda: torch.cat([ids, one], 1),
    }


def measure(call: Callable[[], Any], repeat: int) -> tuple[float, float]:
    """Return the median and the least time of a call, in microseconds."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeat):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - begin) / CALLS * 1e6)
    return statistics.median(times), min(times)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=200, help="rows of calls")
    parser.add_argument("--out", type=Path, help="JSON file for the times")
    options = parser.parse_args()
    on_device = torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if on_device else torch.device("cpu")
    where = torch.cuda.get_device_name() if on_device else "a stub for the driver"
    print(f"{where}, torch {torch.__version__}, Python {platform.python_version()}")
    found: dict[str, dict[str, float]] = {}
    with contextlib.nullcontext() if on_device else stubbed():
        measured = calls(device)
        if on_device:
            measured |= rivals(device)
        else:
            del measured["torch.ops.moeproof.fused_gate"]  # registered for CUDA tensors only
        for name, call in measured.items():
            median, least = measure(call, options.repeat)
            found[name] = {"median": median, "least": least}
            print(f"{median:7.2f} us, least {least:6.2f}  {name}", flush=True)
    guarded = eager.guard(torch.zeros(1)) is not eager.never
    print(f"calls are compared by {'guards of torch' if guarded else 'look-up: this torch has no known guards'}")
    if options.out:
        setup = {"device": where, "torch": torch.__version__, "python": platform.python_version(), "guards": guarded}
        options.out.write_text(json.dumps({**setup, "target": TARGET, "calls": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
