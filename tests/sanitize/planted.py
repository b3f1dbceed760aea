"""Subjects with one fault each that only a tool of compute-sanitizer names, and a right one beside them."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch

from moeproof.kernels.launcher import Params, load_kernel
from moeproof.strategies.domain import AppendDomain
from moeproof.verify.subject import Call, Subject

SOURCE = Path(__file__).with_name("planted.cu")
FAULTS = {
    "append_right": "",
    "append_past_end": "memcheck",
    "append_no_barrier": "racecheck",
    "append_reads_output": "initcheck",
    "append_divergent_barrier": "synccheck",
}
"""Kernels of `SOURCE`, and the tool that has something to say of each."""
THREADS = 64
_params = Params(5, "iiii")


def _run(name: str, args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> None:
    tokens, topk = args["topk_ids"].shape
    if not tokens:
        return
    tensors = (args["topk_ids"], args["topk_weights"], args["shared_weights"], outputs["ids"], outputs["weights"])
    frozen = _params.freeze(tokens, topk, args.get("num_fused_shared_experts", 1), args["num_experts"])
    kernel = load_kernel(str(SOURCE), name, tensors[0].device.index)
    kernel.launch(tokens, THREADS, _params.pack(frozen, *(t.data_ptr() for t in tensors)))


def _subject(name: str) -> Subject:
    def load() -> Call:
        return functools.partial(_run, name)

    return Subject(
        name=f"planted:append_shared_experts@{name}",
        op="append_shared_experts",
        load=load,
        domain=AppendDomain(
            topk=range(1, 33),
            shared=range(1, 9),
            tokens=range(1, 65),
            ids_dtypes=("int32",),
            weights_dtypes=("float32",),
            shared_dtypes=("float32",),
            shared_forms=("matrix",),
            layouts=("contiguous",),
            padding=False,
        ),
        device="cuda",
        source=f"{Path(__file__).resolve()}:planted:append_shared_experts@{name}",
    )


right, past_end, no_barrier, reads_output, divergent_barrier = SUBJECTS = tuple(_subject(name) for name in FAULTS)
