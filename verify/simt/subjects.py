"""Own kernels as subjects that run on the SIMT executor."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from moeproof import __version__
from moeproof.kernels.launcher import use_executor
from moeproof.strategies.domain import AlignDomain, Domain, GateDomain
from moeproof.strategies.domain_check import allowed_text
from moeproof.verify.subject import OUTPUTS, Call, Subject, SubjectError

from .devices import GATE_TOKENS, standing_in
from .executor import Executor, Session, tensors_of
from .module import runtime
from .schedule import derived

SOURCES = Path(importlib.import_module("moeproof.kernels.launcher").__file__ or "").parent
MODULES = {"fused_gate": "fused_gate", "moe_align_block_size": "align_block_size"}
"""Modules of the host code, by op. `append_shared_experts` is no CUDA C++."""
DOMAINS: dict[str, Domain] = {
    "fused_gate": GateDomain(shared=range(32), tokens=range(65), thresholds={"tokens": GATE_TOKENS}),
    "moe_align_block_size": AlignDomain(
        topk=range(65),
        block_sizes=range(1, 257),
        max_ids=2304,
        tokens=range(2305),
        thresholds={"ids": (64, 256, 320, 512, 768, 1536)},
    ),
}
"""What the subjects claim. The thresholds are where plans for `devices.DEVICES` change."""


def own(op: str, sources: Path | None = None, *, name: str | None = None, domain: Domain | None = None) -> Subject:
    """Return an own kernel as a subject that runs on the CPU, from the same host code and sources as on a GPU.

    Parameters
    ----------
    op : str
        ``fused_gate`` or ``moe_align_block_size``.
    sources : Path, optional
        Folder of the ``.cu`` and ``.cuh`` files; the shipped ones by default.
    name : str, optional
        The subject's name, ``own:OP@simt`` by default.
    domain : Domain, optional
        The sizes that it takes, by default those that a launch takes milliseconds for.

    Raises
    ------
    SubjectError
        If the op has no CUDA C++ kernel.
    """
    if op not in MODULES:
        raise SubjectError(f"op is {op!r}; allowed on the SIMT executor: {', '.join(MODULES)}")

    claimed = domain or DOMAINS[op]

    def load() -> Call:
        executor = Executor(sources or SOURCES)
        function = getattr(importlib.import_module(f"moeproof.kernels.{MODULES[op]}"), op)

        def on_cpu(**args: Any) -> Any:
            _check_size(claimed, args)
            with use_executor(executor), standing_in(executor, op, args):
                return function(**args)

        return _call(on_cpu, op)

    return Subject(
        name=name or f"own:{op}@simt",
        op=op,
        load=load,
        domain=claimed,
        device="cpu",
        refuses=True,
        layout_invariant=True,
        dtype_invariant=True,
        version=_version,
        tags=("own", "simt"),
    )


def _check_size(domain: Domain, args: Mapping[str, Any]) -> None:
    """Refuse what the kernels take but would be too slow here, so that the subject's domain is what it accepts."""
    main = args["logits" if isinstance(domain, GateDomain) else "topk_ids"]
    if main.dim() != 2:
        return  # the kernel's own check says so
    sizes: list[tuple[str, int, Sequence[int]]] = [("the number of tokens", main.shape[0], domain.tokens)]
    if isinstance(domain, GateDomain):
        sizes.append(("num_fused_shared_experts", args.get("num_fused_shared_experts", 0), domain.shared))
    elif isinstance(domain, AlignDomain):
        sizes.append(("topk", main.shape[1], domain.topk))
        sizes.append(("the number of ids", main.numel(), range(domain.max_ids + 1)))
        sizes.append(("block_size", args["block_size"], domain.block_sizes))
    for name, value, allowed in sizes:
        if value not in allowed:
            raise ValueError(f"{name} is {value}; allowed on the executor: {allowed_text(allowed)}")


def subject(
    function: Callable[..., Any],
    op: str,
    *,
    domain: Domain | None = None,
    name: str | None = None,
    **promises: Any,
) -> Subject:
    """Return host code that launches kernels of a `Program` as a subject that runs on the CPU.

    Parameters
    ----------
    function : callable
        Takes the arguments of docs/contracts.md by name, CPU tensors, and ``out=``, a tuple of outputs in the
        contract's order, which its launches fill.
    op : str
        The op whose contract it is judged by.
    domain : Domain, optional
        The cases it supports, those of a small own kernel by default.
    name : str, optional
        The subject's name, ``user:FUNCTION@simt`` by default.
    **promises
        Further fields of `Subject`, such as ``order="any"``.
    """
    return Subject(
        name=name or f"user:{function.__name__}@simt",
        op=op,
        load=lambda: _call(function, op),
        domain=domain or DOMAINS[op],
        device="cpu",
        tags=("simt",),
        **promises,
    )


def _call(function: Callable[..., Any], op: str) -> Call:
    """Return a subject's call: the function in a session of its own, under a schedule that the case decides."""
    runtime()
    names = OUTPUTS[op]

    def call(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor] | None:
        inputs = tensors_of(args)
        scalars = {n: v for n, v in args.items() if n not in inputs}
        schedule = derived(scalars, inputs.values(), outputs.values())
        with Session(inputs, outputs, schedule=schedule):
            made = function(**args, out=tuple(outputs[n] for n in names) if outputs else None)
        return None if outputs else dict(zip(names, made, strict=True))

    return call


def _version() -> str:
    return __version__


def subjects() -> list[Subject]:
    """Return the subjects of the shipped kernels."""
    return [own(op) for op in MODULES]
