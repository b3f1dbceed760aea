"""sglang-kernel: SGLang's ahead-of-time operators, ``torch.ops.sgl_kernel``.

Sources named below are in sgl-kernel/csrc/moe of the repository sgl-project/sglang, or in the wheels. Where an
operator says nothing, what counts is another path of it, or the implementation in PyTorch that its tests hold it to
(python/sglang/srt/layers/moe/topk.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from moeproof.strategies.case import Case
from moeproof.strategies.contents import holds_inf, holds_nan
from moeproof.strategies.domain import AlignDomain, GateDomain
from moeproof.verify.subject import Subject

from .adapter import CONTIGUOUS, PACKAGE, gate_shape, subject

# sgl_kernel/load_utils.py: sm90 (built with fast math) on compute capability 9.0, sm100 on any other.
_LOAD = (
    PACKAGE
    + """\
build = "sm90" if torch.cuda.get_device_capability() == (9, 0) else "sm100"
binaries = sorted(package("sgl_kernel").glob(f"{build}/common_ops.*"))
if not binaries:
    raise ImportError(f"this GPU needs sgl_kernel/{build}/common_ops.*, which {package('sgl_kernel')} lacks")
torch.ops.load_library(str(binaries[0]))


"""
)

_KIMI_K2 = (
    _LOAD
    + """\
def run(args, outputs):
    weights, indices = torch.ops.sgl_kernel.kimi_k2_moe_fused_gate(
        args["logits"],
        args["bias"],
        args["topk"],
        args.get("renormalize", True),
        args.get("routed_scaling_factor", 1.0),
        args.get("apply_routed_scaling_factor_on_output", False),
    )
    return {"weights": weights, "indices": indices}
"""
)

_MOE_FUSED_GATE = (
    _LOAD
    + """\
def run(args, outputs):
    weights, indices = torch.ops.sgl_kernel.moe_fused_gate(
        args["logits"],
        args["bias"],
        args.get("num_expert_group", 1),
        args.get("topk_group", 1),
        args["topk"],
        args.get("num_fused_shared_experts", 0),
        args.get("routed_scaling_factor", 1.0),
        args.get("apply_routed_scaling_factor_on_output", False),
    )
    return {"weights": weights, "indices": indices}
"""
)

_TOPK_SIGMOID = (
    _LOAD
    + """\
def run(args, outputs):
    torch.ops.sgl_kernel.topk_sigmoid(
        outputs["weights"],
        outputs["indices"],
        args["logits"],
        args.get("renormalize", True),
        args.get("bias"),
    )
"""
)

_TOPK_SOFTMAX = (
    _LOAD
    + """\
def run(args, outputs):
    torch.ops.sgl_kernel.topk_softmax(
        outputs["weights"], outputs["indices"], args["logits"], args.get("renormalize", True), 0.0, None
    )
"""
)

# As sglang/srt/layers/moe/moe_runner/triton_utils/moe_align_block_size.py calls it: one bucket more than
# experts (for -1) and num_experts + 2 prefix sums. Only blocks in use get an expert, so the tail that the
# contract asks for is set beforehand.
_ALIGN = (
    _LOAD
    + """\
def run(args, outputs):
    ids, experts, block = args["topk_ids"], args["num_experts"], args["block_size"]
    places = PLACES
    outputs["expert_ids"].fill_(-1)
    torch.ops.sgl_kernel.moe_align_block_size(
        ids,
        experts + 1,
        block,
        places,
        outputs["expert_ids"],
        outputs["num_tokens_post_pad"],
        torch.empty(experts + 2, dtype=torch.int32, device=ids.device),
        True,
    )
    return outputs | {"sorted_token_ids": places[: outputs["sorted_token_ids"].numel()]}
"""
)
# The same caller: "The align kernel pads sorted_ids with int4 stores", so it rounds the length up to 4.
_ALIGN_ROUNDED = _ALIGN.replace(
    "places = PLACES",
    """places = outputs["sorted_token_ids"]
    if places.numel() % 4:
        places = places.new_empty((places.numel() + 3) // 4 * 4)""",
)
_ALIGN_EXACT = _ALIGN.replace("PLACES", 'outputs["sorted_token_ids"]')


def _gate(variant: str, snippet: str, domain: GateDomain, path: Callable[[Case], str]) -> Subject:
    # The implementations in PyTorch that its tests hold the gates to pass a NaN on to its weight, and leave the order
    # of NaN to torch.topk.
    name = f"sglang-kernel:fused_gate@{variant}"
    return subject(name, ("sglang-kernel",), snippet, domain, path, unranked="any")


def _kimi_k2_path(case: Case) -> str:
    # kimi_k2_moe_fused_gate.cu: SMALL_TOKEN_THRESHOLD.
    return "a block a token" if gate_shape(case)[0] <= 512 else "a warp a token"


def _kimi_k2_extra(case: Case) -> str | None:
    # kimi_k2_moe_fused_gate.cu has another rule: a score of -inf is no candidate, and a place without one gets
    # id 0 and weight 0 (pull request 15306; an else branch writes both).
    if holds_inf(case.tensors["bias"]):
        return "bias holds an infinity; allowed: finite numbers"
    return None


