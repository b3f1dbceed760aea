#!/usr/bin/env python3
"""sglang-kernel:fused_gate@moe_fused_gate: ids are out of range, repeated, or not what a shared or padded place holds (T=1, E=512, k=9, sigmoid, 64 groups, 7 kept, float32, bias)

Rule: Ids are distinct and in range; shared places hold E, E+1, ...; padded rows hold -1.
Seen: row 0: ids [0, 1, 2, 3, 4, 5, 6, 7, 0] repeat an expert; expected experts [0, 1, 2, 3, 4, 5,
    6, 7, 8]
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
    "weights": ((1, 9), torch.float32),
    "indices": ((1, 9), torch.int32),
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
        logits=tensor([[0.0] * 512], torch.float32),
        bias=tensor([0.0] * 512, torch.float32),
        topk=9,
        scoring="sigmoid",
        num_expert_group=64,
        topk_group=7,
        renormalize=True,
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
    "weights": [[0.1111111119389534] * 9],
    "indices": [[*range(0, 9)]],
}
result = call(arguments())
actual = {name: value.tolist() for name, value in result.items()}
wrong = actual["indices"] != expected["indices"]
for name, value in expected.items():
    print(f"{name}\n  expected {value}\n  actual   {actual[name]}")
finish(wrong)
