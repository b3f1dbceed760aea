#!/usr/bin/env python3
"""vllm:moe_align_block_size: blocks, padding or counts break the contract of moe_align_block_size (T=1, k=1, E=991, block 1, int64)

Rule: Each id's index appears once, in a block of its expert; experts ascend; blocks are padded.
Seen: num_tokens_post_pad[0] is 1, expected 0; 1 of 1 places differ
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
    "sorted_token_ids": ((1,), torch.int32),
    "expert_ids": ((1,), torch.int32),
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
        topk_ids=tensor([[4294968286]], torch.int64),
        num_experts=991,
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


expected = {
    "sorted_token_ids": [1],
    "expert_ids": [-1],
    "num_tokens_post_pad": [0],
}


def groups(result):
    """Return the places of each expert, sorted: their order is free."""
    places = {}
    for at, index in enumerate(result["sorted_token_ids"]):
        places.setdefault(result["expert_ids"][at // 1], []).append(index)
    return {expert: sorted(indices) for expert, indices in places.items()}


result = call(arguments())
actual = {name: value.tolist() for name, value in result.items()}
wrong = any(actual[name] != expected[name] for name in ("expert_ids", "num_tokens_post_pad"))
wrong = wrong or groups(actual) != groups(expected)
for name, value in expected.items():
    print(f"{name}\n  expected {value}\n  actual   {actual[name]}")
finish(wrong)
