#!/usr/bin/env python3
"""sglang:fused_gate@triton: an expert is chosen, or placed, before one with a certainly higher score (T=1, E=8, k=1, sigmoid, 4 groups, 1 kept, float32, bias)

Rule: The chosen experts are those with the highest scores, best first.
Seen: row 0: experts [5], expected [0]: place 0 holds expert 5 (score 1.5) where expert 0 (score
    1.5) belongs
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
        logits=tensor([[0.0] * 8], torch.float32),
        bias=tensor([1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0], torch.float32),
        topk=1,
        scoring="sigmoid",
        num_expert_group=4,
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
    "indices": [[0]],
}
result = call(arguments())
actual = {name: value.tolist() for name, value in result.items()}
wrong = actual["indices"] != expected["indices"]
for name, value in expected.items():
    print(f"{name}\n  expected {value}\n  actual   {actual[name]}")
finish(wrong)
