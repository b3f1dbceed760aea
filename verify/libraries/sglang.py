"""sglang: SGLang's just-in-time kernels, CUDA C++ on tvm-ffi and Triton.

Sources named below are in the wheel's folder sglang/kernels.
"""

from __future__ import annotations

import math

from moeproof.strategies.case import Case
from moeproof.strategies.contents import marked_values
from moeproof.strategies.domain import AlignDomain, AppendDomain, GateDomain
from moeproof.verify.subject import Subject

from .adapter import CONTIGUOUS, PACKAGE, gate_shape, subject
from .jit import COMPILE

_COMPILED = ("sglang", "apache-tvm-ffi")

# Flags: jit/utils/arch.py; the exported names: ops/moe/moe_align.py and the gate's wrapper.
_SOURCE = (
    COMPILE
    + """\
jit = package("sglang") / "kernels" / "jit"
major, minor = torch.cuda.get_device_capability()
flags = [f"-DSGL_CUDA_ARCH={major * 100 + minor * 10}", "-std=c++20", "-O3", "--expt-relaxed-constexpr"]
"""
)

# kPadExpertIds (ops/moe/moe_align.py: "fills unused expert-map capacity with -1") gives the contract's tail.
_ALIGN = (
    _SOURCE
    + '''\
file = jit / "csrc/moe/moe_align_kernel.cu"
source = f"""
#include "{file}"
namespace sglang {{
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_int32, (MoeAlignBlockSizeKernel<int32_t, false, false, true>::run));
TVM_FFI_DLL_EXPORT_TYPED_FUNC(align_int64, (MoeAlignBlockSizeKernel<int64_t, false, false, true>::run));
}}
"""
module = compile_cuda("sglang_align", source, [jit / "include"], flags)
align = {torch.int32: module.align_int32, torch.int64: module.align_int64}


def run(args, outputs):
    ids, experts, block = args["topk_ids"], args["num_experts"], args["block_size"]
    align[ids.dtype](
        ids,
        experts + 1,
        block,
        outputs["sorted_token_ids"],
        outputs["expert_ids"],
        outputs["num_tokens_post_pad"],
        torch.empty(experts + 2, dtype=torch.int32, device=ids.device),
        True,
    )
'''
)

_KIMI_K2 = (
    _SOURCE
    + '''\
file = jit / "csrc/lora/trtllm_lora_temp/kimi_k2_moe_fused_gate.cuh"
source = f"""
#include "{file}"
namespace sglang {{
TVM_FFI_DLL_EXPORT_TYPED_FUNC(gate, KimiK2MoEFusedGateKernel::run);
}}
"""
gate = compile_cuda("sglang_kimi_k2_gate", source, [jit / "include"], flags).gate


def run(args, outputs):
    gate(
        args["logits"],
        args["bias"],
        outputs["weights"],
        outputs["indices"],
        args["topk"],
        args.get("renormalize", True),
        args.get("routed_scaling_factor", 1.0),
        args.get("apply_routed_scaling_factor_on_output", False),
    )
'''
)

# A bare file imports parts of SGLang that are not there. They get stand-ins, of which the tested functions
# use only the two that tell the architecture, a decorator, and switches that are off by default.
_TRITON = (
    PACKAGE
    + '''\
import importlib
import sys
import types


class Off:
    """Is whatever one asks of it, and false when called."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args, **kwargs):
        return False


def stand_in(name, **members):
    """Put a module in place of one that is not among the bare files."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members, __getattr__=Off().__getattr__)


def capability():
    return types.SimpleNamespace(**dict(zip(("major", "minor"), torch.cuda.get_device_capability())))


path = package("sglang") / "kernels" / "ops" / "moe" / "FILE.py"
if (package("sglang") / "srt").is_dir():
    kernels = importlib.import_module("sglang.kernels.ops.moe.FILE")
else:
    stand_in(
        "sglang.kernels.jit.utils",
        get_jit_cuda_arch=capability,
        is_arch_support_pdl=lambda: capability().major >= 9,
    )
    stand_in("sglang.kernels.kernel_api_logging", debug_kernel_api=lambda function: function)
    for name in ("moe", "quantization.fp8_kernel", "quantization.int8_kernel"):
        stand_in(f"sglang.kernels.ops.{name}")
    for name in ("batch_invariant_ops", "environ", "layers.moe.utils", "utils"):
        stand_in(f"sglang.srt.{name}")
    spec = importlib.util.spec_from_file_location("sglang_FILE", path)
    kernels = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = kernels
    spec.loader.exec_module(kernels)


'''
)

