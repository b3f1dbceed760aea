"""Runs a subject in a child process under a watchdog; a crash or a hang becomes an outcome, not an accident."""

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
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from moeproof.strategies.case import Case

from .execute import Outcome, Runner, pick_device
from .files import write_text
from .subject import Subject, Unavailable
from .violation import Violation

START_SECONDS = 600.0
"""How long a child may take to load its subject: libraries that compile at first use need minutes."""
TAIL = 1500
"""How much of a dead child's output goes into a finding."""


class Executor(Protocol):
    """Runs cases on one subject."""

    subject: Subject
    device: str

    def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
        """Run and judge a case."""
        ...

    def outputs(self, case: Case) -> dict[str, Any]:
        """Run a case once and return its outputs as literals."""
        ...


class Inline:
    """Runs cases in this process: for trusted subjects, and for tests of the harness."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._runner = Runner(subject, pick_device(subject))
        self.device = self._runner.device_name

    def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
        """Run and judge a case."""
        return self._runner.run(case, extras, refusal=refusal)

    def outputs(self, case: Case) -> dict[str, Any]:
        """Run a case once and return its outputs as literals; what went wrong under ``error``."""
        outputs = self._runner.literal_outputs(case)
        outputs.pop("fatal", None)
        return outputs


class Child:
    """A child process that runs cases on any number of subjects, and is restarted when it dies.

    Parameters
    ----------
    seconds : float
        Time limit of one case.
    threads : int
        CPU threads that torch may use in the child.
    inflight : Path, optional
        File that holds the case while it runs: if everything dies, it is still there.
    """

    def __init__(self, *, seconds: float = 30.0, threads: int = 1, inflight: Path | None = None) -> None:
        self.seconds = seconds
        self.threads = threads
        self.inflight = inflight
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._pending = b""
        self._loaded: dict[str, str] = {}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def load(self, subject: Subject) -> str:
        """Load a subject in the child, starting it if need be, and return the name of its device.

        Raises
        ------
        Unavailable
            If the subject can't run on this machine.
        """
        if self._process is None:
            self._start()
        name = subject.source or subject.name
        if name in self._loaded:
            return self._loaded[name]
        try:
            answer = self._ask({"subject": name}, START_SECONDS)
        except _Dead:
            code = self._reap()
            raise Unavailable(f"the process died loading it ({describe_exit(code)}): {self._tail()}") from None
        except TimeoutError:
            self._kill()
            raise Unavailable(f"it took more than {START_SECONDS:.0f} s to load") from None
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        return self._loaded.setdefault(name, answer["ready"])

    def ask(self, subject: Subject, request: dict[str, Any]) -> dict[str, Any] | Outcome:
        """Send a request that holds a case; a death or a hang of the child is returned as an outcome.

        Raises
        ------
        Unavailable
            If the subject can't be loaded again.
        HarnessError
            If the child failed outside the subject.
        """
        self.load(subject)
        message = {"subject": subject.source or subject.name, **request}
        if self.inflight is not None:
            write_text(self.inflight, json.dumps({"subject": message["subject"], **request}))
        answer: dict[str, Any] | Outcome
        try:
            answer = self._ask(message, self.seconds)
        except TimeoutError:
            self._kill()
            answer = Outcome((Violation("hang", f"no result within {self.seconds:g} s"),), fatal=True)
        except _Dead:
            code = self._reap()
            text = f"the process died: {describe_exit(code)}\n{self._tail()}".strip()
            answer = Outcome((Violation("cuda_error", text),), fatal=True)
        except BaseException:
            # Ctrl-C: its answer would be taken for that of the next case. The file stays, as after a kill.
            self._kill()
            raise
        if self.inflight is not None:
            self.inflight.unlink(missing_ok=True)
        if isinstance(answer, Outcome):
            return answer
        if "fault" in answer:
            raise HarnessError(answer["fault"])
        if answer.get("fatal"):
            self._kill()
        return answer

    def close(self) -> None:
        """End the child."""
        self._kill()
        self._log.close()

    def _start(self) -> None:
        mine, theirs = socket.socketpair()
        self._log.seek(0)
        self._log.truncate()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moeproof.verify.worker", str(theirs.fileno()), str(self.threads)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            # Whatever made modules importable here (pytest's path tricks, say) has to hold there.
            env=dict(os.environ, PYTHONUNBUFFERED="1", PYTHONPATH=os.pathsep.join(p for p in sys.path if p)),
            start_new_session=True,
        )
        theirs.close()
        self._socket, self._pending = mine, b""
        self._loaded.clear()
        self.starts += 1

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        assert self._socket is not None
        deadline = time.monotonic() + seconds
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while b"\n" not in self._pending:
                self._socket.settimeout(max(0.01, deadline - time.monotonic()))
                data = self._socket.recv(1 << 16)
                if not data:
                    raise _Dead
                self._pending += data
        except (BrokenPipeError, ConnectionResetError):
            raise _Dead from None
        line, _, self._pending = self._pending.partition(b"\n")
        return dict(json.loads(line))

    def _tail(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-TAIL:]

    def _reap(self) -> int:
        assert self._process is not None
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            code = -signal.SIGKILL
        self._kill()
        return code

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            # A process that is stuck in a driver call does not die at once; there is nothing to wait for.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class Isolated:
    """Runs cases on one subject in a `Child`."""

    def __init__(self, subject: Subject, child: Child) -> None:
        self.subject = subject
        self.child = child
        self.device = child.load(subject)

    def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
        """Run and judge a case; a death or a hang of the child is an outcome."""
        request = {"case": case.to_json(), "extras": list(extras), "refusal": refusal}
        answer = self.child.ask(self.subject, request)
        return answer if isinstance(answer, Outcome) else Outcome.from_json(answer)

    def outputs(self, case: Case) -> dict[str, Any]:
        """Run a case once and return its outputs as literals; what went wrong under ``error``."""
        answer = self.child.ask(self.subject, {"case": case.to_json(), "outputs": True})
        if isinstance(answer, Outcome):
            return {"error": answer.violations[0].message}
        return dict(answer["outputs"])


class HarnessError(RuntimeError):
    """The harness itself failed in the child; holds the traceback."""


class _Dead(Exception):
    """The child hung up."""


def describe_exit(code: int) -> str:
    """Put a process's exit status into words."""
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit status {code}"
