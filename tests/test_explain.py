"""`moeproof explain`: what it says is what a call launches."""

from __future__ import annotations

import itertools
import json
import struct
from types import SimpleNamespace

import pytest
import torch
import typer
from typer.testing import CliRunner

from moeproof.kernels import align_block_size, append_shared_experts, fused_gate, gate_plan, validate
from moeproof.kernels.compiler import CompileError, compile_cubin, load_source
from moeproof.verify.explain.command import explain as command
from moeproof.verify.explain.devices import DEVICES, Device, find_device
from moeproof.verify.explain.explanation import Launch, Query, explain
from moeproof.verify.explain.switches import nearest
from moeproof.verify.resources import Resources, measure, parse

app = typer.Typer()
app.command()(command)
H100 = DEVICES["h100"]


@pytest.fixture
def launched(monkeypatch) -> list[Launch]:
    """Note what the ops launch, called with CPU tensors, instead of launching it."""
    seen: list[Launch] = []

    def load_kernel(file: str, name: str, device: object, *rest: int) -> SimpleNamespace:
        def launch(grid: int, block: int, params: object, shared: int = 0, overlap: bool = False) -> None:
            seen.append(Launch(file, name, grid, block, shared))

        return SimpleNamespace(launch=launch)

    monkeypatch.setattr(validate, "on_cuda", lambda name, value: None)
    monkeypatch.setattr(align_block_size, "capability", lambda device: H100.capability)
    for module in (fused_gate, align_block_size):
        monkeypatch.setattr(module, "sm_count", lambda device: H100.multiprocessors)
        monkeypatch.setattr(module, "load_kernel", load_kernel)
    return seen


