#!/usr/bin/env python3
"""flashinfer:fused_gate@no_aux_tc: two runs on the same input differ, though the subject promises they don't (T=662, E=128, k=8, sigmoid, 16 groups, 11 kept, float32, bias)

Rule: Two runs on the same input differ, though the subject promises they don't.
Seen: weights[568][0] is 0.0 in one run and -0.0 in the next
With: flashinfer bare files, expected 0.7.2.post1 on cuda: NVIDIA H100 80GB HBM3.
Exit status: 0 right, 1 wrong.
"""

import importlib.util
import os
import pathlib
import sys

import torch

DEVICE = "cuda"
OUTPUTS = {
    "weights": ((662, 8), torch.float32),
    "indices": ((662, 8), torch.int32),
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


def build(*flags):
    data = package("flashinfer") / "data"
    internal = data / "csrc" / "nv_internal"
    common = [f"cpp/common/{name}.cpp" for name in ("envUtils", "logger", "stringUtils", "tllmException")]
    files = [data / "csrc/fused_moe/noAuxTcKernels.cu", *(internal / file for file in common)]
    return compile_cuda(
        "flashinfer_no_aux_tc",
        "\n".join(f'#include "{file}"' for file in files),
        [data / "include", data / "csrc", internal, internal / "include"],
        ["-std=c++17", "-O3", "-DNDEBUG", "-DENABLE_BF16", *flags],
    ).NoAuxTc


if (package("flashinfer") / "fused_moe").is_dir():
    from flashinfer.fused_moe import fused_topk_deepseek as route
else:
    route = build("-use_fast_math")


def run(args, outputs):
    # It multiplies by the factor it gets, always: 1 where that isn't for the output.
    on_output = args.get("apply_routed_scaling_factor_on_output", False)
    route(
        args["logits"],
        args["bias"],
        args.get("num_expert_group", 1),
        args.get("topk_group", 1),
        args["topk"],
        args.get("routed_scaling_factor", 1.0) if on_output else 1.0,
        outputs["weights"],
        outputs["indices"],
        True,
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
        logits=tensor(
            [[-1.446554183959961, -1.6366281509399414, -1.3026952743530273, 1.0, 1.0,
            -1.1333017349243164, -1.1973991394042969, -1.4609155654907227, 0.0, 0.0,
            -1.8419322967529297, -1.4700384140014648, -1.8190670013427734, -1.5516033172607422,
            -1.8457098007202148, -1.858595848083496, -1.5092878341674805, -1.371912956237793, 0.0,
            0.0, -1.2009916305541992, -1.1727962493896484, -1.4768552780151367, -1.9462690353393555,
            -1.5646724700927734, -1.9106645584106445, -1.3667192459106445, 0.5, 0.5,
            -1.046783447265625, -1.8387517929077148, -1.0445079803466797, 1.0, -1.0164556503295898,
            -1.228963851928711, -1.3100357055664062, -1.4376564025878906, -1.8332319259643555,
            -1.783848762512207, 1.0, -1.9469261169433594, -1.315800666809082, -1.3763093948364258,
            -1.1443090438842773, -1.6539783477783203, 0.0, 0.0, -1.711019515991211,
            -1.9137983322143555, -1.1863107681274414, -1.412984848022461, 0.0, 0.0,
            -1.289163589477539, -1.8331012725830078, -1.6269569396972656, -1.317922592163086,
            -1.8498868942260742, -1.2115116119384766, -1.0917253494262695, -1.3556756973266602,
            -1.0556230545043945, 1.0, 1.0, -1.7861042022705078, 0.5, 0.5, -1.3759260177612305,
            -1.1764812469482422, -1.8071975708007812, -1.7084121704101562, -1.7936162948608398, 0.5,
            -1.4314651489257812, -1.2530155181884766, -1.6760082244873047, -1.3182907104492188,
            -1.3717803955078125, -1.3345861434936523, 0.5, 1.0, 1.0, -1.1657466888427734,
            -1.3068876266479492, -1.540353775024414, -1.627676010131836, -1.5419063568115234,
            -1.2537193298339844, -1.4291143417358398, -1.0883731842041016, 0.5, 0.5,
            -1.146162986755371, -1.9731063842773438, -1.4564332962036133, -1.3608884811401367,
            -1.3926429748535156, -1.6723833084106445, -1.449167251586914, -1.5385818481445312,
            -1.6655282974243164, 0.5, 0.5, -1.0426206588745117, -1.9064064025878906,
            -1.0021657943725586, -1.5307865142822266, -1.0552473068237305, -1.0979576110839844, 0.0,
            0.0, -1.8355035781860352, 0.5, 0.5, -1.2701492309570312, -1.79931640625,
            -1.369786262512207, -1.1437969207763672, -1.6373586654663086, -1.3950490951538086,
            -1.5515613555908203, -1.953688621520996, -1.519211769104004, -1.174478530883789,
            -1.5497722625732422, -1.2668037414550781, 1.0, 1.0]] * 662,
            torch.float32,
        ),
        bias=tensor(
            [-1.03125] * 8 + [-1.0625] * 8 + [-1.03125] * 8 + [-1.0625] * 8 + [-0.96875] * 8 +
            [-1.03125] * 8 + [-1.0625] * 8 + [-0.96875] * 16 + [-0.9375] * 8 + [-1.0] * 8 +
            [-1.03125] * 16 + [-1.0] * 8 + [-0.96875] * 16,
            torch.float32,
        ),
        topk=8,
        scoring="sigmoid",
        num_expert_group=16,
        topk_group=11,
        renormalize=True,
        routed_scaling_factor=16.0,
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




def data(value):
    return value.contiguous().view(torch.uint8)


first = call(arguments())
for attempt in range(1, 1001):
    other = call(arguments())
    for name in OUTPUTS:
        if not torch.equal(data(first[name]), data(other[name])):
            print(f"{name}\n  call 0 {first[name].tolist()}\n  call {attempt} {other[name].tolist()}")
            finish(True)
finish(False)
