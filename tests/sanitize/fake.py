"""Stands in for compute-sanitizer where there is no GPU: same options, same log, reports made up by the subject.

A subject writes reports to the file that ``FAKE_REPORTS`` names; this program passes them on to its log, as the real
one does: from a process of its own, line by line. ``FAKE_MODE`` makes it misbehave.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PREFIX = "========= "


def main() -> int:
    if sys.argv[1:] == ["--version"]:
        print("NVIDIA (R) Compute Sanitizer\nVersion 2025.3.1.0 (build 0)")
        return 0
    arguments = sys.argv[1:]
    options = {}
    while arguments[0].startswith("--"):
        options[arguments[0]] = arguments[1]
        arguments = arguments[2:]
    assert options.keys() >= {"--tool", "--error-exitcode"}, options
    mode = os.environ.get("FAKE_MODE", "")
    if mode == "dies":
        print("Device not supported", file=sys.stderr)
        return 1
    reports = Path(tempfile.mkstemp()[1])
    with open(options.get("--log-file", "/dev/stdout"), "w", buffering=1) as log:
        log.write(f"{PREFIX}COMPUTE-SANITIZER\n")
        target = subprocess.Popen(arguments, env=os.environ | {"FAKE_REPORTS": str(reports)})
        count = _pass_on(target, reports, log, hide=mode == "hides")
        reports.unlink()
        if mode == "says":
            log.write(f"{PREFIX}Error: process didn't terminate successfully\n")
        if mode != "silent":
            name = "RACECHECK SUMMARY: {} hazards displayed ({} errors, 0 warnings)"
            text = name if options["--tool"] == "racecheck" else "ERROR SUMMARY: {} errors"
            log.write(f"{PREFIX}{text.format(count, count)}\n")
    return int(options["--error-exitcode"]) if count else target.returncode


def _pass_on(target: subprocess.Popen[bytes], reports: Path, log: object, *, hide: bool) -> int:
    """Copy reports while the target runs and return how many there were."""
    count = 0
    with reports.open() as source:
        while True:
            ended = target.poll() is not None
            text = source.read()
            count += text.count("by thread")
            if not hide:
                for line in text.splitlines():
                    log.write(f"{PREFIX}{line}\n")  # type: ignore[attr-defined]
            if ended and not text:
                return count
            time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main())
