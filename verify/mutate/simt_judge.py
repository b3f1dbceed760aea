"""Judges mutants on the SIMT executor: no GPU, and every access, race and barrier is checked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from moeproof.kernels import gate_plan
from moeproof.kernels.compiler import CompileError, compile_cubin, nvrtc_version
from moeproof.strategies.domain import AlignDomain, Domain, GateDomain
from moeproof.verify.execute import Runner
from moeproof.verify.simt.module import load, runtime
from moeproof.verify.simt.subjects import own
from moeproof.verify.simt.toolchain import BuildError, compiler
from moeproof.verify.subject import Unavailable

from . import simt_cases
from .judge import Attempt, Failure, JudgeError, NotCompiled, Session
from .source import INCLUDE

FILES = {"fused_gate": (gate_plan.FILE, gate_plan.GENERIC_FILE), "moe_align_block_size": ("align_block_size.cu",)}
"""The .cu files that hold each op's kernels."""
ARCH = "sm_90"
ANY: dict[str, Domain] = {
    "fused_gate": GateDomain(shared=range(32)),
    "moe_align_block_size": AlignDomain(topk=range(65)),
}
"""Mutants are tried with sizes that the subjects leave out for their cost."""


@dataclass(frozen=True)
class SimtJudge:
    """Runs cases on the executor."""

    name: str = f"simt, cases {simt_cases.VERSION}"

    def missing(self) -> str | None:
        """Return why the executor can't work on this machine, or None."""
        try:
            compiler()
        except Unavailable as error:
            return str(error)
        return None

    def ops(self, file: str) -> tuple[str, ...]:
        """Return the ops whose kernels a .cu file holds."""
        for op, files in FILES.items():
            if file in files:
                return (op,)
        known = ", ".join(f for files in FILES.values() for f in files)
        raise JudgeError(f"file is {file!r}; allowed on the executor: {known}")

    def attempts(self, op: str, count: int, seed: int) -> Sequence[Attempt]:
        """Return the cases that mutants of an op are tried with."""
        return simt_cases.cases(op, count, seed)

    def load(self, sources: Path, cache: Path | None) -> Session:
        """Return a session."""
        _use_cache(cache)
        runtime()  # modules are linked to it by name
        return _SimtSession(sources)

    def machine_code(self, sources: Path, builds: Sequence[str], cache: Path | None) -> Iterator[bytes | None] | None:
        """Yield what NVRTC makes of some builds, kernel by kernel, None of what it refuses; None without NVRTC."""
        try:
            nvrtc_version()
        except CompileError:
            return None
        _use_cache(cache)
        kernels = dict.fromkeys(kernel for build in builds for kernel in build.split(";"))
        return (_cubin(sources, *kernel.split(":")) for kernel in kernels)


def _use_cache(folder: Path | None) -> None:
    if folder is not None:
        os.environ["MOEPROOF_CACHE_DIR"] = str(folder)


def _cubin(sources: Path, file: str, name: str) -> bytes | None:
    seen: set[str] = set()

    def text(part: str) -> str:
        if part in seen:
            return ""
        seen.add(part)
        own_text = (sources / part).read_text(encoding="utf-8").replace("#pragma once\n", "")
        return INCLUDE.sub(lambda match: text(match[1]), own_text)

    try:
        return compile_cubin(text(file), (name,), ARCH).code
    except CompileError:
        return None


@dataclass
class _SimtSession:
    """Kernels of one folder."""

    sources: Path
    runners: dict[str, Runner] = field(default_factory=dict)

    def prepare(self, attempt: Attempt) -> None:
        """Compile what a case needs."""
        for kernel in attempt.build.split(";"):
            file, _, name = kernel.partition(":")
            try:
                load(self.sources / file, (name,))
            except BuildError as error:
                raise NotCompiled(str(error)) from error

    def run(self, attempt: Attempt) -> Failure | None:
        """Run a case; return its first violation."""
        if attempt.op not in self.runners:
            torch.set_num_threads(1)
            self.runners[attempt.op] = Runner(
                own(attempt.op, self.sources, domain=ANY[attempt.op]), torch.device("cpu")
            )
        outcome = self.runners[attempt.op].run(attempt.case, attempt.extras)
        return next((Failure(v.check, v.message) for v in outcome.violations), None)
