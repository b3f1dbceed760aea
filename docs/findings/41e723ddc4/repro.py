#!/usr/bin/env python3
"""vllm:moe_align_block_size: a launch fails, and its error comes out of a later call (T=0, k=1, E=65, block 1, int32)

Rule: Every launch succeeds, and no call leaves an error behind.
Seen: the launch failed, and the error came out of a later call; the process goes on:
    AcceleratorError: CUDA error: invalid argument
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
    "sorted_token_ids": ((0,), torch.int32),
    "expert_ids": ((0,), torch.int32),
    "num_tokens_post_pad": ((1,), torch.int32),
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


def arguments():
    return dict(
        topk_ids=torch.empty((0, 1), dtype=torch.int32, device=DEVICE),
        num_experts=65,
        block_size=1,
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
    call(arguments())
except RuntimeError as error:
    print(f"{type(error).__name__}: {str(error).splitlines()[0]}")
    torch.zeros(1, device=DEVICE)
    torch.cuda.synchronize()
    print("the launch failed and nobody said so; now that its error has come out, calls work again")
    finish(True)
finish(False)
