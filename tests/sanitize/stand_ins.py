"""Subjects on the CPU that make up a tool's reports, for `fake` to pass on."""

from __future__ import annotations

import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from moeproof.strategies.domain import GateDomain
from moeproof.verify.subject import Call, Subject, Unavailable

DOMAIN = GateDomain(
    experts=range(1, 65),
    topk=range(1, 5),
    logits_dtypes=("float32",),
    bias="none",
    scorings=("sigmoid",),
    groups="none",
    shared=range(1),
    tokens=range(17),
    layouts=("contiguous",),
    padding=False,
    expert_map=False,
)
WRITE = """\
Invalid __global__ write of size 4 bytes
    at void {kernel}<(int)8, float>(Gate)+0x70
    by thread ({thread},0,0) in block (0,0,0)
    Access to {access:#x} is out of bounds
    and is 1 bytes after the nearest allocation at {address:#x} of size {size} bytes

"""


def _report(kernel: str, tensor: torch.Tensor, threads: int = 3) -> None:
    size = tensor.numel() * tensor.element_size()
    with open(os.environ["FAKE_REPORTS"], "a") as file:
        for thread in range(threads):
            place = {"access": tensor.data_ptr() + size, "address": tensor.data_ptr(), "size": size}
            file.write(WRITE.format(kernel=kernel, thread=thread, **place))


def right(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
    """Say nothing."""


def odd_experts(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
    """Write past the end of the indices where E is odd and more than 8."""
    if args["logits"].shape[1] % 2 and args["logits"].shape[1] > 8 and args["logits"].shape[0]:
        _report("gate_kernel", outputs["indices"])


def torch_kernel(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
    """Have a kernel of torch's own reported."""
    _report("at::native::vectorized_elementwise_kernel", outputs["indices"])


def two_defects(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
    """Fail in one kernel wherever there is a token, and in a second one where there are three."""
    if args["logits"].shape[0]:
        _report("first", outputs["weights"])
    if args["logits"].shape[0] >= 3:
        _report("second", args["logits"])


def only_once(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
    """Report once in the life of the process."""
    if not hasattr(only_once, "done"):
        only_once.done = True  # type: ignore[attr-defined]
        _report("gate_kernel", outputs["indices"])


def dies(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
    """Take the process down where E is 7 or more."""
    if args["logits"].shape[1] >= 7:
        os.kill(os.getpid(), signal.SIGSEGV)


def hangs(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
    """Never return."""
    time.sleep(600)


def dies_once(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
    """Take the process down unless another one has gone that way; ``FAKE_MARK`` is a file that remembers it."""
    mark = Path(os.environ["FAKE_MARK"])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGSEGV)


def raises(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
    """Refuse two tokens."""
    if args["logits"].shape[0] == 2:
        raise RuntimeError("not two")


def _absent() -> Call:
    raise Unavailable("not on this machine")


def _subject(function: Callable[..., None]) -> Subject:
    name = f"stand_in:fused_gate@{function.__name__}"
    source = f"{Path(__file__).resolve()}:{name}"
    return Subject(name, "fused_gate", lambda: functools.partial(function), DOMAIN, source=source)


SUBJECTS = {
    f.__name__: _subject(f)
    for f in (right, odd_experts, torch_kernel, two_defects, only_once, dies, dies_once, hangs, raises)
}
ABSENT = Subject(
    "stand_in:fused_gate@absent",
    "fused_gate",
    _absent,
    DOMAIN,
    source=f"{Path(__file__).resolve()}:stand_in:fused_gate@absent",
)
RIGHT, ODD, TORCH, TWO, ONCE, DIES, DIES_ONCE, HANGS, RAISES = SUBJECTS.values()
