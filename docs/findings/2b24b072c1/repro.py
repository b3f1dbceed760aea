#!/usr/bin/env python3
"""sglang:fused_gate@kimi_k2: a row's result depends on other rows (T=513, E=256, k=8, sigmoid, float32, bias)

Rule: A row's result depends on other rows.
Seen: row 0: indices are [96, 130, 71, 196, 126, 17, 69, 254] in a batch of 513 rows and [130, 96,
    71, 196, 126, 17, 69, 254] in one of 512 (enlarged)
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
    "weights": ((513, 8), torch.float32),
    "indices": ((513, 8), torch.int32),
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


import contextlib
import sys
import tempfile
import zipfile

# tvm-ffi calls the ninja that pip puts beside the interpreter.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), os.path.dirname(sys.executable)])
cache = pathlib.Path(os.environ.get("TVM_FFI_CACHE_DIR", "~/.cache/tvm-ffi")).expanduser()
bare = pathlib.Path(os.environ.get("MOEPROOF_LIBRARIES", os.devnull))
for wheel in sorted(bare.glob("apache_tvm_ffi-*.whl")):
    if not (cache / wheel.stem).is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as fresh:
            zipfile.ZipFile(wheel).extractall(pathlib.Path(fresh, "wheel"))
            with contextlib.suppress(OSError):  # another process was first
                pathlib.Path(fresh, "wheel").rename(cache / wheel.stem)
    sys.path.insert(0, str(cache / wheel.stem))

import tvm_ffi.cpp  # noqa: E402


def compile_cuda(name, source, includes, flags):
    """Compile CUDA source to a module for this GPU; tvm-ffi caches it under the user's cache folder."""
    major, minor = torch.cuda.get_device_capability()
    os.environ["TVM_FFI_CUDA_ARCH_LIST"] = f"{major}.{minor}{'a' if major >= 9 else ''}"
    return tvm_ffi.cpp.load_inline(
        f"{name}_sm{major}{minor}",
        cuda_sources=source,
        extra_include_paths=[str(path) for path in includes],
        extra_cuda_cflags=flags,
    )


