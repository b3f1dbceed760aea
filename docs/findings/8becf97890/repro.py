#!/usr/bin/env python3
"""flashinfer:fused_gate@no_aux_tc: an expert is chosen, or placed, before one with a certainly higher score (T=1, E=2, k=1, sigmoid, float32, bias)

Rule: The chosen experts are those with the highest scores, best first.
Seen: row 0: experts [0], expected [1]: place 0 holds expert 0 (score -3.75875186) where expert 1
    (score -3.75875098) belongs
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
        logits=tensor([[-1.5516929626464844, -0.7209377288818359]], torch.float32),
        bias=tensor([-3.93359375, -4.0859375], torch.float32),
        topk=1,
        scoring="sigmoid",
        num_expert_group=1,
        topk_group=1,
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
    "weights": [[1.0]],
    "indices": [[1]],
}
result = call(arguments())
actual = {name: value.tolist() for name, value in result.items()}
wrong = actual["indices"] != expected["indices"]
for name, value in expected.items():
    print(f"{name}\n  expected {value}\n  actual   {actual[name]}")
finish(wrong)
