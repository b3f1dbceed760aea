"""Snippet text that compiles a library's CUDA sources with tvm-ffi."""

from __future__ import annotations

from .adapter import PACKAGE

COMPILE = (
    PACKAGE
    + '''\
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


'''
)
"""Starts a snippet that compiles: imports tvm-ffi (installed, or the wheel among bare files)."""
