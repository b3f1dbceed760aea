"""flashinfer-python: the fused routing of DeepSeek-V3, ``flashinfer.fused_moe.fused_topk_deepseek``.

Sources named below are in the wheel: flashinfer/fused_moe/fused_routing_dsv3.py and flashinfer/data/csrc.
"""

from __future__ import annotations

from dataclasses import replace
from operator import mul

from moeproof.strategies.case import Case
from moeproof.strategies.contents import holds_both_infinities
from moeproof.strategies.domain import GateDomain
from moeproof.verify.subject import BY_NAME, Subject

from .adapter import CONTIGUOUS, gate_shape, subject
from .jit import COMPILE

# Sources and include paths: flashinfer/jit/dsv3_optimizations.py; flags: gen_jit_spec in jit/core.py.
_BUILD = (
    COMPILE
    + """\
def build(*flags):
    data = package("flashinfer") / "data"
    internal = data / "csrc" / "nv_internal"
    common = [f"cpp/common/{name}.cpp" for name in ("envUtils", "logger", "stringUtils", "tllmException")]
    files = [data / "csrc/fused_moe/noAuxTcKernels.cu", *(internal / file for file in common)]
    return compile_cuda(
        "flashinfer_no_aux_tc",
        "\\n".join(f'#include "{file}"' for file in files),
        [data / "include", data / "csrc", internal, internal / "include"],
        ["-std=c++17", "-O3", "-DNDEBUG", "-DENABLE_BF16", *flags],
    ).NoAuxTc


"""
)

_RELEASED = """\
if (package("flashinfer") / "fused_moe").is_dir():
    from flashinfer.fused_moe import fused_topk_deepseek as route
else:
    route = build("-use_fast_math")
"""

_PRECISE = """\
route = build()
"""

_RUN = """\


def run(args, outputs):
    # It multiplies by the factor it gets, always: 1 where that isn't for the output.
    on_output = args.get("apply_routed_scaling_factor_on_output", False)
    route(
        args["logits"],
        args["bias"],
        args.get("num_expert_group", 1),
        args.get("topk_group", 1),
        args["topk"],
        args.get("routed_scaling_factor", 1.0) if on_output else 1.0,
        outputs["weights"],
        outputs["indices"],
        True,
        None,
    )
"""


def _path(case: Case) -> str:
    # csrc/fused_moe/noAuxTcKernels.cu, invokeNoAuxTc.
    _, experts, _, groups, _ = gate_shape(case)
    if groups > 1:
        return "groups"
    return "one group, E<=128" if experts <= 128 else "one group, E<=384"


def _extra(case: Case) -> str | None:
    # The docstring of fused_topk_deepseek; 256 with groups is invokeNoAuxTc's own check.
    _, experts, _, groups, kept = gate_shape(case)
    each = experts // groups
    if groups == 1:
        return None
    # trace/templates/sampling.py: a group's score is the sum of its two best, and torch.topk ranks a NaN first.
    if holds_both_infinities(case.tensors["bias"]):
        return "bias holds infinities of both signs with groups; allowed: those of one"
    if experts <= 256 and each <= 32 and each * kept <= 128:
        return None
    return (
        f"{experts} experts in {groups} groups of which {kept} are kept; allowed with groups: 256 experts, "
        "32 in a group and 128 in the kept groups"
    )


def _no_aux_tc(variant: str, route: str) -> Subject:
    domain = GateDomain(
        experts=range(1, 385),
        topk=range(1, 9),
        # Weights come in the dtype of the logits; the contract's are float32.
        logits_dtypes=("float32",),
        bias="required",
        scorings=("sigmoid",),
        max_groups=32,
        # Its docstring, and its check: "topk_group * n_group (...) must be >= topk". So one group takes k=1 only,
        # though the kernel below knows no such limit.
        max_routed=mul,
        shared=range(1),
        renormalize=(True,),  # it has no such flag: weights are always normalised
        padding=False,
        expert_map=False,
        layouts=CONTIGUOUS,
        # It documents no place for NaN, and of weights a formula that passes it on:
        # "sigmoid_scores / sum(sigmoid_scores) * routed_scaling_factor".
        nan=False,
        thresholds={"experts": (128, 256, 384)},
        extra=_extra,
    )
    return subject(
        f"flashinfer:fused_gate@{variant}",
        ("flashinfer-python", "apache-tvm-ffi"),
        _BUILD + route + _RUN,
        domain,
        _path,
    )


def subjects() -> list[Subject]:
    """Return the subjects of flashinfer.

    ``no_aux_tc`` is built as released, with -use_fast_math; ``no_aux_tc_precise`` is built without it, which
    tells what the kernel does from what the flag does. Nobody ships that build: it runs where it is named.
    """
    precise = _no_aux_tc("no_aux_tc_precise", _PRECISE)
    return [_no_aux_tc("no_aux_tc", _RELEASED), replace(precise, tags=(*precise.tags, BY_NAME))]
