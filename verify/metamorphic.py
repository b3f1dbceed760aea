"""Checks that need no reference: the same rows in another batch, a replayed graph, the fake implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from moeproof.strategies.case import Case

from .contract import output_specs
from .guard import POISONS, as_bytes, carve
from .subject import Call, Subject
from .violation import MAX_ROWS, Violation

Extra = Callable[[Subject, Call, Case, dict[str, Any], Mapping[str, torch.Tensor]], list[Violation]]

ROW_INPUTS = ("logits", "topk_ids", "topk_weights", "shared_weights")


def _launch(subject: Subject, call: Call, case: Case, args: dict[str, Any], tokens: int) -> dict[str, torch.Tensor]:
    """Call the subject on arguments of `tokens` rows, with outputs to match."""
    specs = {name: ((tokens, *shape[1:]), dtype) for name, (shape, dtype) in output_specs(case, subject).items()}
    device = next(v for v in args.values() if isinstance(v, torch.Tensor)).device
    carved = carve(specs, device, POISONS[0])
    made = call(args, carved.outputs)
    return dict(carved.outputs if made is None else made)


def batch_variance(
    subject: Subject, call: Call, case: Case, args: dict[str, Any], made: Mapping[str, torch.Tensor]
) -> list[Violation]:
    """Compare, bit for bit, rows of the batch with the same rows alone and in a batch of another size and order."""
    tokens = args["logits"].shape[0] if "logits" in args else 0
    if case.op != "fused_gate" or not subject.batch_invariant or tokens < 2:
        return []
    logits, limit = args["logits"], args.get("num_token_non_padded")
    index = torch.arange(tokens, device=logits.device)
    for rows in (index[:1], index.flip(0)[: (tokens + 1) // 2]):
        # A padded row has no result of its own: it stays out of the comparison, not out of the batch.
        other = {k: v for k, v in args.items() if k != "num_token_non_padded"} | {"logits": logits[rows].contiguous()}
        if len(rows) not in subject.domain.tokens:
            continue
        alone = _launch(subject, call, case, other, len(rows))
        valid = torch.ones_like(rows, dtype=torch.bool) if limit is None else rows < limit.reshape(())
        for name, value in alone.items():
            differs = (as_bytes(value) != as_bytes(made[name][rows])).any(1) & valid
            wrong = differs.nonzero().flatten()
            if len(wrong):
                at = int(wrong[0])
                row = int(rows[at])
                message = (
                    f"row {row}: {name} are {made[name][row].tolist()} in a batch of {tokens} rows and "
                    f"{value[at].tolist()} in one of {len(rows)}"
                )
                return [Violation("batch_variance", message, tuple(rows[wrong][:MAX_ROWS].tolist()), len(wrong))]
    return []


def graph_replay(
    subject: Subject, call: Call, case: Case, args: dict[str, Any], made: Mapping[str, torch.Tensor]
) -> list[Violation]:
    """Capture a call in a CUDA graph, change the inputs, replay it, and compare with a plain call."""
    device = next(v for v in args.values() if isinstance(v, torch.Tensor)).device
    name = next(n for n in ROW_INPUTS if n in args)
    tokens = args[name].shape[0]
    if device.type != "cuda" or not subject.capturable or tokens < 1:
        return []
    if args[name].stride(0) == 0:
        return []
    static = dict(args) | {n: args[n].clone() for n in ROW_INPUTS if isinstance(args.get(n), torch.Tensor)}
    specs = output_specs(case, subject)
    carved = carve(specs, device, POISONS[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        call(static, carved.outputs)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        outputs = call(static, carved.outputs)
    outputs = dict(carved.outputs if outputs is None else outputs)
    changed = {n: static[n].roll(1, 0) for n in ROW_INPUTS if isinstance(args.get(n), torch.Tensor) and args[n].dim()}
    for key, value in changed.items():
        static[key].copy_(value)
    for buffer in carved.buffers.values():
        buffer.fill_(POISONS[1])
    graph.replay()
    plain = carve(specs, device, POISONS[0])
    expected = call(static, plain.outputs)
    expected = dict(plain.outputs if expected is None else expected)
    if not subject.bitwise or subject.order == "any":
        from .contract import judge

        wrong = judge(case, subject, static, outputs)
        return [Violation("graph_replay", f"replayed with new inputs: {v.message}", v.rows, v.count) for v in wrong[:1]]
    for key, value in expected.items():
        differs = (as_bytes(value) != as_bytes(outputs[key])).any(1).nonzero().flatten()
        if len(differs):
            row = int(differs[0])
            message = (
                f"{key}[{row}] is {outputs[key][row].tolist()} from a replayed graph and "
                f"{value[row].tolist()} from a plain call on the same inputs"
            )
            return [Violation("graph_replay", message, tuple(differs[:MAX_ROWS].tolist()), len(differs))]
    return []


def fake_op(
    subject: Subject, call: Call, case: Case, args: dict[str, Any], made: Mapping[str, torch.Tensor]
) -> list[Violation]:
    """Compare shapes, dtypes and strides of the fake implementation with those of the real result."""
    if "fake" not in subject.tags:
        return []
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        fake = {k: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for k, v in args.items()}
        results = call(fake, {})
    for name, value in (results or {}).items():
        real = made[name]
        got = (tuple(value.shape), value.dtype, value.stride(), value.device.type)
        want = (tuple(real.shape), real.dtype, real.stride(), real.device.type)
        if got != want:
            return [Violation("fake_op", f"{name}: the fake implementation gives {got}, the real one {want}")]
    return []


EXTRAS: dict[str, Extra] = {
    "batch_variance": batch_variance,
    "graph_replay": graph_replay,
    "fake_op": fake_op,
}
"""Checks that cost extra launches, by class name."""