jit = package("sglang") / "kernels" / "jit"
major, minor = torch.cuda.get_device_capability()
flags = [f"-DSGL_CUDA_ARCH={major * 100 + minor * 10}", "-std=c++20", "-O3", "--expt-relaxed-constexpr"]
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
        logits=tensor(
            [[0.10205078125, 0.1015625, 0.1005859375, 0.1015625, 0.10107421875, 0.103515625,
            0.103515625, 0.10107421875, 0.10302734375, 0.10107421875, 0.10205078125, 0.10107421875,
            0.10107421875, 0.1005859375, 0.10205078125, 0.10009765625, 0.1005859375, 0.1025390625,
            0.10302734375, 0.10009765625, 0.103515625, 0.1015625, 0.1025390625, 0.1005859375,
            0.10009765625, 0.10302734375, 0.103515625, 0.10302734375, 0.103515625, 0.1005859375,
            0.10107421875, 0.10009765625, 0.1005859375, 0.1025390625, 0.10107421875, 0.1005859375,
            0.1025390625, 0.1005859375, 0.103515625, 0.10205078125, 0.1005859375, 0.1015625,
            0.1015625, 0.10107421875, 0.1025390625, 0.10107421875, 0.1015625, 0.10107421875,
            0.103515625, 0.1005859375, 0.1015625, 0.10302734375, 0.1025390625, 0.10302734375,
            0.1015625, 0.10009765625, 0.10107421875, 0.1015625, 0.1025390625, 0.10302734375,
            0.1015625, 0.1005859375, 0.10205078125, 0.10302734375, 0.103515625, 0.1005859375,
            0.10107421875, 0.10107421875, 0.1025390625, 0.1025390625, 0.10302734375, 0.1025390625,
            0.10009765625, 0.1005859375, 0.10302734375, 0.103515625, 0.1015625, 0.1005859375,
            0.10205078125, 0.10302734375, 0.10107421875, 0.1005859375, 0.1015625, 0.1025390625,
            0.1005859375, 0.10205078125, 0.10107421875, 0.1015625, 0.1015625, 0.1025390625,
            0.10107421875, 0.10107421875, 0.10107421875, 0.10009765625, 0.1005859375, 0.10107421875,
            0.1015625, 0.103515625, 0.10302734375, 0.103515625, 0.1025390625, 0.1025390625,
            0.10107421875, 0.10205078125, 0.10009765625, 0.103515625, 0.103515625, 0.1025390625,
            0.1015625, 0.10205078125, 0.103515625, 0.1005859375, 0.1025390625, 0.103515625,
            0.10205078125, 0.10205078125, 0.10107421875, 0.103515625, 0.10107421875, 0.10302734375,
            0.1025390625, 0.1005859375, 0.10302734375, 0.10107421875, 0.1005859375, 0.10205078125,
            0.10107421875, 0.1005859375, 0.1005859375, 0.1025390625, 0.1015625, 0.10107421875,
            0.10009765625, 0.10205078125, 0.103515625, 0.10009765625, 0.10205078125, 0.10009765625,
            0.10107421875, 0.10302734375, 0.10205078125, 0.10205078125, 0.10302734375, 0.103515625,
            0.1025390625, 0.10205078125, 0.10009765625, 0.1005859375, 0.10107421875, 0.10009765625,
            0.10009765625, 0.10302734375, 0.10302734375, 0.1005859375, 0.1025390625, 0.1005859375,
            0.10302734375, 0.1025390625, 0.10302734375, 0.10302734375, 0.103515625, 0.10205078125,
            0.103515625, 0.103515625, 0.10205078125, 0.1025390625, 0.10205078125, 0.10302734375,
            0.1015625, 0.103515625, 0.10302734375, 0.1015625, 0.10107421875, 0.1015625,
            0.10009765625, 0.1025390625, 0.1005859375, 0.10302734375, 0.103515625, 0.10107421875,
            0.10009765625, 0.10107421875, 0.1015625, 0.1015625, 0.10009765625, 0.1025390625,
            0.10205078125, 0.10009765625, 0.10302734375, 0.103515625, 0.103515625, 0.1005859375,
            0.10205078125, 0.10107421875, 0.103515625, 0.1025390625, 0.103515625, 0.103515625,
            0.10205078125, 0.10205078125, 0.103515625, 0.1025390625, 0.1015625, 0.103515625,
            0.10302734375, 0.1025390625, 0.103515625, 0.10107421875, 0.103515625, 0.10302734375,
            0.1005859375, 0.10302734375, 0.1015625, 0.10205078125, 0.10302734375, 0.10107421875,
            0.10107421875, 0.10107421875, 0.10302734375, 0.103515625, 0.1005859375, 0.1005859375,
            0.10302734375, 0.1025390625, 0.10009765625, 0.1025390625, 0.1015625, 0.10205078125,
            0.10205078125, 0.1015625, 0.10302734375, 0.103515625, 0.1025390625, 0.10302734375,
            0.10107421875, 0.10205078125, 0.1015625, 0.1025390625, 0.1025390625, 0.1025390625,
            0.1005859375, 0.10107421875, 0.1025390625, 0.10205078125, 0.10009765625, 0.1015625,
            0.103515625, 0.10302734375, 0.10107421875, 0.1005859375, 0.10205078125, 0.10107421875,
            0.10302734375, 0.1015625, 0.1025390625, 0.1025390625]] * 513,
            torch.float32,
        ),
        bias=tensor(
            [0.08984375, 0.19140625, 0.036865234375, 0.1298828125, -0.1455078125, 0.12353515625,
            -0.19140625, -0.06396484375, 0.193359375, 0.1552734375, 0.00775146484375, 0.10107421875,
            0.034912109375, 0.01470947265625, 0.013916015625, 0.0002765655517578125,
            -0.052001953125, 0.2373046875, 0.056396484375, 0.17578125, 0.031982421875,
            -0.09619140625, -0.0703125, -0.1669921875, -0.2392578125, 0.1318359375, 0.1494140625,
            -0.01544189453125, -0.13671875, 0.0986328125, 0.1494140625, 0.034912109375, -0.23046875,
            0.02587890625, -0.236328125, -0.07275390625, 0.0556640625, 0.06884765625, 0.119140625,
            -0.03515625, -0.091796875, -0.09033203125, 0.0537109375, 0.09716796875, -0.031494140625,
            0.049072265625, -0.0286865234375, 0.1796875, 0.2021484375, 0.060791015625,
            -0.00180816650390625, -0.28125, -0.0091552734375, -0.037841796875, -0.03662109375,
            -0.06982421875, -0.07275390625, 0.10205078125, 0.1494140625, -0.00026702880859375,
            -0.10498046875, -0.0086669921875, -0.018310546875, -0.1943359375, -0.080078125,
            -0.17578125, 0.1357421875, 0.06884765625, -0.1640625, 0.22265625, -0.0595703125,
            0.251953125, 0.1337890625, 0.0732421875, 0.12158203125, -0.1435546875, -0.2080078125,
            0.08203125, 0.16015625, -0.07421875, 0.115234375, 0.04833984375, -0.044189453125,
            -0.20703125, -0.0947265625, 0.12890625, 0.1513671875, -0.01953125, 0.1767578125,
            0.05810546875, 0.0303955078125, 0.042724609375, -0.018798828125, -0.09375,
            -0.1884765625, 0.1474609375, 0.302734375, -0.126953125, -0.1943359375, 0.01043701171875,
            0.1376953125, 0.00051116943359375, -0.166015625, 0.1767578125, -0.00153350830078125,
            0.1943359375, 0.08935546875, -0.043212890625, -0.0284423828125, 0.1904296875, 0.078125,
            -0.08349609375, -0.049560546875, -0.029052734375, -0.1533203125, -0.040771484375,
            0.12060546875, -0.0213623046875, -0.09228515625, -0.248046875, 0.045166015625,
            0.06982421875, -0.205078125, 0.04931640625, 0.1357421875, -0.07421875, 0.2392578125,
            0.05517578125, 0.1875, -0.0947265625, 0.302734375, 0.1474609375, 0.0018768310546875,
            0.1240234375, -0.2333984375, 0.0142822265625, 0.01708984375, 0.07275390625,
            -0.061279296875, -0.271484375, -0.142578125, 0.138671875, 0.1630859375, 0.10107421875,
            -0.041259765625, 0.189453125, -0.12451171875, 0.0216064453125, -0.142578125,
            0.1943359375, -0.1552734375, -0.01806640625, -0.00286865234375, 0.04052734375,
            -0.12255859375, -0.00994873046875, -0.10302734375, -0.01336669921875, 0.00946044921875,
            -0.26953125, -0.07763671875, -0.0283203125, 0.01507568359375, -0.054931640625,
            -0.2275390625, 0.12255859375, -0.0888671875, -0.123046875, -0.07666015625,
            4.839897155761719e-05, -0.0859375, 0.1474609375, 0.0908203125, -0.12890625, -0.0625,
            0.16796875, 0.00138092041015625, -0.16796875, -0.1396484375, -0.1708984375,
            0.06494140625, -0.14453125, 0.003753662109375, -0.1552734375, -0.158203125,
            -0.06298828125, 0.1796875, -0.0791015625, -0.1416015625, -0.06298828125, 0.12451171875,
            -0.2138671875, 0.051025390625, 0.017822265625, -0.0419921875, -0.006103515625, 0.25,
            -0.26953125, -0.04443359375, 0.0380859375, -0.0966796875, 0.11572265625, 0.1376953125,
            0.0081787109375, -0.1318359375, -0.016845703125, -0.109375, 0.1416015625,
            -0.01043701171875, -0.115234375, -0.103515625, 0.040771484375, 0.11181640625,
            -0.0023040771484375, 0.12890625, -0.03955078125, -0.036376953125, 0.052490234375,
            -0.00579833984375, -0.1474609375, -0.0174560546875, 0.1982421875, 0.1669921875,
            -0.046142578125, -0.007110595703125, 0.1953125, -0.208984375, -0.04052734375,
            -0.236328125, -0.2265625, 0.03369140625, -0.0142822265625, 0.00274658203125,
            0.062255859375, -0.10498046875, 0.11572265625, -0.1962890625, -0.2275390625,
            0.04931640625, -0.00023651123046875, -0.30859375, 0.1884765625, 0.1767578125,
            0.09765625, -0.0791015625, -0.014404296875, 0.02880859375, -0.0478515625, 0.10546875,
            -0.0009765625, -0.1103515625, -0.0189208984375, -0.046875, -0.0301513671875, 0.203125,
            0.16015625],
            torch.float32,
        ),
        topk=8,
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


args = arguments()
first, tokens = call(args), len(args["logits"])


def batch(rows):
    """Return the arguments for these rows of the first call; -1 is a row of NaN."""
    index, other = torch.tensor(rows, dtype=torch.long, device=DEVICE), dict(args)
    other["logits"] = args["logits"][index.clamp(min=0)]
    other["logits"][index < 0] = float("nan")
    return other


def differs(what, args, rows):
    """Say whether rows of another call, which are these rows of the first one, give other bits."""
    found = False
    for name, (shape, dtype) in OUTPUTS.items():
        OUTPUTS[name] = ((len(rows), *shape[1:]), dtype)
    result = call(args)
    for at, row in enumerate(rows):
        for name in OUTPUTS:
            one, two = first[name][row], result[name][at]
            same = torch.equal(one.contiguous().view(torch.uint8), two.contiguous().view(torch.uint8))
            if row >= 0 and not same:
                print(f"{what}: row {row}: {name}\n  at first {one.tolist()}\n  now      {two.tolist()}")
                found = True
    return found


wrong = False
for what, rows in (
    ("enlarged", [row % tokens for row in range(512)]),
):
    wrong |= differs(what, batch(rows), rows)
finish(wrong)