def _kimi_k2() -> Subject:
    # Ties and a row's independence of T: the kernel for more than 512 tokens takes the lower of equal scores
    # ("other_expert < max_expert"). The scale: sgl_kernel/moe.py says "If true, apply scaling factor to output",
    # with no word of renormalize.
    domain = GateDomain(
        experts=(384,),  # checked
        # kimi_k2_moe_fused_gate.cu, at an array of 8: "Up to topk=6, I use 8 for alignment".
        topk=range(1, 9),
        logits_dtypes=("float32",),  # checked, as is the bias
        bias_dtypes=("float32",),
        bias="required",
        scorings=("sigmoid",),
        groups="none",
        shared=range(1),
        padding=False,
        expert_map=False,
        layouts=CONTIGUOUS,
        thresholds={"tokens": (512,)},
        extra=_kimi_k2_extra,
    )
    return _gate("kimi_k2", _KIMI_K2, domain, _kimi_k2_path)


def _moe_fused_gate_path(case: Case) -> str:
    # moe_fused_gate.cu: the branches for (256, 16) and (128, 8) hang on an else of the dtype,
    # so those shapes take the dynamic kernel.
    _, experts, _, groups, _ = gate_shape(case)
    return "static" if (experts, groups) in ((256, 8), (128, 4)) else "dynamic"


def _moe_fused_gate_extra(case: Case) -> str | None:
    # moe_fused_gate.cu, "Case 3": 8 <= num_experts / num_expert_group <= 32.
    _, experts, _, groups, _ = gate_shape(case)
    if experts // groups < 8:
        return f"num_expert_group is {groups}; allowed for {experts} experts: at least 8 in a group"
    # Its tests hold it to biased_grouped_topk_impl, which has other rules for a bias that is not finite: a dropped
    # expert, or one with a bias of NaN, has its sigmoid as weight, and torch.topk keeps a group of NaN first.
    if holds_nan(case.tensors["bias"]) or holds_inf(case.tensors["bias"]):
        return "bias holds NaN or an infinity; allowed: finite numbers"
    return None


def _moe_fused_gate() -> Subject:
    domain = GateDomain(
        experts=tuple(1 << n for n in range(3, 13)),  # checked: a power of 2
        # Half-precision input is scored and summed in its own dtype, as the library's reference does
        # (biased_grouped_topk_impl); the contract scores in float32, so only float32 can be judged by it.
        logits_dtypes=("float32",),
        bias_dtypes=("float32",),
        bias="required",
        scorings=("sigmoid",),
        max_experts_per_group=32,  # checked
        renormalize=(True,),  # it has no such flag: weights are always normalised
        padding=False,
        expert_map=False,
        layouts=CONTIGUOUS,
        thresholds={"experts": (128, 256)},
        extra=_moe_fused_gate_extra,
    )
    return _gate("moe_fused_gate", _MOE_FUSED_GATE, domain, _moe_fused_gate_path)


# Of both topk operators: the kernels for powers of two say of ties "We want lower indices to "win"". No check asks
# for an alignment of the logits, and the kernels for other numbers of experts read them one by one.
def _topk_path(case: Case, *, largest: int) -> str:
    experts = gate_shape(case)[1]
    return "one kernel" if experts & (experts - 1) == 0 and experts <= largest else "workspace"


def _topk_sigmoid() -> Subject:
    domain = GateDomain(
        bias_dtypes=("float32",),  # checked
        scorings=("sigmoid",),
        groups="none",
        shared=range(1),
        scale_on_output=(False,),
        scale=False,
        padding=False,
        expert_map=False,
        layouts=CONTIGUOUS,
        thresholds={"experts": (1, 2, 4, 8, 16, 32, 64, 128, 256)},
    )
    return _gate("topk_sigmoid", _TOPK_SIGMOID, domain, partial(_topk_path, largest=256))


def _topk_softmax() -> Subject:
    domain = GateDomain(
        # Its correction_bias joins the logits before the softmax and so enters the weights: another op.
        bias="none",
        scorings=("softmax",),
        groups="none",
        shared=range(1),
        scale_on_output=(False,),
        scale=False,
        padding=False,
        expert_map=False,
        layouts=CONTIGUOUS,
        thresholds={"experts": (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), "topk": (1,)},
    )
    return _gate("topk_softmax", _TOPK_SOFTMAX, domain, partial(_topk_path, largest=512))


def _align_path(case: Case) -> str:
    # moe_align_kernel.cu: small_batch_expert_mode; a bucket more than experts.
    tokens, topk = case.tensors["topk_ids"].shape
    small = tokens * topk < 1024 and int(case.params["num_experts"]) + 1 <= 64
    return "small batch" if small else "two kernels"


def _align(variant: str, snippet: str) -> Subject:
    domain = AlignDomain(
        experts=range(1, 1024),  # one thread of a block of 1024 a bucket, and a bucket more than experts
        # kernels/ops/moe/moe_align.py: "IDs must be in [-1, num_experts - 2]", counting that bucket.
        out_of_range=False,
        expert_map=False,
        layouts=CONTIGUOUS,
        thresholds={"ids": (1023, 1024), "experts": (63, 64)},
    )
    return subject(
        f"sglang-kernel:moe_align_block_size{variant}",
        ("sglang-kernel",),
        snippet,
        domain,
        _align_path,
        order="any",  # places within an expert are handed out by atomic increments
        minus_one="sentinel_blocks",
        bitwise=False,
    )


def subjects() -> list[Subject]:
    """Return the subjects of sglang-kernel.

    ``moe_align_block_size`` follows SGLang's own caller; ``moe_align_block_size@exact`` passes a
    `sorted_token_ids` of any length. The operator takes it unchecked, its kernel for small batches fills it to the
    element, and its own test (sgl-kernel/tests/test_moe_align.py) passes n + (E + 1)(B - 1) places, not rounded.
    """
    return [
        _kimi_k2(),
        _moe_fused_gate(),
        _topk_sigmoid(),
        _topk_softmax(),
        _align("", _ALIGN_ROUNDED),
        _align("@exact", _ALIGN_EXACT),
    ]
