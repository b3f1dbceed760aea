"""A captured CUDA graph, replayed with other inputs in the same memory, against a plain call on them."""

from __future__ import annotations

from typing import Any

import torch

from moeproof.verify.contract import judge, output_specs
from moeproof.verify.guard import POISONS, carve
from moeproof.verify.trial import Trial
from moeproof.verify.violation import Violation


def graph_replay(trial: Trial) -> list[Violation]:
    """Capture a call, change every tensor that it reads, replay it, and compare with a plain call."""
    if trial.device.type != "cuda" or not trial.subject.capturable or not trial.main.numel():
        return []
    static = {k: relocated(v) if isinstance(v, torch.Tensor) else v for k, v in trial.args.items()}
    carved = carve(output_specs(trial.case, trial.subject), trial.device, POISONS[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        trial.call(static, carved.outputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = trial.call(static, carved.outputs)
    made = dict(carved.outputs if outputs is None else outputs)
    change(static)
    carved.arena.fill_(POISONS[1])
    graph.replay()
    plain = trial.run(trial.case, static)
    what = "replayed with new inputs"
    if not trial.exact:
        wrong = judge(trial.case, trial.subject, static, made)
        return [Violation("graph_replay", f"{what}: {v.message}", v.rows, v.count) for v in wrong[:1]]
    found = Trial(trial.subject, trial.call, trial.case, static, plain).differs(made)
    return [Violation("graph_replay", f"{what}: {found[0]}", found[1], found[2])] if found else []


def relocated(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same layout in a copy of its storage."""
    return torch.as_strided(storage_of(tensor).clone(), tensor.shape, tensor.stride(), tensor.storage_offset())


def storage_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of a tensor's storage as a flat tensor."""
    return torch.as_strided(tensor, (tensor.untyped_storage().nbytes() // tensor.itemsize,), (1,), 0)


def change(tensors: dict[str, Any]) -> None:
    """Give every tensor among some arguments other contents, in place, which are as valid as those before.

    Rows and columns move by one, so that ids stay in range and a map one to one. A row limit becomes one less, or one
    row where it was none.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.numel():
            continue
        if name == "num_token_non_padded":
            tensor.copy_(torch.where(tensor > 0, tensor - 1, 1))
            continue
        moved = tensor.roll(tuple([1] * tensor.dim()), tuple(range(tensor.dim()))) if tensor.dim() else tensor * 0.5
        # A row that stands for all can be written once only.
        shared = tensor.dim() == 2 and tensor.stride(0) == 0
        (tensor[:1] if shared else tensor).copy_(moved[:1] if shared else moved)