_GATE = (
    _TRITON.replace("FILE", "moe_fused_gate")
    + """\
def run(args, outputs):
    weights, indices = kernels.moe_fused_gate(
        args["logits"],
        args.get("bias"),
        args["topk"],
        scoring_func=args.get("scoring", "sigmoid"),
        num_fused_shared_experts=args.get("num_fused_shared_experts", 0),
        renormalize=args.get("renormalize", True),
        routed_scaling_factor=args.get("routed_scaling_factor", 1.0),
        apply_routed_scaling_factor_on_output=args.get("apply_routed_scaling_factor_on_output", False),
        num_expert_group=args.get("num_expert_group", 1),
        topk_group=args.get("topk_group", 1),
        num_token_non_padded=args.get("num_token_non_padded"),
    )
    return {"weights": weights, "indices": indices}
"""
)

_APPEND = (
    _TRITON.replace("FILE", "fused_moe_triton_kernels")
    + """\
def run(args, outputs):
    ids, weights = kernels.fused_append_shared_experts_with_weights(
        args["topk_ids"],
        args["topk_weights"],
        args["shared_weights"],
        args.get("num_fused_shared_experts", 1),
        N=args["num_experts"],
    )
    return {"ids": ids, "weights": weights}
"""
)


def _align_path(case: Case) -> str:
    # jit/csrc/moe/moe_align_kernel.cu, run(): a bucket more than experts.
    tokens, topk = case.tensors["topk_ids"].shape
    buckets = int(case.params["num_experts"]) + 1
    if tokens * topk < 1024 and buckets <= 64:
        return "small batch"
    return "a thread a bucket" if buckets <= 1024 else "many buckets a thread"


def _align() -> Subject:
    domain = AlignDomain(
        experts=range(1, 4097),  # 8191 are allowed; the contract ends at 4096
        # ops/moe/moe_align.py: "IDs must be in [-1, num_experts - 2]", counting the bucket of -1.
        out_of_range=False,
        expert_map=False,
        layouts=CONTIGUOUS,
        thresholds={"ids": (1023, 1024), "experts": (63, 64, 1023, 1024, 2047, 2048, 4095)},
    )
    return subject(
        "sglang:moe_align_block_size@jit",
        _COMPILED,
        _ALIGN,
        domain,
        _align_path,
        order="any",  # places within an expert are handed out by atomic increments
        minus_one="sentinel_blocks",
        bitwise=False,
    )


def _kimi_k2_path(case: Case) -> str:
    return "a block a token" if gate_shape(case)[0] <= 512 else "a warp a token"


def _kimi_k2_extra(case: Case) -> str | None:
    # Another rule, in both kernels: a score of -inf is no candidate, and a place without one gets id 0 and weight 0
    # ("valid ? expert_id : 0"; pull request 15306 put that into the operator of sglang-kernel that this one follows).
    if -math.inf in marked_values(case.tensors["bias"]):
        return "bias holds -inf; allowed: down to the lowest finite number"
    return None


