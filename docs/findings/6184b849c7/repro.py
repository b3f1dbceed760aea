#!/usr/bin/env python3
"""sglang-kernel:fused_gate@topk_sigmoid: it refuses what it claims to support, or accepts what it claims to refuse (T=0, E=3, k=1, sigmoid, float32)

Rule: It refuses what it claims to support, or accepts what it claims to refuse.
Seen: raises inside its claimed domain: RuntimeError: sigmoid_workspace must be provided for
    num_experts that are not a power of 2.
With: sglang-kernel bare files, expected 0.4.3 on cuda: NVIDIA H100 80GB HBM3.
Exit status: 0 right, 1 wrong.
"""

import importlib.util
import os
import pathlib
import sys

import torch

DEVICE = "cuda"
OUTPUTS = {
    "weights": ((0, 1), torch.float32),
    "indices": ((0, 1), torch.int32),
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


build = "sm90" if torch.cuda.get_device_capability() == (9, 0) else "sm100"
binaries = sorted(package("sgl_kernel").glob(f"{build}/common_ops.*"))
if not binaries:
    raise ImportError(f"this GPU needs sgl_kernel/{build}/common_ops.*, which {package('sgl_kernel')} lacks")
torch.ops.load_library(str(binaries[0]))


def run(args, outputs):
    torch.ops.sgl_kernel.topk_sigmoid(
        outputs["weights"],
        outputs["indices"],
        args["logits"],
        args.get("renormalize", True),
        args.get("bias"),
    )


def arguments():
    return dict(
        logits=torch.empty((0, 3), dtype=torch.float32, device=DEVICE),
        topk=1,
        scoring="sigmoid",
        num_expert_group=1,
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


try:
    outputs = call(arguments())
except Exception as error:
    print(f"{type(error).__name__}: {error}")
    finish(True)
for name, value in outputs.items():
    print(f"{name}\n  {value.tolist()}")
finish(False)
