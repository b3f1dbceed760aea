"""The compiler and its cache. Only the last tests need NVRTC; none needs a GPU."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from moeproof.kernels import align_block_size, compiler, fused_gate, prebuild

KERNEL = "template <int N> __global__ void scale(float* x) { x[threadIdx.x] *= N; }"
SAMPLE = [
    ("fused_gate.cu", "fused_gate<0, 0, true, true, 16, 16, false>"),
    ("fused_gate_generic.cu", "fused_gate_generic<8, true>"),
    ("align_block_size.cu", "place_ids<8, true>"),
]
ARCHS = ("sm_80", "sm_90", "sm_100", "sm_120")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Replace NVRTC by a counter of compilations, and point the cache at an empty folder."""
    calls: list[str] = []

    def fake(source: str, names: tuple[str, ...], arch: str) -> compiler.Cubin:
        calls.append(arch)
        return compiler.Cubin(f"{source} for {arch}".encode(), {name: f"_{name}" for name in names})

    monkeypatch.setattr(compiler, "_compile", fake)
    monkeypatch.setattr(compiler, "nvrtc_version", lambda: (13, 0))
    monkeypatch.setenv("MOEPROOF_CACHE_DIR", str(tmp_path / "cache"))
    return calls


def entry() -> Path:
    (file,) = compiler.cache_dir().iterdir()
    return file


def test_second_compilation_comes_from_the_cache(built: list[str]) -> None:
    first = compiler.compile_cubin(KERNEL, ["scale<2>"])
    assert compiler.compile_cubin(KERNEL, ["scale<2>"]) == first
    assert built == ["sm_90"]


@pytest.mark.parametrize(
    "change",
    [
        {"source": KERNEL + "\n"},
        {"name_expressions": ["scale<3>"]},
        {"name_expressions": ["scale<2>", "scale<3>"]},
        {"arch": "sm_80"},
    ],
)
def test_any_changed_input_is_compiled_anew(built: list[str], change: dict[str, str]) -> None:
    compiler.compile_cubin(KERNEL, ["scale<2>"])
    compiler.compile_cubin(**{"source": KERNEL, "name_expressions": ["scale<2>"], **change})
    assert len(built) == 2


def test_another_nvrtc_is_compiled_anew(built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.compile_cubin(KERNEL, ["scale<2>"])
    monkeypatch.setattr(compiler, "nvrtc_version", lambda: (13, 1))
    compiler.compile_cubin(KERNEL, ["scale<2>"])
    assert len(built) == 2


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "foreign"])
def test_corrupt_entry_is_rebuilt(built: list[str], damage: str) -> None:
    good = compiler.compile_cubin(KERNEL, ["scale<2>"])
    file = entry()
    data = file.read_bytes()
    contents = {
        "empty": b"",
        "truncated": data[:-1],
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "foreign": b"\x7fELF" + data,
    }
    file.write_bytes(contents[damage])
    assert compiler.compile_cubin(KERNEL, ["scale<2>"]) == good
    assert len(built) == 2
    assert file.read_bytes() == data


def test_entry_under_another_key_is_rebuilt(built: list[str]) -> None:
    compiler.compile_cubin(KERNEL, ["scale<2>"])
    file = entry()
    compiler.compile_cubin(KERNEL, ["scale<3>"])
    (other,) = set(compiler.cache_dir().iterdir()) - {file}
    shutil.copy(other, file)
    assert list(compiler.compile_cubin(KERNEL, ["scale<2>"]).symbols) == ["scale<2>"]
    assert len(built) == 3


def test_unwritable_cache_costs_only_the_cache(
    built: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    monkeypatch.setenv("MOEPROOF_CACHE_DIR", str(tmp_path / "file" / "cache"))
    assert compiler.compile_cubin(KERNEL, ["scale<2>"]) == compiler.compile_cubin(KERNEL, ["scale<2>"])
    assert len(built) == 2


def test_failed_write_leaves_no_file(built: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, target: str) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    compiler.compile_cubin(KERNEL, ["scale<2>"])
    assert list(compiler.cache_dir().iterdir()) == []


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOEPROOF_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert compiler.cache_dir() == Path("/home/someone/.cache/moeproof")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert compiler.cache_dir() == Path("/caches/moeproof")
    monkeypatch.setenv("MOEPROOF_CACHE_DIR", "/mine")
    assert compiler.cache_dir() == Path("/mine")


def test_sources_need_no_include_path() -> None:
    for name in {file for file, _ in prebuild.reachable()}:
        assert "#include" not in compiler.load_source(name)


def test_sample_is_reachable() -> None:
    assert set(SAMPLE) <= set(prebuild.reachable())


@pytest.fixture
def nvrtc() -> None:
    try:
        compiler.nvrtc_version()
    except compiler.CompileError as error:
        pytest.skip(str(error).splitlines()[0])


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize("arch", ARCHS)
def test_kernels_compile_for(arch: str) -> None:
    for file, name in SAMPLE:
        cubin = compiler._compile(compiler.load_source(file), (name,), arch)
        assert cubin.code.startswith(b"\x7fELF")
        assert cubin.symbols[name].encode() in cubin.code


@pytest.mark.usefixtures("nvrtc")
def test_prebuilt_kernels_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOEPROOF_CACHE_DIR", str(tmp_path))
    assert prebuild.prebuild("sm_90", jobs=1, wanted=SAMPLE[:1]) == 1
    monkeypatch.setattr(compiler, "_compile", None)
    file, name = SAMPLE[0]
    assert compiler.compile_cubin(compiler.load_source(file), (name,), "sm_90").symbols.keys() == {name}


def test_prebuild_command_reports_what_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(arch: str, *, jobs: int | None) -> int:
        if arch == "sm_1":
            raise compiler.CompileError("no such architecture")
        return 7

    monkeypatch.setattr(prebuild, "prebuild", refuse)
    assert prebuild.main(["sm_90"]) == 0
    assert prebuild.main(["sm_90", "sm_1"]) == 1
    output = capsys.readouterr()
    assert output.out == "sm_90: 7 kernels\n" * 2
    assert output.err == "no such architecture\n"


@pytest.mark.usefixtures("nvrtc")
@pytest.mark.parametrize(
    ("file", "struct_name", "size"),
    [
        ("fused_gate.cu", "GateParams", fused_gate._params.size),
        ("fused_gate_generic.cu", "GateParams", fused_gate._params.size),
        ("align_block_size.cu", "AlignParams", align_block_size._params.size),
    ],
)
def test_parameter_structs_have_the_packed_size(file: str, struct_name: str, size: int) -> None:
    check = f'static_assert(sizeof({struct_name}) == {size}, "");'
    source = f"{compiler.load_source(file)}\n{check}\n__global__ void none() {{}}\n"
    compiler._compile(source, ("none",), "sm_90")


@pytest.mark.usefixtures("nvrtc")
def test_refused_source_names_kernel_and_reason() -> None:
    with pytest.raises(compiler.CompileError, match=r"scale<2> for sm_90(.|\n)*undefined_name"):
        compiler.compile_cubin(KERNEL.replace("N;", "undefined_name;"), ["scale<2>"])
