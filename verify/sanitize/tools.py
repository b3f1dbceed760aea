"""compute-sanitizer: where it is, which tools it has, and how a process is started under it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moeproof.verify.subject import Unavailable

PROGRAM = "compute-sanitizer"
FOUND = 86
"""Exit status asked for when a tool has found something; neither Python nor a signal gives it."""
START_SECONDS = 11.0
"""Measured on an H100: start of a process under a tool, import of torch and first launch included."""
CONNECT_SECONDS = 300
"""How long the tool waits for the process to connect; its own default of 10 s is short for a loaded machine."""


@dataclass(frozen=True)
class Tool:
    """One of compute-sanitizer's tools.

    Attributes
    ----------
    name : str
        As ``--tool`` takes it; also the class of its findings.
    finds : str
        What it looks for, for people.
    options : tuple of str
        Options that only this tool has.
    """

    name: str
    finds: str
    options: tuple[str, ...] = ()


TOOLS = {
    tool.name: tool
    for tool in (
        # Failed API calls are the business of the harness, which sees them too; torch's own start makes some.
        Tool("memcheck", "accesses outside allocations, misaligned accesses", ("--report-api-errors", "no")),
        Tool("racecheck", "races in shared memory"),
        Tool("initcheck", "reads of device memory that nothing has written"),
        Tool("synccheck", "barriers that not all threads reach"),
    )
}


def chosen(names: Iterable[str]) -> list[Tool]:
    """Return tools by name, all if none is named.

    Raises
    ------
    ValueError
        If there is no such tool.
    """
    wanted = list(dict.fromkeys(names)) or list(TOOLS)
    for name in wanted:
        if name not in TOOLS:
            raise ValueError(f"tool is {name!r}; allowed: {', '.join(TOOLS)}")
    return [TOOLS[name] for name in wanted]


def locate() -> Path:
    """Return the program: on PATH, else in CUDA_HOME or CUDA_PATH, else in /usr/local/cuda.

    Raises
    ------
    Unavailable
        If it is nowhere; says where it was looked for and how to get it.
    """
    if found := shutil.which(PROGRAM):
        return Path(found)
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH")]
    homes = [*dict.fromkeys(h for h in homes if h), "/usr/local/cuda"]
    places = [Path(home) / folder / PROGRAM for home in homes for folder in ("bin", PROGRAM)]
    for place in places:
        if place.is_file() and os.access(place, os.X_OK):
            return place
    looked = ", ".join(["PATH", *(str(p.parent) for p in places)])
    raise Unavailable(
        f"{PROGRAM} is not found (looked in {looked}); it comes with the CUDA toolkit (package "
        "cuda-sanitizer of NVIDIA's repositories): install it, or set CUDA_HOME to a toolkit that has it"
    )


def version(program: Path) -> str:
    """Return the program's version.

    Raises
    ------
    Unavailable
        If it doesn't run here.
    """
    try:
        done = subprocess.run([str(program), "--version"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{program} doesn't run: {error}") from error
    words = done.stdout.split()
    return words[words.index("Version") + 1] if "Version" in words[:-1] else "of unknown version"


def command(program: Path, tool: Tool, log: Path, target: list[str]) -> list[str]:
    """Return the command that runs `target` under a tool, which writes its reports to `log`."""
    return [
        str(program),
        "--tool",
        tool.name,
        *tool.options,
        "--log-file",
        str(log),
        "--error-exitcode",
        str(FOUND),
        # A limit would hide what comes after it.
        "--print-limit",
        "0",
        # A bad kernel ends, the process goes on with the next case.
        "--destroy-on-device-error",
        "kernel",
        # Host frames of a Python process are long, slow to unwind, and the same for every report.
        "--show-backtrace",
        "device",
        # Compilers that the subject starts are none of its business.
        "--target-processes",
        "application-only",
        "--launch-timeout",
        str(CONNECT_SECONDS),
        *target,
    ]


def environment() -> dict[str, str]:
    """Return what a process needs in its environment to be checked in full."""
    # One allocation of the driver's for each tensor: inside torch's own pool, nothing is out of bounds.
    return {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
