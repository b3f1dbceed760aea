#!/usr/bin/env python3
"""sglang-kernel:moe_align_block_size@exact: memory outside the outputs is written, or memory outside the arguments read (T=1, k=1, E=64, block 1, int32)

Rule: Memory outside the outputs is written, or memory outside the arguments read.
Seen: sorted_token_ids (4 bytes): 12 bytes outside it were written, the first 0 bytes past its end
With: sglang-kernel bare files, expected 0.4.3 on cuda: NVIDIA H100 80GB HBM3.
Exit status: 0 right, 1 wrong.
"""

import importlib.util
import math
import os
import pathlib
import sys

import torch

DEVICE = "cuda"
FILL = 0xA5  # in every byte of an output before the call
ZONE = 4096  # bytes of guard before and after an output
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


build = "sm90" if torch.cuda.get_device_capability() == (9, 0) else "sm100"
binaries = sorted(package("sgl_kernel").glob(f"{build}/common_ops.*"))
if not binaries:
    raise ImportError(f"this GPU needs sgl_kernel/{build}/common_ops.*, which {package('sgl_kernel')} lacks")
torch.ops.load_library(str(binaries[0]))


def run(args, outputs):
    ids, experts, block = args["topk_ids"], args["num_experts"], args["block_size"]
    places = outputs["sorted_token_ids"]
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
        topk_ids=tensor([[0]], torch.int32),
        num_experts=64,
        block_size=1,
    )


def call(args):
    """Make one call with outputs that lie inside larger buffers, and return these buffers."""
    outputs, buffers = {}, {}
    for name, (shape, dtype) in OUTPUTS.items():
        size = math.prod(shape) * dtype.itemsize
        buffers[name] = torch.full((ZONE + size + ZONE,), FILL, dtype=torch.uint8, device=DEVICE)
        outputs[name] = buffers[name][ZONE : ZONE + size].view(dtype).view(shape)
    run(args, outputs)
    return buffers


def finish(wrong):
    print("WRONG" if wrong else "right")
    sys.exit(1 if wrong else 0)


wrong = False
for name, buffer in call(arguments()).items():
    size = len(buffer) - 2 * ZONE
    places = [at - ZONE for at in (buffer != FILL).nonzero().flatten().tolist()]
    outside = [at for at in places if not 0 <= at < size]
    if outside:
        print(f"{name} has {size} bytes; bytes written outside it, counted from its start: {outside[:16]}")
        wrong = True
finish(wrong)