def _kimi_k2() -> Subject:
    # Limits: KimiK2MoEFusedGateKernel::run; a TensorMatcher without strides checks contiguity.
    domain = GateDomain(
        experts=(256, 384),
        topk=range(1, 9),
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
    return subject(
        "sglang:fused_gate@kimi_k2",
        _COMPILED,
        _KIMI_K2,
        domain,
        _kimi_k2_path,
        # Its header comment: "routed_scaling_factor folded into renorm (no-op when not renormalizing)".
        weights_scaled="renormalized",
        # The same comment: "weights = sigmoid (no bias)", which passes a NaN on; the kernel for more than 512 tokens
        # ranks no NaN, and a place without an expert gets weight 0.
        unranked="any",
    )


# Each pair of E and k is a compilation of a second or more, so E comes from a list: both sides of each switch
# of warps and rows a program, padded and exact powers of two. 896 is left out because with k=16 it goes to
# another kernel, which documents another order (ops/moe/moe_fused_gate.py: "in expert-id order").
_EXPERTS = (1, 2, 8, 60, 64, 72, 128, 160, 256, 257, 384, 512, 513, 1024, 4096)


def _gate_path(case: Case) -> str:
    # ops/moe/moe_fused_gate.py: BLOCK_M and num_warps.
    block = 1 << (gate_shape(case)[1] - 1).bit_length()
    return f"{max(1, min(4, 256 // block))} rows, {1 if block <= 512 else 4} warps"


def _gate_extra(case: Case) -> str | None:
    # A group's score is the sum of its two best ("per-group top-2-sum"), which one expert lacks. Its test holds it to
    # biased_grouped_topk_impl, where topk(2) raises on such a group.
    _, experts, _, groups, _ = gate_shape(case)
    if groups > 1 and experts == groups:
        return f"num_expert_group is {groups}; allowed for {experts} experts: at least 2 in a group"
    # Nothing claims a bias of +inf; beside -inf in a group it makes "top1 + top2", the group's score, NaN.
    bias = set(marked_values(case.tensors["bias"]))
    if groups > 1 and math.inf in bias:
        return "bias holds inf with groups; allowed: up to the largest finite number"
    # inf - inf is a score of NaN, for which it has a rule of its own: see below.
    infinite = case.params.get("scoring") == "sqrtsoftplus" and math.inf in marked_values(case.tensors["logits"])
    if infinite and -math.inf in bias:
        return "bias holds -inf beside logits of inf; allowed for sqrtsoftplus: down to the lowest finite number"
    return None


def _gate() -> Subject:
    domain = GateDomain(
        experts=_EXPERTS,
        topk=range(1, 17),
        bias="required",  # asserted for these two scorings
        scorings=("sigmoid", "sqrtsoftplus"),
        shared=range(3),
        expert_map=False,
        max_groups=32,  # a loop over groups is unrolled
        # Another rule for NaN: it ranks as -1e30, above -inf, and reaches its weight. route_radix.cuh, which stands
        # in for this kernel ("ids bit-identical"), says of its scores: "weight source -- never NaN-sanitized".
        nan=False,
        extra=_gate_extra,
    )
    return subject("sglang:fused_gate@triton", ("sglang",), _GATE, domain, _gate_path)


_LOOKED_AT = 1 << 16
"""Elements of logits up to which rows of -inf are looked for; larger ones must not name it."""


def _gate_softmax_extra(case: Case) -> str | None:
    # The rule for NaN (see _gate) holds for scores: a row with +inf or of nothing but -inf, whose softmax is NaN, is
    # ranked by its logits ("Ranking by the (softcapped, biased) logit"), and the NaN reaches its weight.
    logits = case.tensors["logits"]
    values = set(marked_values(logits))
    if math.inf in values:
        return "logits holds inf; allowed: up to the largest finite number"
    if -math.inf in values:
        if math.prod(logits.shape) > _LOOKED_AT:
            return f"logits holds -inf; allowed for more than {_LOOKED_AT} elements: finite numbers"
        if bool(logits.contents("cpu").isneginf().all(1).any()):
            return "logits holds a row of -inf; allowed: a finite number in each row"
    return None


def _gate_softmax() -> Subject:
    domain = GateDomain(
        experts=_EXPERTS,
        topk=range(1, 17),
        # ops/moe/moe_fused_gate.py: "weight is the softmax probability (bias kept)": another op with a bias,
        # and with groups, whose scores are sums of logits then.
        bias="none",
        scorings=("softmax",),
        groups="none",
        shared=range(3),
        expert_map=False,
        nan=False,  # as above
        extra=_gate_softmax_extra,
    )
    return subject("sglang:fused_gate@triton_softmax", ("sglang",), _GATE, domain, _gate_path)


def _append() -> Subject:
    domain = AppendDomain(
        topk=range(1, 17),  # each pair of k and S is a compilation
        shared=range(1, 5),
        shared_forms=("matrix", "vector"),  # a scalar has no second dimension to expand
        padding=False,
        layouts=CONTIGUOUS,
    )
    return subject("sglang:append_shared_experts@triton", ("sglang",), _APPEND, domain)


def subjects() -> list[Subject]:
    """Return the subjects of sglang."""
    return [_align(), _kimi_k2(), _gate(), _gate_softmax(), _append()]
