"""What every process that runs suspects has in common: how it is started, talked to, heard out and ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, Any

TAIL = 1500
"""How much of a dead process's output goes into a finding."""


class DeadError(Exception):
    """The process hung up."""


class Channel:
    """Our end of a socket to a process: one JSON object a line, each way.

    Parameters
    ----------
    connection : socket
        Closed with the channel.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._pending = b""

    def send(self, request: str, seconds: float) -> None:
        """Send a request as JSON text of one line.

        Raises
        ------
        DeadError
            If the process hangs up.
        TimeoutError
            If it does not read the request within `seconds`.
        """
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(request.encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            raise DeadError from None

    def receive(self, deadline: float) -> dict[str, Any]:
        """Return the next answer.

        Raises
        ------
        DeadError
            If the process hangs up.
        TimeoutError
            If the answer is not there when `time.monotonic` reaches `deadline`.
        """
        try:
            while b"\n" not in self._pending:
                self._socket.settimeout(max(0.01, deadline - time.monotonic()))
                data = self._socket.recv(1 << 16)
                if not data:
                    raise DeadError
                self._pending += data
        except ConnectionResetError:
            raise DeadError from None
        line, _, self._pending = self._pending.partition(b"\n")
        return dict(json.loads(line))

    def hang_up(self) -> None:
        """Tell the process that no further request comes."""
        # If it is gone already, what it printed says how.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def start(
    command: Sequence[str],
    output: IO[bytes],
    *,
    pass_fds: Sequence[int] = (),
    variables: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own, which can import what this one can.

    Parameters
    ----------
    command : sequence of str
        Program and arguments.
    output : file
        Takes what it prints, errors included.
    pass_fds : sequence of int
        File descriptors that it inherits.
    variables : mapping, optional
        What to add to its environment.
    """
    return subprocess.Popen(
        command,
        pass_fds=pass_fds,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": python_path()} | dict(variables or {}),
        start_new_session=True,
    )


def python_path() -> str:
    """Return as PYTHONPATH whatever made modules importable here: pytest's path tricks, say."""
    return os.pathsep.join(os.path.abspath(p) for p in sys.path if p)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that `start` gave, and all of its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # A process that is stuck in a driver call does not die at once; there is nothing to wait for.
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)


def tail(output: IO[bytes], length: int = TAIL) -> str:
    """Return the end of what a process has printed."""
    output.seek(0)
    return output.read().decode(errors="replace").strip()[-length:]


def describe_exit(code: int) -> str:
    """Put a process's exit status into words."""
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit status {code}"
