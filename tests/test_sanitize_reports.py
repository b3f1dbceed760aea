"""The parser of compute-sanitizer's logs: recorded ones, and odd ones from the public reports of other projects."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sanitize import planted

from moeproof.verify.sanitize.process import _doubts
from moeproof.verify.sanitize.reports import base_name, read_log
from moeproof.verify.sanitize.tools import FOUND, TOOLS

RECORDED = Path(__file__).parent / "sanitize" / "recorded"
SECTION = re.compile(r"^### (\w+) exit (-?\d+) seconds [\d.]+\n", re.MULTILINE)
KINDS = {
    "memcheck": "Invalid __global__ write",
    "racecheck": "Race between Write and Read",
    "initcheck": "Uninitialized __global__ memory read",
    "synccheck": "Barrier error detected. Divergent thread(s)",
}


def sections(tool: str) -> dict[str, tuple[int, str]]:
    """Return by kernel the exit status and the log that were recorded under a tool."""
    parts = SECTION.split((RECORDED / f"{tool}.txt").read_text())[1:]
    return {name: (int(code), log) for name, code, log in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("kernel", planted.FAULTS)
def test_recorded_logs_are_read_in_full(tool: str, kernel: str) -> None:
    code, text = sections(tool)[kernel]
    log = read_log(text)
    assert log.summary == len(log.reports) + log.unseen
    assert not log.faults
    assert _doubts(tool, log, code, len(log.reports)) == []
    assert bool(log.reports) == (planted.FAULTS[kernel] == tool)
    assert code == (FOUND if log.reports else 0)
    for report in log.reports:
        assert report.kernel == kernel
        assert report.kind == KINDS[tool]
    assert len({report.key for report in log.reports}) <= 1


def test_the_recorded_write_past_the_end_is_told_in_full() -> None:
    (report,) = read_log(sections("memcheck")["append_past_end"][1]).reports
    text = report.describe({report.allocation: "weights"}, 1)
    assert text.startswith("Invalid __global__ write of 4 bytes in append_past_end")
    assert text.endswith("by thread (0,0,0) in block (4,0,0), 1 bytes after weights (60 bytes)")
    assert "the nearest allocation (60 bytes); 7 reports" in report.describe({}, 7)


OLD = """\
========= COMPUTE-SANITIZER
a line of the program itself
========= Invalid __global__ write of size 1 bytes
=========     at 0x570 in /src/thrust/detail/assign_value.h:58:void thrust::assign<bool>(thrust::tag &, T2)
=========     by thread (31,0,0) in block (7,1,0)
=========     Address 0x7b3c42e0000a is out of bounds
=========     and is 3 bytes before the nearest allocation at 0x7b3c42e00010 of size 10 bytes
=========     Device Frame:void ns::run<(unsigned int)256, float>(const Grid *, double)+0x39d0 in /src/run.cuh:62
=========     Saved host backtrace up to driver entry point at kernel launch time
=========     Host Frame: cudaLaunchKernel [0x58b55]
=========                in /usr/lib/libcuda.so.1
=========
========= ERROR SUMMARY: 1 error
"""


def test_the_kernel_is_the_outermost_frame_and_the_place_the_innermost() -> None:
    (report,) = read_log(OLD).reports
    assert report.kernel == "ns::run"
    assert report.place == "assign_value.h:58"
    assert (report.thread, report.block, report.size) == ("(31,0,0)", "(7,1,0)", 1)
    assert "3 bytes before the nearest allocation (10 bytes)" in report.describe({}, 1)


def test_kinds_are_those_of_defects_not_of_threads() -> None:
    text = """\
