#!/usr/bin/env python3
"""vllm:fused_gate@topk_softplus_sqrt: ids are out of range, repeated, or not what a shared or padded place holds (T=1, E=2, k=2, sqrtsoftplus, float32, bias)

Rule: Ids are distinct and in range; shared places hold E, E+1, ...; padded rows hold -1.
Seen: row 0: ids [0, 0] repeat an expert; expected experts [0, 1]
With: vllm bare files, expected 0.33.0 on cuda: NVIDIA H100 80GB HBM3.
Exit status: 0 right, 1 wrong.
"""

import importlib.util
import os
import pathlib
import sys

import torch

DEVICE = "cuda"
OUTPUTS = {
    "weights": ((1, 2), torch.float32),
    "indices": ((1, 2), torch.int32),
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


torch.ops.load_library(str(package("vllm") / "_moe_C_stable_libtorch.abi3.so"))


def factor(args):
    on_output = args.get("apply_routed_scaling_factor_on_output", False)
    return args.get("routed_scaling_factor", 1.0) if on_output else 1.0


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
        logits=tensor([[0.0, 0.0]], torch.float32),
        bias=tensor([-3.32306998946229e+35, -3.32306998946229e+35], torch.float32),
        topk=2,
        scoring="sqrtsoftplus",
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


expected = {
    "weights": [[0.8325546383857727, 0.8325546383857727]],
    "indices": [[0, 1]],
}
result = call(arguments())
actual = {name: value.tolist() for name, value in result.items()}
wrong = actual["indices"] != expected["indices"]
for name, value in expected.items():
    print(f"{name}\n  expected {value}\n  actual   {actual[name]}")
finish(wrong)
