"""vllm: the operators of its stable-ABI extension, ``torch.ops._moe_C``.

Sources named below are in csrc/moe of the repository vllm-project/vllm (csrc/libtorch_stable/moe in other versions),
Python in vllm/model_executor/layers/fused_moe, tests in tests/kernels/moe.
"""

from __future__ import annotations

from collections.abc import Callable

from moeproof.strategies.case import Case
from moeproof.strategies.contents import holds_both_infinities, holds_inf, holds_nan
from moeproof.strategies.domain import AlignDomain, GateDomain
from moeproof.verify.subject import Subject

from .adapter import CONTIGUOUS, PACKAGE, gate_shape, subject

_LOAD = (
    PACKAGE
    + """\
torch.ops.load_library(str(package("vllm") / "_moe_C_stable_libtorch.abi3.so"))


"""
)

# The operators multiply by the factor they get, always: their callers pass 1 where it isn't for the output.
_FACTOR = """\
def factor(args):
    on_output = args.get("apply_routed_scaling_factor_on_output", False)
    return args.get("routed_scaling_factor", 1.0) if on_output else 1.0


"""

_GROUPED_TOPK = (
    _LOAD
    + _FACTOR
    + """\
SIGMOID = 1


def run(args, outputs):
    weights, indices = torch.ops._moe_C.grouped_topk(
        args["logits"],
        args.get("num_expert_group", 1),
        args.get("topk_group", 1),
        args["topk"],
        args.get("renormalize", True),
        factor(args),
        args["bias"],
        SIGMOID,
    )
    return {"weights": weights, "indices": indices}
"""
)

_TOPK_SIGMOID = (
    _LOAD
    + _FACTOR
    + """\
def run(args, outputs):
    torch.ops._moe_C.topk_sigmoid(
        outputs["weights"],
        outputs["indices"],
        torch.empty_like(outputs["indices"]),
        args["logits"],
        args.get("renormalize", True),
        args.get("bias"),
        factor(args),
        None,
    )
"""
)

_TOPK_SOFTMAX = (
    _LOAD
    + """\
def run(args, outputs):
    torch.ops._moe_C.topk_softmax(
        outputs["weights"],
        outputs["indices"],
        torch.empty_like(outputs["indices"]),
        args["logits"],
        args.get("renormalize", True),
        args.get("bias"),
        None,
    )
"""
)

_TOPK_SOFTPLUS_SQRT = (
    _LOAD
    + _FACTOR
    + """\
def run(args, outputs):
    torch.ops._moe_C.topk_softplus_sqrt(
        outputs["weights"],
        outputs["indices"],
        torch.empty_like(outputs["indices"]),
        args["logits"],
        args.get("renormalize", True),
        factor(args),
        args.get("bias"),
        None,
        None,
        None,
    )
"""
)

_ALIGN = (
    _LOAD
    + """\
def run(args, outputs):
    torch.ops._moe_C.moe_align_block_size(
        args["topk_ids"],
        args["num_experts"],
        args["block_size"],
        outputs["sorted_token_ids"],
        outputs["expert_ids"],
        outputs["num_tokens_post_pad"],
        args.get("expert_map"),
        None,
    )
"""
)


def _gate(variant: str, snippet: str, domain: GateDomain, path: Callable[[Case], str]) -> Subject:
    return subject(f"vllm:fused_gate@{variant}", ("vllm",), snippet, domain, path)


_TIERS = ((128, 8), (256, 8), (384, 8), (512, 8), (512, 22), (768, 16), (896, 16), (1024, 16))
"""Largest E and k of each kernel for one group: grouped_topk_kernels.cu, SigmoidBiasTiers."""


def _grouped_path(case: Case) -> str:
    # grouped_topk_kernels.cu: single_group_topk::launch, invokeNoAuxTc.
    tokens, experts, topk, groups, kept = gate_shape(case)
    if groups == 1:
        tier = next((t for t in _TIERS if experts <= t[0] and topk <= t[1]), None)
        if tier is None:
            return "general"
        block = tier[0] >= 896 or (experts >= 256 and tokens <= 1024)
        return f"one group, E<={tier[0]}, k<={tier[1]}, a {'block' if block else 'warp'} a token"
    each = experts // groups
    small = experts <= 256 and each <= 32 and each * kept <= 128 and topk <= 8 and kept <= 4
    return "groups" if small else "general"


