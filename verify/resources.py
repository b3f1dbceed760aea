"""What a kernel takes of a multiprocessor: registers, shared memory, stack, spills, as the assembler reports them."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

from moeproof.kernels.compiler import CompileError, load_source

_ENTRY = re.compile(r"Compiling entry function '([^']+)' for '([^']+)'")
_FUNCTION = re.compile(r"Function properties for (\S+)")
_FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Resources:
    """Resources of one kernel on one architecture.

    Attributes
    ----------
    arch : str
        Architecture, such as ``"sm_90"``.
    registers : int
        Registers a thread.
    shared_bytes : int
        Static shared memory a block.
    stack_bytes : int
        Stack frame a thread, spilled registers included; local memory.
    spill_store_bytes, spill_load_bytes : int
        Spilled registers that the kernel itself stores and loads, a thread.
    callee_spill_bytes : int
        The same, both together, of functions that it calls without inlining them.
    """

    arch: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    callee_spill_bytes: int

    @property
    def spills(self) -> bool:
        """The kernel itself spills registers."""
        return self.spill_store_bytes + self.spill_load_bytes > 0


def measure(file: str, name: str, arch: str) -> Resources:
    """Compile a kernel as for use, without a GPU, and return what the assembler says of it.

    Parameters
    ----------
    file : str
        Source file of the kernels' folder.
    name : str
        Name expression of the kernel.
    arch : str
        Architecture, such as ``"sm_90"``.

    Raises
    ------
    CompileError
        If NVRTC is missing, refuses the source, or says nothing of the kernel.
    """
    log = io.StringIO()
    source = load_source(file)
    try:
        from cuda.core import Program, ProgramOptions

        # As kernels/compiler.py compiles; a test compares the machine code.
        program = Program(source, "c++", ProgramOptions(arch=arch, std="c++17", ptxas_options="-v"))
        built = program.compile("cubin", name_expressions=(name,), logs=log)
    except Exception as error:  # NVRTCError carries the log
        raise CompileError(f"NVRTC can't compile {name} of {file} for {arch}: {error}") from error
    return parse(log.getvalue(), built.symbol_mapping[name].decode(), arch)


def parse(log: str, symbol: str, arch: str) -> Resources:
    """Read the assembler's verbose log.

    Parameters
    ----------
    log : str
        What ``ptxas -v`` prints.
    symbol : str
        The kernel's symbol.
    arch : str
        Goes into the result.

    Raises
    ------
    CompileError
        If the log says nothing of the kernel.
    """
    frames: dict[str, tuple[int, int, int]] = {}
    entry = function = ""
    registers, shared = None, 0
    for line in log.splitlines():
        if match := _ENTRY.search(line):
            entry = match[1]
        elif match := _FUNCTION.search(line):
            function = match[1]
        elif match := _FRAME.search(line):
            frames[function] = (int(match[1]), int(match[2]), int(match[3]))
        elif (match := _USED.search(line)) and entry == symbol:
            registers = int(match[1])
            shared = int(found[1]) if (found := _SHARED.search(line)) else 0
    if registers is None or symbol not in frames:
        raise CompileError(f"the assembler's log says nothing of {symbol}: {log!r:.300}")
    stack, stores, loads = frames.pop(symbol)
    callees = sum(frame[1] + frame[2] for frame in frames.values())
    return Resources(arch, registers, shared, stack, stores, loads, callees)
