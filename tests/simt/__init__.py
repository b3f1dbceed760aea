"""Planted kernels: each is right with <false> and breaks one rule with <true>."""

import pytest

from moeproof.verify.simt import POLICIES, Schedule
from moeproof.verify.simt.toolchain import compiler
from moeproof.verify.subject import Unavailable

from .planted import FOLDER, PLANTED, Planted


def _missing() -> str:
    try:
        compiler()
    except Unavailable as error:
        return str(error)
    return ""


needs_compiler = pytest.mark.skipif(bool(_missing()), reason=_missing() or "there is a compiler")
SCHEDULES = [Schedule(policy, seed) for policy in POLICIES for seed in (1, 2, 3)]

__all__ = ["FOLDER", "PLANTED", "SCHEDULES", "Planted", "needs_compiler"]
