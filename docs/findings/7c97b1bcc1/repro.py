#!/usr/bin/env python3
"""sglang:fused_gate@triton: experts with equal scores are not ordered by id (T=1, E=128, k=1, sigmoid, 2 groups, 1 kept, float32, bias)

Rule: Experts with equal scores are ordered by id, lower first.
Seen: row 0: experts [80], expected [34]: place 0 holds expert 80 (score -255.5) where expert 34
    (score -255.5) belongs
With: sglang bare files, expected 0.5.23 on cuda: NVIDIA H100 80GB HBM3.
Exit status: 0 right, 1 wrong.
"""

import importlib.util
import os
import pathlib
import sys

import torch

DEVICE = "cuda"
OUTPUTS = {
    "weights": ((1, 1), torch.float32),
    "indices": ((1, 1), torch.int32),
}

def package(name):
    """Return the folder of a package: among bare files if it is there, else as installed."""
    folder = os.environ.get("MOEPROOF_LIBRARIES")
    if folder and pathlib.Path(folder, name).is_dir():
        return pathlib.Path(folder, name)
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ImportError(f"{name} is not installed, nor in the folder that MOEPROOF_LIBRARIES names")
    return pathlib.Path(spec.origin).parent


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


path = package("sglang") / "kernels" / "ops" / "moe" / "moe_fused_gate.py"
if (package("sglang") / "srt").is_dir():
    kernels = importlib.import_module("sglang.kernels.ops.moe.moe_fused_gate")
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
    spec = importlib.util.spec_from_file_location("sglang_moe_fused_gate", path)
    kernels = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = kernels
    spec.loader.exec_module(kernels)


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


def tensor(values, dtype, strides=None, offset=0):
    """Return a tensor inside a larger buffer, so that an access beside it shows; strides count elements."""
    values = torch.tensor(values, dtype=dtype)
    strides, guard = strides or values.stride(), 512 // dtype.itemsize
    size = offset + 1 + sum((n - 1) * s for n, s in zip(values.shape, strides))
    bait = 12352.0 if dtype.is_floating_point else 1
    buffer = torch.full((guard + size + guard,), bait, dtype=dtype, device=DEVICE)
    view = buffer.as_strided(values.shape, strides, guard + offset)
    view.copy_(values)
    return view


def arguments():
    return dict(
        logits=tensor([[0.0] * 128], torch.float32),
        bias=tensor(
            [-7.378697629483821e+19, -1.0633823966279327e+37, -2097152.0, -3.2451855365842673e+32,
            -281474976710656.0, -2.1267647932558654e+37, -2.305843009213694e+18,
            -9.44473296573929e+21, -7.737125245533627e+25, -4.253529586511731e+37,
            -562949953421312.0, -2.4758800785707605e+27, -32768.0, -1099511627776.0, -536870912.0,
            -4.153837486827862e+34, -17179869184.0, -1.0141204801825835e+31, -16777216.0,
            -5.192296858534828e+33, -8796093022208.0, -562949953421312.0, -7.555786372591432e+22,
            -17592186044416.0, -33554432.0, -17592186044416.0, -8.307674973655724e+34,
            -1125899906842624.0, -268435456.0, -65536.0, -8.307674973655724e+34,
            -2.305843009213694e+18, -35184372088832.0, -1048576.0, -256.0, -8796093022208.0,
            -1.9807040628566084e+28, -5.316911983139664e+36, -2.596148429267414e+33,
            -1.1805916207174113e+21, -268435456.0, -3.602879701896397e+16, -1.7014118346046923e+38,
            -33554432.0, -2.535301200456459e+30, -1.8014398509481984e+16, -1099511627776.0, -2048.0,
            -5.070602400912918e+30, -1.8446744073709552e+19, -4503599627370496.0,
            -3.6893488147419103e+19, -1.2379400392853803e+27, -7.205759403792794e+16, -262144.0,
            -1.2379400392853803e+27, -536870912.0, -256.0, -2048.0, -68719476736.0,
            -3.4028234663852886e+38, -281474976710656.0, -281474976710656.0, -1.298074214633707e+33,
            -1.2089258196146292e+24, -2.658455991569832e+36, -1024.0, -17592186044416.0,
            -33554432.0, -4.253529586511731e+37, -274877906944.0, -2.3611832414348226e+21,
            -1.8014398509481984e+16, -1.4757395258967641e+20, -2.596148429267414e+33,
            -7.555786372591432e+22, -68719476736.0, -4194304.0, -7.922816251426434e+28, -524288.0,
            -256.0, -549755813888.0, -268435456.0, -65536.0, -70368744177664.0,
            -3.022314549036573e+23, -6.044629098073146e+23, -1.4757395258967641e+20, -4194304.0,
            -512.0, -1.6225927682921336e+32, -17592186044416.0, -65536.0, -281474976710656.0,
            -1.8446744073709552e+19, -1.2676506002282294e+30, -4.951760157141521e+27,
            -3.4028234663852886e+38, -1.2676506002282294e+30, -8589934592.0, -1048576.0, -512.0,
            -17179869184.0, -1.0141204801825835e+31, -1.5111572745182865e+23,
            -4.056481920730334e+31, -4.835703278458517e+24, -9.44473296573929e+21, -65536.0,
            -131072.0, -32768.0, -8.112963841460668e+31, -3.961408125713217e+28,
            -6.338253001141147e+29, -8589934592.0, -9.903520314283042e+27, -5.764607523034235e+17,
            -1.5845632502852868e+29, -4.153837486827862e+34, -268435456.0, -6.338253001141147e+29,
            -4.951760157141521e+27, -4.253529586511731e+37, -5.316911983139664e+36, -262144.0,
            -536870912.0, -256.0, -6.64613997892458e+35],
            torch.float32,
        ),
        topk=1,
        scoring="sigmoid",
        num_expert_group=2,
        topk_group=1,
        renormalize=False,
        routed_scaling_factor=1.0,
        apply_routed_scaling_factor_on_output=False,
        num_fused_shared_experts=0,
    )


def call(args):
    """Return the outputs of one call."""
    # No right result holds -7.
    outputs = {n: torch.full(shape, -7, dtype=dtype, device=DEVICE) for n, (shape, dtype) in OUTPUTS.items()}
    made = run(args, outputs)
    torch.zeros(1, device=DEVICE)  # a failed launch that nobody checked comes out of the next one
    torch.cuda.synchronize()
    return outputs if made is None else made


def finish(wrong):
    print("WRONG" if wrong else "right")
    sys.exit(1 if wrong else 0)


expected = {
    "weights": [[0.5]],
    "indices": [[34]],
}
result = call(arguments())
actual = {name: value.tolist() for name, value in result.items()}
wrong = actual["indices"] != expected["indices"]
for name, value in expected.items():
    print(f"{name}\n  expected {value}\n  actual   {actual[name]}")
finish(wrong)
