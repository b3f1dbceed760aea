"""The subjects that ship with moeproof: references, own kernels, and released libraries found on this machine."""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from moeproof import __version__
from moeproof.kernels import align_plan, gate_plan
from moeproof.strategies.case import DTYPES, Case
from moeproof.strategies.domain import AlignDomain, AppendDomain, Domain, GateDomain
from moeproof.strategies.outside import UNBOUNDED

from .delayed import delayed_module
from .libraries import ADAPTERS
from .simt.subjects import subjects as simt
from .subject import OUTPUTS, Call, Subject, Unavailable, from_function, register

_FULL: dict[str, Domain] = {
    "fused_gate": GateDomain(),
    "moe_align_block_size": AlignDomain(),
    "append_shared_experts": AppendDomain(),
}
_OWN: dict[str, Domain] = {
    "fused_gate": GateDomain(shared=range(32), thresholds=gate_plan.THRESHOLDS),
    # The contract sets k, S and B no upper limit, and neither do these kernels.
    "moe_align_block_size": AlignDomain(
        topk=range(UNBOUNDED), block_sizes=range(1, UNBOUNDED), thresholds=align_plan.THRESHOLDS
    ),
    "append_shared_experts": AppendDomain(topk=range(1, UNBOUNDED), shared=range(1, UNBOUNDED)),
}
_SIMULATED: dict[str, Domain] = {
    # Numba's simulator costs up to 500 ms a launch: a few threads at most.
    "fused_gate": GateDomain(experts=range(1, 17), topk=range(1, 5), tokens=range(5)),
    "moe_align_block_size": AlignDomain(experts=range(1, 17), topk=range(1, 5), tokens=range(9), max_ids=16),
    "append_shared_experts": AppendDomain(topk=range(1, 5), shared=range(1, 4), tokens=range(5)),
}


def _version() -> str:
    return __version__


def _reference(family: str, module: str, op: str) -> Callable[[], Call]:
    def load() -> Call:
        if module == "numba_ref" and not torch.cuda.is_available():
            # Read when Numba is first imported.
            os.environ.setdefault("NUMBA_ENABLE_CUDASIM", "1")
        package = importlib.import_module(f"moeproof.references.{module}")
        available = getattr(package, "available", None)
        if available is not None and (reason := available()) is not None:
            raise Unavailable(reason)
        return from_function(getattr(package, op), op)()

    return load


def _references() -> None:
    families = {"numpy": "gold", "torch": "torch_ref", "numba": "numba_ref"}
    simulated = not torch.cuda.is_available()
    for family, module in families.items():
        for op in OUTPUTS:
            small = family == "numba" and simulated
            register(
                Subject(
                    name=f"{family}:{op}",
                    op=op,
                    load=_reference(family, module, op),
                    domain=(_SIMULATED if small else _FULL)[op],
                    device="cpu" if family == "numpy" else "any",
                    batch_invariant=family != "torch",
                    version=_version,
                    tags=("reference",),
                )
            )


def _own_call(op: str, *, delayed: bool = False) -> Callable[[], Call]:
    def load() -> Call:
        module = {
            "fused_gate": "fused_gate",
            "moe_align_block_size": "align_block_size",
            "append_shared_experts": "append_shared_experts",
        }[op]
        try:
            source = delayed_module(module) if delayed else importlib.import_module(f"moeproof.kernels.{module}")
            function = getattr(source, op)
            importlib.import_module("moeproof.kernels.ops")
        except ImportError as error:
            raise Unavailable(f"{error}; install moeproof[cuda]") from error
        names = OUTPUTS[op]
        registered = getattr(torch.ops.moeproof, op).default
        optional = {a.name: None for a in registered._schema.arguments if str(a.type) == "Optional[Tensor]"}

        def call(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor] | None:
            if not outputs:
                return dict(zip(names, registered(**{**optional, **args}), strict=True))
            function(**args, out=tuple(outputs[n] for n in names))
            return None

        return call

    return load


def _gate_path(case: Case) -> str:
    """Name the variant of the own gate that a case runs on."""
    spec = case.tensors["logits"]
    tokens, experts = spec.shape
    if not tokens:
        return "no tokens"
    outer, inner = spec.strides or (experts, 1)
    item = DTYPES[spec.dtype].itemsize
    step = (spec.offset | (outer if tokens > 1 else 0)) * item
    bias = case.tensors.get("bias")
    chosen = gate_plan.plan(
        tokens,
        experts,
        dtype=spec.dtype,
        scoring=str(case.params.get("scoring", "sigmoid")),
        biased="bias" in case.tensors,
        groups=int(case.params.get("num_expert_group", 1)),
        places=int(case.params["topk"]),
        unit_stride=inner == 1 or experts == 1,
        alignment=min(16, step & -step) if step else 16,
        bias_aligned=bias is None or (bias.offset % 4 == 0 and (bias.strides or (1,))[0] == 1),
    )
    return (
        f"{chosen.file.removesuffix('.cu')} {chosen.variant} {chosen.grouping} {chosen.lanes}x{chosen.experts_per_lane}"
    )


def _align_path(case: Case) -> str:
    """Name the variant of the own align that a case runs on."""
    numel = math.prod(case.tensors["topk_ids"].shape)
    if not numel:
        return "no ids"
    return align_plan.plan(numel, int(case.params["num_experts"]), int(case.params["block_size"])).variant


_PATHS: dict[str, Callable[[Case], str]] = {"fused_gate": _gate_path, "moe_align_block_size": _align_path}


def _own() -> None:
    for op in OUTPUTS:
        register(
            Subject(
                name=f"own:{op}",
                op=op,
                load=_own_call(op),
                domain=_OWN[op],
                device="cuda",
                refuses=True,
                capturable=True,
                layout_invariant=True,
                dtype_invariant=True,
                path=_PATHS.get(op),
                version=_version,
                tags=("own", "fake"),
            )
        )


def _delayed() -> None:
    for op in ("fused_gate", "moe_align_block_size"):
        register(
            Subject(
                name=f"own:{op}@delays",
                op=op,
                load=_own_call(op, delayed=True),
                domain=_OWN[op],
                device="cuda",
                path=_PATHS.get(op),
                version=_version,
                tags=("own",),
            )
        )


def _libraries() -> None:
    for module in ADAPTERS:
        for subject in importlib.import_module(f"moeproof.verify.libraries.{module}").subjects():
            register(subject)


def _simt() -> None:
    for subject in simt():
        register(subject)


_references()
_own()
_delayed()
_simt()
_libraries()
