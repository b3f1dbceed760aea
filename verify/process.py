"""One worker process: started, asked, killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any

SEND_SECONDS = 60.0
"""How long a process may take to read a request."""
TAIL = 1500
"""How much of a dead process's output goes into a finding."""


class DeadError(Exception):
    """The process hung up."""


class WorkerProcess:
    """A process that runs `moeproof.verify.worker`, in a process group of its own.

    Parameters
    ----------
    threads : int
        CPU threads that torch may use in it.
    """

    def __init__(self, threads: int) -> None:
        self.loaded: dict[str, str] = {}
        self._pending = b""
        self._owed = 0
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._socket, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moeproof.verify.worker", str(theirs.fileno()), str(threads)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            # Whatever made modules importable here (pytest's path tricks, say) has to hold there.
            env=dict(os.environ, PYTHONUNBUFFERED="1", PYTHONPATH=os.pathsep.join(p for p in sys.path if p)),
            start_new_session=True,
        )
        theirs.close()

    @property
    def pid(self) -> int:
        """The process's id, which is that of its group too."""
        return self._process.pid

    def tell(self, request: dict[str, Any]) -> None:
        """Send a request whose answer nobody waits for; it is passed over when the next one is asked."""
        with contextlib.suppress(OSError):
            self._socket.settimeout(1.0)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            self._owed += 1

    def send(self, request: str) -> None:
        """Send a request as JSON text of one line; `receive` returns its answer.

        Raises
        ------
        DeadError
            If the process hangs up.
        """
        try:
            self._socket.settimeout(SEND_SECONDS)
            self._socket.sendall(request.encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            raise DeadError from None

    def receive(self, seconds: float) -> dict[str, Any]:
        """Return the answer to the request sent last.

        Raises
        ------
        DeadError
            If the process hangs up.
        TimeoutError
            If the answer takes longer than `seconds`.
        """
        deadline = time.monotonic() + seconds
        try:
            while self._owed:
                self._line(deadline)
                self._owed -= 1
            return dict(json.loads(self._line(deadline)))
        except ConnectionResetError:
            raise DeadError from None

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._pending:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            data = self._socket.recv(1 << 16)
            if not data:
                raise DeadError
            self._pending += data
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def tail(self) -> str:
        """Return the end of what the process has printed."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-TAIL:]

    def reap(self) -> str:
        """Wait for a process that hung up, and say how it ended and what it printed last."""
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        text = f"{describe_exit(code)}\n{self.tail()}".strip()
        self.kill()
        return text

    def kill(self) -> None:
        """End the process and all of its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # A process that is stuck in a driver call does not die at once; there is nothing to wait for.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._socket.close()
        self._log.close()


def describe_exit(code: int) -> str:
    """Put a process's exit status into words."""
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit status {code}"
