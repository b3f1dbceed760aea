"""One worker process: started, asked, killed."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from .channel import Channel, DeadError, describe_exit, end_group, start, tail

SEND_SECONDS = 60.0
"""How long a process may take to read a request."""
BUILD_SECONDS = 600.0
"""How long it may take to compile what a request needs."""


class WorkerProcess:
    """A process that runs `moeproof.verify.worker`, in a process group of its own.

    Parameters
    ----------
    threads : int
        CPU threads that torch may use in it.
    on_build : callable
        Takes what it compiles, and None when it begins or the seconds that it took.
    """

    def __init__(self, threads: int, on_build: Callable[[str, float | None], None]) -> None:
        self._on_build = on_build
        self.loaded: dict[str, str] = {}
        self._owed = 0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        command = [sys.executable, "-m", "moeproof.verify.worker", str(theirs.fileno()), str(threads)]
        self._process = start(command, self._log, pass_fds=[theirs.fileno()])
        theirs.close()

    @property
    def pid(self) -> int:
        """The process's id, which is that of its group too."""
        return self._process.pid

    def tell(self, request: dict[str, Any]) -> None:
        """Send a request whose answer nobody waits for; it is passed over when the next one is asked."""
        with contextlib.suppress(DeadError, OSError):
            self._channel.send(json.dumps(request), 1.0)
            self._owed += 1

    def send(self, request: str) -> None:
        """Send a request as JSON text of one line; `receive` returns its answer.

        Raises
        ------
        DeadError
            If the process hangs up.
        """
        self._channel.send(request, SEND_SECONDS)

    def receive(self, seconds: float) -> dict[str, Any]:
        """Return the answer to the request sent last.

        Raises
        ------
        DeadError
            If the process hangs up.
        TimeoutError
            If the answer takes longer than `seconds`, without what it compiles meanwhile.
        """
        deadline = time.monotonic() + seconds
        limit = deadline
        while True:
            said = self._channel.receive(limit)
            if "building" in said:
                limit = time.monotonic() + BUILD_SECONDS
                self._on_build(said["building"], None)
            elif "built" in said:
                limit = deadline = deadline + said["seconds"]
                self._on_build(said["built"], said["seconds"])
            elif self._owed:
                self._owed -= 1
            else:
                return said

    def reap(self) -> str:
        """Wait for a process that hung up, and say how it ended and what it printed last."""
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        text = f"{describe_exit(code)}\n{tail(self._log)}".strip()
        self.kill()
        return text

    def kill(self) -> None:
        """End the process and all of its group."""
        end_group(self._process)
        self._channel.close()
        self._log.close()
