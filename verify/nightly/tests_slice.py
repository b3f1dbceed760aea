"""Runs a lane's own test files for a while, with the run's Hypothesis databases and the `nightly` profile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from moeproof.verify.channel import python_path, tail
from moeproof.verify.events import Event, Sink
from moeproof.verify.finding import artefacts

from .layout import OUT_VARIABLE
from .store import Slice

PATIENCE = 10.0
"""Seconds that pytest gets to end after Ctrl-C."""
PLUGIN = "moeproof.verify.nightly.profile"
_FAILED = 1
"""pytest's exit code for tests that failed; Ctrl-C gives another."""


def run_tests(work: Slice, sink: Sink, *, out: Path) -> None:
    """Run a test file until it ends or its time is up; findings of parity tests and other failures become events."""
    path = Path(work.unit.target)
    command = [sys.executable, "-m", "pytest", str(path), "-q", "-p", PLUGIN, "-p", "no:cacheprovider"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {OUT_VARIABLE: str(out), "PYTHONPATH": python_path()}
    begin = time.time()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=path.parent,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = _wait(process, time.monotonic() + min(work.seconds, work.deadline - time.time()), work, sink)
        finally:
            _end(process)
        text = tail(log)
    found = _findings(out, path, begin)
    for place, summary in found:
        sink(Event("finding", {**summary, **artefacts(place), "folder": str(place)}))
    if code == _FAILED and not found:
        sink(Event("note", {"text": f"{path} fails:\n{text}", "tests": str(path)}))
    elif code not in (0, _FAILED, None):
        sink(Event("note", {"text": f"{path} could not be run, pytest ended with {code}:\n{text}", "error": True}))


def _wait(process: subprocess.Popen[bytes], end: float, work: Slice, sink: Sink) -> int | None:
    """Return pytest's exit code, None if its time was up; says now and then that this worker is alive."""
    while time.monotonic() < end:
        try:
            return process.wait(1.0)
        except subprocess.TimeoutExpired:
            sink(Event("reducing", {"subject": work.unit.name, "check": "tests"}))
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _findings(out: Path, path: Path, since: float) -> list[tuple[Path, dict[str, object]]]:
    """Return the findings of subjects that a test file declares, written since a time."""
    found = []
    for file in sorted((out / "findings").glob("*/finding.json")):
        if file.stat().st_mtime < since - 1.0:  # file systems round
            continue
        summary = json.loads(file.read_text(encoding="utf-8"))
        if str(summary.get("source", "")).startswith(f"{path.resolve()}:"):
            found.append((file.parent, summary))
    return found