========= Barrier error detected. Divergent thread(s) in warp
=========     at gate(Gate)+0x300
=========     by thread (0,0,0) in block (0,0,0)
=========
========= Barrier error detected. Divergent thread(s) in block.
=========     at gate(Gate)+0x300
=========     by thread (32,0,0) in block (0,0,0)
=========
========= Invalid __global__ read of size 16 bytes
=========     at gate(Gate)+0x310
=========     by thread (1,0,0) in block (0,0,0)
=========     Address 0x7b3c42e00004 is misaligned
"""
    assert [r.key for r in read_log(text).reports] == [
        ("Barrier error detected. Divergent thread(s)", "gate"),
        ("Barrier error detected. Divergent thread(s)", "gate"),
        ("Invalid __global__ read, misaligned", "gate"),
    ]


MIXED = """\
========= COMPUTE-SANITIZER
========= Warning: Maximum number of hazards reached.
=========
========= Warning: Race reported between Read access at compress(const uint *, uint2 *, int)+0x260 in dxt.cu:31
=========     and Write access at compress(const uint *, uint2 *, int)+0x200 [294291 hazards]
=========
========= Error: Race reported between Write access at void (anonymous namespace)::scan<int>(T1 *)+0x70
=========     and Write access at void (anonymous namespace)::scan<int>(T1 *)+0x70 [8 hazards]
=========
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""


def test_races_have_levels_and_kernels_in_anonymous_namespaces_have_names() -> None:
    log = read_log(MIXED)
    assert [(r.level, r.kind, r.kernel, r.place) for r in log.reports] == [
        ("warning", "Race between Write and Read", "compress", "dxt.cu:31"),
        ("error", "Race between Write", "anonymous::scan", ""),
    ]
    assert (log.summary, log.faults) == (2, [])


def test_what_is_no_report_is_not_taken_for_one() -> None:
    text = """\
========= COMPUTE-SANITIZER
========= Target application terminated before first instrumented API call
========= Error: couldn't find exit code.
========= Host API memory access error at host access to 0x7f14c9e00200 of size 16 bytes
=========     Uninitialized access at 0x7f14c9e00200 on access by cudaMemcopy source
=========
========= ERROR SUMMARY: 3000 errors
========= 2999 errors were not printed. Use --print-limit option to adjust the number of printed errors
"""
    log = read_log(text)
    assert [(r.kind, r.kernel) for r in log.reports] == [("Host API memory access error", "")]
    assert len(log.faults) == 2
    assert (log.summary, log.unseen) == (3000, 2999)


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("void kernel<(int)8, ns::pair<float, int>>(float *)", "kernel"),
        ("_Z12gate_kernel4Gate", "_Z12gate_kernel4Gate"),
        ("gate(Gate)", "gate"),
        ("std::enable_if<(bool)1, void>::type a::b::c<T1>(T2, float (&)[1])", "a::b::c"),
        ("", ""),
    ],
)
def test_names_lose_what_varies(signature: str, name: str) -> None:
    assert base_name(signature) == name


@pytest.mark.parametrize(
    ("text", "code", "taken", "words"),
    [
        ("", -9, 0, "killed by SIGKILL and printed no summary"),
        ("========= ERROR SUMMARY: 2 errors\n", FOUND, 0, "counts 2, but 0"),
        ("========= ERROR SUMMARY: 0 errors\n", 1, 0, "ended with exit status 1 after 0 reports"),
        ("========= ERROR SUMMARY: 0 errors\n", FOUND, 0, "ended with exit status 86 after 0 reports"),
        ("========= Error: No attachable process found.\n", 0, 0, "says: Error: No attachable"),
        ("========= ERROR SUMMARY: 5 errors\n========= 5 errors were not printed.\n", 0, 0, "not printed 5"),
        (OLD, FOUND, 0, "1 reports outside any case, such as: Invalid __global__ write"),
    ],
)
def test_silence_is_a_pass_only_if_everything_fits(text: str, code: int, taken: int, words: str) -> None:
    assert any(words in doubt for doubt in _doubts("memcheck", read_log(text), code, taken))
    assert _doubts("memcheck", read_log("========= ERROR SUMMARY: 0 errors\n"), 0, 0) == []
