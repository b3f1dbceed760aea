"""Runs a subject in a child process under a watchdog; a crash or a hang becomes an outcome, not an accident."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from moeproof.strategies.case import Case

from .channel import DeadError
from .execute import Outcome, Runner, pick_device
from .files import write_text
from .process import WorkerProcess
from .subject import Subject, Unavailable
from .violation import Violation

START_SECONDS = 600.0
"""How long a child may take to load its subject: libraries that compile at first use need minutes."""
SPARES = 2
"""Processes that stand by once a child has died."""


class CaseRunner(Protocol):
    """Runs cases on one subject, one at a time; all that reduction needs."""

    subject: Subject

    def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
        """Run and judge a case."""
        ...


class Executor(CaseRunner, Protocol):
    """Runs cases on one subject, also while the caller goes on, and shows their outputs."""

    device: str

    def begin(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> None:
        """Start to run a case; `end` returns its outcome."""
        ...

    def end(self) -> Outcome:
        """Return the outcome of the case that `begin` started."""
        ...

    def outputs(self, case: Case) -> dict[str, Any]:
        """Run a case once and return its outputs as literals."""
        ...


class Inline:
    """Runs cases in this process: for trusted subjects, and for tests of the harness."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._runner = Runner(subject, pick_device(subject))
        self._pending: tuple[Case, tuple[str, ...], bool]
        self.device = self._runner.device_name

    def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
        """Run and judge a case."""
        try:
            return self._runner.run(case, extras, refusal=refusal)
        except MemoryError as error:
            raise NoMemoryError(str(error)) from error

    def begin(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> None:
        """Take a case; `end` runs it."""
        self._pending = (case, extras, refusal)

    def end(self) -> Outcome:
        """Run the case that `begin` took."""
        case, extras, refusal = self._pending
        return self.run(case, extras, refusal=refusal)

    def outputs(self, case: Case) -> dict[str, Any]:
        """Run a case once and return its outputs as literals; what went wrong under ``error``."""
        outputs = self._runner.literal_outputs(case)
        outputs.pop("fatal", None)
        return outputs


class Child:
    """A child process that runs cases on any number of subjects, and is replaced when it dies.

    After the first death a spare stands by with the same subjects loaded: where a crash is being reduced, each try
    ends in one, and importing torch takes seconds.

    Parameters
    ----------
    seconds : float
        Time limit of one case.
    threads : int
        CPU threads that torch may use in the child.
    inflight : Path, optional
        File that holds the case while it runs: if everything dies, it is still there.

    Attributes
    ----------
    on_build : callable
        Takes what a process compiles, and None when it begins or the seconds that it took: the watchdog waits for it.
    """

    def __init__(self, *, seconds: float = 30.0, threads: int = 1, inflight: Path | None = None) -> None:
        self.seconds = seconds
        self.threads = threads
        self.inflight = inflight
        self.starts = 0
        self.on_build: Callable[[str, float | None], None] = lambda what, seconds: None
        self._process: WorkerProcess | None = None
        self._spares: list[WorkerProcess] = []
        self._names: list[str] = []

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """Id of the process that runs cases now, if there is one."""
        return None if self._process is None else self._process.pid

    def load(self, subject: Subject) -> str:
        """Load a subject in the child, starting it if need be, and return the name of its device.

        Raises
        ------
        Unavailable
            If the subject can't run on this machine.
        """
        process = self._started()
        name = subject.source or subject.name
        if name in process.loaded:
            return process.loaded[name]
        try:
            process.send(json.dumps({"subject": name}))
            answer = process.receive(START_SECONDS)
        except DeadError:
            raise Unavailable(f"the process died loading it: {self._ended(process)}") from None
        except TimeoutError:
            self._drop()
            raise Unavailable(f"it took more than {START_SECONDS:.0f} s to load") from None
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        if name not in self._names:
            self._names.append(name)
        self._stand_by()
        return process.loaded.setdefault(name, answer["ready"])

    def ask(self, subject: Subject, request: dict[str, Any]) -> dict[str, Any] | Outcome:
        """Send a request that holds a case and return its answer: `send`, then `receive`."""
        self.send(subject, request)
        return self.receive()

    def send(self, subject: Subject, request: dict[str, Any]) -> None:
        """Send a request that holds a case, and return while the child works on it.

        Raises
        ------
        Unavailable
            If the subject can't be loaded again.
        """
        self.load(subject)
        message = json.dumps({"subject": subject.source or subject.name, **request})
        if self.inflight is not None:
            write_text(self.inflight, message)
        # `receive` finds out how it ended.
        with contextlib.suppress(DeadError, TimeoutError):
            self._started().send(message)

    def receive(self) -> dict[str, Any] | Outcome:
        """Return the answer to the request sent last; a death or a hang of the child is returned as an outcome.

        Raises
        ------
        HarnessError
            If the child failed outside the subject.
        NoMemoryError
            If the memory did not suffice.
        """
        process = self._started()
        answer: dict[str, Any] | Outcome
        try:
            answer = process.receive(self.seconds)
        except TimeoutError:
            self._drop()
            answer = Outcome((Violation("hang", f"no result within {self.seconds:g} s"),), fatal=True)
        except DeadError:
            answer = Outcome((Violation("cuda_error", f"the process died: {self._ended(process)}"),), fatal=True)
        except BaseException:
            # Ctrl-C: its answer would be taken for that of the next case. The file stays, as after a kill.
            self._drop()
            raise
        if self.inflight is not None:
            self.inflight.unlink(missing_ok=True)
        if isinstance(answer, Outcome):
            return answer
        if "no_memory" in answer:
            raise NoMemoryError(answer["no_memory"])
        if "fault" in answer:
            raise HarnessError(answer["fault"])
        if answer.get("fatal"):
            self._drop()
        return answer

    def close(self) -> None:
        """End the child, and its spares."""
        self._drop()
        while self._spares:
            self._spares.pop().kill()

    def _started(self) -> WorkerProcess:
        if self._process is None:
            self._process = self._spares.pop(0) if self._spares else self._new()
            self.starts += 1
        return self._process

    def _new(self) -> WorkerProcess:
        return WorkerProcess(self.threads, lambda what, seconds: self.on_build(what, seconds))

    def _stand_by(self) -> None:
        """Start spares, once this child has died and its successor is up."""
        while self.starts > 1 and len(self._spares) < SPARES:
            spare = self._new()
            for name in self._names:
                spare.tell({"subject": name})
            self._spares.append(spare)

    def _ended(self, process: WorkerProcess) -> str:
        text = process.reap()
        self._process = None
        return text

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()


class Isolated:
    """Runs cases on one subject in a `Child`."""

    def __init__(self, subject: Subject, child: Child) -> None:
        self.subject = subject
        self.child = child
        self.device = child.load(subject)
        self._extras: tuple[str, ...] = ()

    def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
        """Run and judge a case; a death or a hang of the child is an outcome."""
        self.begin(case, extras, refusal=refusal)
        return self.end()

    def begin(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> None:
        """Send a case to the child, and return while it works."""
        self._extras = extras
        self.child.send(self.subject, {"case": case.to_json(), "extras": list(extras), "refusal": refusal})

    def end(self) -> Outcome:
        """Return the outcome of the case sent last; a death or a hang of the child is an outcome."""
        answer = self.child.receive()
        if not isinstance(answer, Outcome):
            return Outcome.from_json(answer)
        # Which of its launches the child died of is not known.
        return replace(answer, violations=tuple(replace(v, extras=self._extras) for v in answer.violations))

    def outputs(self, case: Case) -> dict[str, Any]:
        """Run a case once and return its outputs as literals; what went wrong under ``error``."""
        answer = self.child.ask(self.subject, {"case": case.to_json(), "outputs": True})
        if isinstance(answer, Outcome):
            return {"error": answer.violations[0].message}
        return dict(answer["outputs"])


class HarnessError(RuntimeError):
    """The harness itself failed in the child; holds the traceback."""


class NoMemoryError(HarnessError):
    """A case could not be run for want of memory, which other processes may have taken: that says nothing of it."""
