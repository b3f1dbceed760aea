#!/usr/bin/env python3
"""vllm:fused_gate@topk_softmax_bias: the CUDA context is lost, or the process dies (T=1, E=16, k=1, softmax, bfloat16, bias, offset 4)

Rule: Every launch succeeds, and no call leaves an error behind.
Seen: AcceleratorError: CUDA error: misaligned address
With: vllm bare files, expected 0.33.0 on cuda: NVIDIA H100 80GB HBM3.
Exit status: 0 right, 1 wrong.
"""

import importlib.util
import os
import pathlib
import subprocess
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


torch.ops.load_library(str(package("vllm") / "_moe_C_stable_libtorch.abi3.so"))


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
        logits=tensor([[0.0] * 16], torch.bfloat16, offset=4),
        bias=tensor([0.0] * 16, torch.float32),
        topk=1,
        scoring="softmax",
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


RETURNED = 42  # the status of a process in which the call has returned
SECONDS = 60

if sys.argv[1:] == ["call"]:
    call(arguments())
    sys.exit(RETURNED)
try:
    status = subprocess.run([sys.executable, __file__, "call"], timeout=SECONDS).returncode
except subprocess.TimeoutExpired:
    print(f"no result within {SECONDS} s")
    finish(True)
print("the call has returned" if status == RETURNED else f"the process died with status {status}")
finish(status != RETURNED)