def _grouped_extra(case: Case) -> str | None:
    _, experts, _, groups, _ = gate_shape(case)
    # router/grouped_topk_router.py, valid_grouping: "Check if num_experts is greater than num_expert_group";
    # other shapes go to another op. A group's score is the sum of its two best, which one expert lacks.
    if groups > 1 and experts == groups:
        return f"num_expert_group is {groups}; allowed for {experts} experts: at least 2 in a group"
    path = _grouped_path(case)
    if path == "groups":
        # Another rule for NaN, an expert's or a group's (+inf and -inf are its two best): it ranks first and reaches
        # its weight, as in grouped_topk of router/grouped_topk_router.py, where torch.topk ranks NaN first.
        for name in ("logits", "bias"):
            if holds_nan(case.tensors[name]):
                return f"{name} holds NaN; allowed for a shape that takes this kernel: numbers"
        if holds_both_infinities(case.tensors["bias"]):
            return "bias holds infinities of both signs with groups; allowed: those of one"
        return None
    # These kernels document another rule. For one group an expert whose logit or bias is not finite is no candidate,
    # whatever its sign: preprocess_score, write_outputs and test_grouped_topk_single_group_nonfinite_scores give it
    # weight 0, and a row without candidates ids 0, 1, ... with weights 1/k or 0. The general kernel leaves out such
    # logits, and gives weights 1/k where -inf rules groups out ("proceed only if the k-th selected group score is
    # not -inf").
    for name in ("logits", "bias"):
        spec = case.tensors[name]
        if holds_nan(spec) or holds_inf(spec):
            return f"{name} holds NaN or an infinity; allowed for a shape that takes this kernel: finite numbers"
    # The general kernel scores and sums in the dtype of the logits; the contract can judge float32 only.
    dtype = case.tensors["logits"].dtype
    if path == "general" and dtype != "float32":
        return f"logits are {dtype}; allowed for a shape that takes the general kernel: float32"
    return None


def _grouped_topk() -> Subject:
    domain = GateDomain(
        bias="required",
        scorings=("sigmoid",),
        max_groups=32,  # checked
        shared=range(1),
        padding=False,
        expert_map=False,
        layouts=CONTIGUOUS,
        thresholds={"tokens": (1024,), "experts": (128, 256, 384, 512, 768, 896, 1024), "topk": (8, 16, 22)},
        extra=_grouped_extra,
    )
    return _gate("grouped_topk", _GROUPED_TOPK, domain, _grouped_path)


_SOFTPLUS_SQRT = (1, 2, 4, 8, 16, 32, 64, 128, 192, 256, 320, 384, 448, 512, 576)
"""Numbers of experts for which topk_softplus_sqrt_kernels.cu has a kernel."""

_ONE_KERNEL = (*_SOFTPLUS_SQRT, 352)
"""Numbers of experts for which topk_softmax_kernels.cu has a kernel without workspace."""


def _topk_path(case: Case) -> str:
    return "one kernel" if gate_shape(case)[1] in _ONE_KERNEL else "workspace"


def _topk_sigmoid() -> Subject:
    domain = GateDomain(
        bias_dtypes=("float32",),  # checked
        scorings=("sigmoid",),
        groups="none",
        shared=range(1),
        padding=False,  # is_padding masks ids, not weights
        expert_map=False,
        layouts=CONTIGUOUS,
        # topk_softmax_kernels.cu documents another rule: "clamp NaN/Inf values to 0 to prevent duplicate
        # expert IDs", so that a NaN ranks as its bias.
        nan=False,
        thresholds={"experts": _ONE_KERNEL},
    )
    return _gate("topk_sigmoid", _TOPK_SIGMOID, domain, _topk_path)


def _topk_softmax(*, bias: bool) -> Subject:
    domain = GateDomain(
        bias_dtypes=("float32",),  # checked
        bias="required" if bias else "none",
        scorings=("softmax",),
        groups="none",
        shared=range(1),
        scale_on_output=(False,),
        scale=False,
        padding=False,  # is_padding masks ids, not weights
        expert_map=False,
        layouts=CONTIGUOUS,
        # Without a bias the clamp of NaN to 0 (see above) gives what the contract asks for: ids 0, 1, ...
        nan=not bias,
        inf=not bias,
        thresholds={"experts": _ONE_KERNEL},
    )
    return _gate("topk_softmax_bias" if bias else "topk_softmax", _TOPK_SOFTMAX, domain, _topk_path)


def _topk_softplus_sqrt() -> Subject:
    domain = GateDomain(
        experts=_SOFTPLUS_SQRT,  # checked: "Unsupported expert number"
        bias_dtypes=("float32",),  # read as such
        scorings=("sqrtsoftplus",),
        groups="none",
        shared=range(1),
        padding=False,  # is_padding masks ids, not weights
        expert_map=False,
        layouts=CONTIGUOUS,
        # topk_softplus_sqrt_kernels.cu clamps a NaN score to 0 before it adds the bias, so that a NaN ranks as that.
        nan=False,
    )
    return _gate("topk_softplus_sqrt", _TOPK_SOFTPLUS_SQRT, domain, _topk_path)


def _align_path(case: Case) -> str:
    # moe_align_sum_kernels.cu: small_batch_expert_mode.
    tokens, topk = case.tensors["topk_ids"].shape
    return "small batch" if tokens * topk < 1024 and int(case.params["num_experts"]) <= 64 else "two kernels"


def _align() -> Subject:
    domain = AlignDomain(
        experts=range(1, 993),  # checked: rounded up to 32 it must be below 1024
        layouts=CONTIGUOUS,
        thresholds={"ids": (1023, 1024), "experts": (64, 65, 992)},
    )
    return subject(
        "vllm:moe_align_block_size",
        ("vllm",),
        _ALIGN,
        domain,
        _align_path,
        order="any",  # places within an expert are handed out by atomic increments
        bitwise=False,
    )


def subjects() -> list[Subject]:
    """Return the subjects of vllm."""
    return [
        _grouped_topk(),
        _topk_sigmoid(),
        _topk_softmax(bias=False),
        _topk_softmax(bias=True),
        _topk_softplus_sqrt(),
        _align(),
    ]