@pytest.mark.parametrize(
    ("tokens", "experts"), list(itertools.product((1, 2, 500, 529, 3000), (7, 60, 256, 257, 384, 1000, 1024, 2048)))
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gate_launches_what_is_explained(launched: list[Launch], tokens: int, experts: int, dtype: str):
    logits = torch.zeros(tokens, experts, dtype=getattr(torch, dtype))
    for biased, topk in ((False, 4), (True, 4), (True, 7)):
        fused_gate.fused_gate(logits, torch.zeros(experts) if biased else None, topk=topk)
        found = explain(Query("fused_gate", tokens, experts, topk, dtype, bias=biased), H100, compiled=False)
        assert launched == list(found.launches)
        launched.clear()


@pytest.mark.parametrize("change", [{"groups": 8}, {"unit_stride": False}, {"scoring": "softmax"}])
def test_groups_strides_and_scorings_are_explained(launched: list[Launch], change: dict):
    logits = torch.zeros(256, 600).t() if change.get("unit_stride") is False else torch.zeros(600, 256)
    groups = {"num_expert_group": 8, "topk_group": 4} if "groups" in change else {}
    fused_gate.fused_gate(logits, topk=8, scoring=change.get("scoring", "sigmoid"), **groups)
    alignment = 4 if "unit_stride" in change else 16
    query = Query("fused_gate", 600, 256, alignment=alignment, **change)
    assert launched == list(explain(query, H100, compiled=False).launches)


@pytest.mark.parametrize("tokens", [1, 64, 65, 1000, 20000])
@pytest.mark.parametrize("experts", [1, 64, 513, 1025, 4095])
def test_the_align_launches_what_is_explained(launched: list[Launch], tokens: int, experts: int):
    ids = torch.zeros(tokens, 8, dtype=torch.int32)
    align_block_size.moe_align_block_size(ids, experts, 64)
    found = explain(Query("moe_align_block_size", tokens, experts), H100, compiled=False)
    assert launched == list(found.launches)


def test_a_change_is_where_the_plan_changes_and_not_before():
    query = Query("fused_gate", 1, 384)
    found = explain(query, H100, compiled=False)
    assert found.changes
    for change in found.changes:
        at = {change.size: change.value}
        there = explain(Query(**{**vars(query), **at}), H100, compiled=False)
        assert there.launches[0].name in change.runs
        assert (there.launches[0].name, there.launches[0].block) != (found.launches[0].name, found.launches[0].block)
        vector = found.choice["vector"] if change.size == "experts" else 1
        nearer = change.value + vector * (1 if change.value < getattr(query, change.size) else -1)
        before = explain(Query(**{**vars(query), change.size: nearer}), H100, compiled=False)
        assert (before.launches[0].name, before.launches[0].block) == (
            found.launches[0].name,
            found.launches[0].block,
        )


def test_thresholds_and_constants_are_those_of_the_plan():
    found = explain(Query("fused_gate", 1, 256), H100, compiled=False)
    assert found.thresholds == gate_plan.THRESHOLDS
    assert found.constants["TEAMS"] == gate_plan.TEAMS
    assert "DTYPES" not in found.constants
    assert "kernels/gate_plan.py" in found.origin
    json.dumps(found.to_json())


def test_multiprocessors_move_the_threshold_of_tokens():
    def last(device: Device) -> int:
        changes = explain(Query("fused_gate", 1, 256), device, compiled=False).changes
        return next(c.value for c in changes if c.size == "tokens")

    assert last(Device("half", "sm_90", 66)) < last(H100)


@pytest.mark.parametrize("size", range(0, 40, 3))
@pytest.mark.parametrize("borders", [(5, 20, 33), (17, 18), ()])
def test_the_nearest_change_is_found_on_either_side(size: int, borders: tuple[int, ...]):
    def choose(n: int) -> int:
        return sum(n >= border for border in borders)

    above = next((n for n in range(size + 1, 41) if choose(n) != choose(size)), None)
    below = next((n for n in range(size - 1, -1, -1) if choose(n) != choose(size)), None)
    for end, want in ((40, above), (0, below)):
        found = nearest(choose, size, end)
        assert (found.size if found else None) == want
        if found:
            assert found.choice == choose(found.size)


def test_a_change_far_out_is_found_exactly():
    switch = nearest(lambda n: n >= 123457, 1, 1 << 22)
    assert switch is not None
    assert switch.size == 123457
    assert nearest(lambda n: n >= 1000, 1, 4096, step=8).size == 1001
    assert nearest(lambda n: n // 5000, 1, 4096) is None


def test_the_machine_code_that_is_measured_is_the_one_that_is_launched(tmp_path, monkeypatch):
    monkeypatch.setenv("MOEPROOF_CACHE_DIR", str(tmp_path))
    codes: list[bytes] = []
    from cuda.core import Program

    compiling = Program.compile

    class Spy:
        def __init__(self, *arguments: object) -> None:
            self._program = Program(*arguments)

        def compile(self, *arguments: object, **named: object):
            built = compiling(self._program, *arguments, **named)
            codes.append(bytes(built.code))
            return built

    monkeypatch.setattr("cuda.core.Program", Spy)
    found = measure("align_block_size.cu", "scan_tiles", "sm_90")
    launched = compile_cubin(load_source("align_block_size.cu"), ("scan_tiles",), "sm_90").code
    assert _machine_code(codes[0])
    assert _machine_code(codes[0]) == _machine_code(launched)
    assert 16 <= found.registers <= 64
    assert found.shared_bytes > 0
    assert not found.spills


def _machine_code(cubin: bytes) -> bytes:
    """Return the contents of an ELF file's sections that hold code."""
    (start,) = struct.unpack_from("<Q", cubin, 40)
    size, count, _ = struct.unpack_from("<3H", cubin, 58)
    headers = [struct.unpack_from("<2I4Q", cubin, start + i * size) for i in range(count)]
    executable = 4
    return b"".join(cubin[at : at + length] for _, _, flags, _, at, length in headers if flags & executable)


LOG = """\
ptxas info    : Compiling entry function '_Z3twov' for 'sm_90'
ptxas info    : Function properties for _Z3twov
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 29 registers, used 1 barriers, 400 bytes smem
ptxas info    : Compiling entry function '_Z3onev' for 'sm_90'
ptxas info    : Function properties for _Z3onev
ptxas         .     656 bytes stack frame, 408 bytes spill stores, 500 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 656 bytes cumulative stack size
ptxas info    : Function properties for _Z5helperv
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads
"""


def test_the_assemblers_log_is_read():
    assert parse(LOG, "_Z3onev", "sm_90") == Resources("sm_90", 32, 0, 656, 408, 500, 8)
    assert parse(LOG, "_Z3twov", "sm_90").shared_bytes == 400
    assert parse(LOG, "_Z3onev", "sm_90").spills
    assert not parse(LOG, "_Z3twov", "sm_90").spills


def test_a_log_without_the_kernel_is_an_error():
    with pytest.raises(CompileError, match="says nothing of _Z4nonev"):
        parse(LOG, "_Z4nonev", "sm_90")
    with pytest.raises(CompileError, match="NVRTC can't compile nobody"):
        measure("align_block_size.cu", "nobody", "sm_90")


def test_devices_are_found_by_name_or_number(monkeypatch):
    assert find_device("H100") == H100
    assert find_device("78").multiprocessors == 78
    assert [DEVICES[name].capability for name in ("l40s", "h100", "b200")] == [(8, 9), (9, 0), (10, 0)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device(None) == H100
    for wrong in ("h1000", "-3", "0"):
        with pytest.raises(ValueError, match=r"device is .*; allowed: a100, l40s"):
            find_device(wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("router",), "op is 'router'; allowed: fused_gate, moe_align"),
        (("fused_gate", "--experts", "4097"), "experts is 4097; allowed: 1 to 4096"),
        (("fused_gate", "--tokens", "0"), "tokens is 0; allowed: at least 1"),
        (("fused_gate", "--topk", "33"), "topk is 33; allowed: 1 to 32"),
        (("fused_gate", "--groups", "7"), "groups is 7; allowed: a divisor of 256"),
        (("fused_gate", "--dtype", "int8"), "dtype is 'int8'; allowed: float32"),
        (("fused_gate", "--scoring", "tanh"), "scoring is 'tanh'; allowed: sigmoid"),
        (("fused_gate", "--alignment", "3"), "alignment is 3; allowed: 1, 2"),
        (("fused_gate", "--device", "tpu"), "device is 'tpu'; allowed: a100"),
        (("moe_align_block_size", "--block-size", "0"), "block_size is 0; allowed: at least 1"),
    ],
)
def test_misuse_is_named_with_what_is_allowed(arguments: tuple[str, ...], message: str):
    done = CliRunner().invoke(app, list(arguments))
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize("tokens", [1, 7, 8, 9, 4096, 4097, 65536])
def test_append_launches_what_is_explained(tokens: int, monkeypatch: pytest.MonkeyPatch):
    grids: list[int] = []
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(append_shared_experts, "_by_triton", lambda grid, *rest: grids.append(grid))
    ids = torch.zeros(tokens, 8, dtype=torch.int32)
    append_shared_experts.append_shared_experts(ids, ids.float(), torch.zeros(tokens), 256)
    found = explain(Query("append_shared_experts", tokens, 256, 8), H100, compiled=False)
    assert [launch.grid for launch in found.launches] == grids
    other = 4097 if tokens <= 4096 else 4096
    assert [(change.size, change.value) for change in found.changes] == [("tokens", other)]


@pytest.mark.parametrize("op", ["fused_gate", "moe_align_block_size", "append_shared_experts"])
def test_command_prints_text_and_json(op: str):
    arguments = [op, "--experts", "384", "--tokens", "700", "--device", "a100", "--no-compile"]
    text = CliRunner().invoke(app, arguments)
    data = CliRunner().invoke(app, [*arguments, "--json"])
    assert text.exit_code == data.exit_code == 0
    found = json.loads(data.output)
    assert found["device"] == {"name": "a100", "arch": "sm_80", "multiprocessors": 108}
    assert found["launches"]
    for launch in found["launches"]:
        assert launch["name"] in text.output
        assert f"{launch['grid']} blocks of {launch['block']} threads" in text.output


def test_command_says_what_a_kernel_takes():
    done = CliRunner().invoke(app, ["moe_align_block_size", "--tokens", "1", "--device", "h100"])
    assert done.exit_code == 0, done.output
    assert " registers, " in done.output
    assert "spills" in done.output
