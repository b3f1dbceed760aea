"""One pytest session of a nightly run, as a process: ``python -m moeproof.verify.nightly.session FOLDER WORKERS``."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from .layout import SUFFIX

RESTARTS = 64
"""Lost workers that xdist replaces in one session; the supervisor starts another as long as work gets done."""


def main() -> int:
    """Run the session in the folder of a run."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    folder, workers = Path(sys.argv[1]), sys.argv[2]
    # Nothing of the user's own pytest set-up is meant for this session.
    ini, slices = folder / "pytest.ini", folder / f"run{SUFFIX}"
    ini.write_text("[pytest]\n", encoding="utf-8")
    slices.touch()
    os.chdir(folder)
    plugins = ["-p", "xdist.plugin", "-p", "moeproof.verify.nightly.plugin", "-p", "no:cacheprovider"]
    spread = ["-n", workers, "--dist", "load", "--max-worker-restart", str(RESTARTS)]
    where = ["-c", str(ini), "--rootdir", str(folder), "--noconftest", str(slices)]
    return int(pytest.main(["-q", *plugins, *spread, *where]))


def _die_with_parent() -> None:
    """End this process and its workers, which are of its group, when the other end of its standard input is closed."""
    while os.read(0, 1):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
