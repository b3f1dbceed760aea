"""One process under a tool: started, asked, and its log read as it grows."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from moeproof.verify.channel import Channel, DeadError, describe_exit, end_group, start, tail

from . import tools
from .reports import Log, Report, read_log
from .tools import Tool

SETTLE = 0.03
"""Seconds without a new line in the log after which a case's reports are taken to be complete.

The tool prints in a process of its own, line by line, once the launch has ended.
"""
SETTLE_LIMIT = 5.0
END_SECONDS = 120.0
"""How long a process may take to end; the tool writes its summary then."""


class SanitizedProcess:
    """A process that runs `driver` under a tool, in a process group of its own.

    Parameters
    ----------
    program : Path
        compute-sanitizer.
    tool : Tool
        The tool.
    seconds : float
        How long the process may take to start.

    Raises
    ------
    DeadError
        If it ends before it is ready.
    TimeoutError
        If it isn't ready in time.
    """

    def __init__(self, program: Path, tool: Tool, seconds: float) -> None:
        self.tool = tool
        self.loaded: dict[str, str] = {}
        self.taken = 0
        self._read = 0
        self._channel: Channel | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="moeproof-sanitize-")
        folder = Path(self._folder.name)
        self._log = folder / "log.txt"
        self._output = (folder / "output.txt").open("w+b")
        target = [sys.executable, "-m", "moeproof.verify.sanitize.driver", str(folder / "socket")]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "socket"))
            listener.listen(1)
            try:
                command = tools.command(program, tool, self._log, target)
                self._process = start(command, self._output, variables=tools.environment())
            except OSError as error:
                self._output.close()
                self._folder.cleanup()
                raise DeadError(str(error)) from None
            try:
                self._channel = Channel(self._accept(listener, time.monotonic() + seconds))
            except BaseException:
                self.kill()
                raise

    def _accept(self, listener: socket.socket, deadline: float) -> socket.socket:
        listener.settimeout(0.2)
        while True:
            with contextlib.suppress(TimeoutError):
                return listener.accept()[0]
            if self._process.poll() is not None:
                raise DeadError(self.last_words())
            if time.monotonic() > deadline:
                raise TimeoutError

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Send a request and return its answer.

        Raises
        ------
        DeadError
            If the process hangs up; says how it ended.
        TimeoutError
            If the answer takes longer than `seconds`.
        """
        assert self._channel is not None
        deadline = time.monotonic() + seconds
        try:
            self._channel.send(json.dumps(request), seconds)
            return self._channel.receive(deadline)
        except DeadError:
            raise DeadError(self.last_words()) from None

    def reports(self) -> list[Report]:
        """Return the reports that were printed since the last call, once no more come."""
        end = time.monotonic() + SETTLE_LIMIT
        size = -1
        while size != self._size() and time.monotonic() < end:
            size = self._size()
            time.sleep(SETTLE)
        found = read_log(self._text(self._read, size)).reports
        self._read = size
        self.taken += len(found)
        return found

    def finish(self) -> list[str]:
        """Let the process end by itself and return what speaks against taking its silence for a pass."""
        assert self._channel is not None
        self._channel.hang_up()
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return [f"{self.tool.name} did not end within {END_SECONDS:.0f} s and gave no summary"]
        log = read_log(self._text())
        self.kill()
        return _doubts(self.tool.name, log, code, self.taken)

    def last_words(self) -> str:
        """Say how a process that hung up has ended, and what it and the tool printed last."""
        try:
            ending = describe_exit(self._process.wait(5))
        except subprocess.TimeoutExpired:
            ending = "it hung up"
        faults = read_log(self._text()).faults
        return "\n".join(part for part in (ending, *faults, tail(self._output)) if part)

    def kill(self) -> None:
        """End the process and all of its group, and drop its files."""
        end_group(self._process)
        if self._channel is not None:
            self._channel.close()
        self._output.close()
        self._folder.cleanup()

    def _size(self) -> int:
        return self._log.stat().st_size if self._log.exists() else 0

    def _text(self, start: int = 0, end: int | None = None) -> str:
        if not self._log.exists():
            return ""
        with self._log.open("rb") as file:
            file.seek(start)
            return file.read(-1 if end is None else end - start).decode(errors="replace")


def _doubts(tool: str, log: Log, code: int, taken: int) -> list[str]:
    """Return what is odd about a process that has ended, with its whole log, exit status and the reports accounted."""
    doubts = [f"{tool} says: {fault}" for fault in log.faults]
    if log.summary is None:
        doubts.append(f"{tool} ended with {describe_exit(code)} and printed no summary")
    elif log.summary != len(log.reports) + log.unseen:
        doubts.append(f"{tool} counts {log.summary}, but {len(log.reports)} of its reports can be read")
    if log.unseen:
        doubts.append(f"{tool} has not printed {log.unseen} of its reports")
    if len(log.reports) > taken:
        first = log.reports[-1].describe({}, 1)
        doubts.append(f"{tool} made {len(log.reports) - taken} reports outside any case, such as: {first}")
    if code not in (0, tools.FOUND) or (code == tools.FOUND and not log.reports):
        doubts.append(f"{tool} ended with {describe_exit(code)} after {len(log.reports)} reports")
    return doubts
