"""A command that is interrupted once it has come far enough."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence


def interrupted(
    arguments: Sequence[str],
    number: signal.Signals,
    begun: Callable[[], object],
    *,
    after: float = 0.0,
    group: bool = False,
) -> tuple[int, str]:
    """Run moeproof, send it a signal `after` seconds once it has begun, and return its exit code and output.

    With `group` its processes get the signal too, as they get a terminal's.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "moeproof.verify.cli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 300
        while not begun():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        time.sleep(after)
        (os.killpg if group else os.kill)(process.pid, number)
        text, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, text
