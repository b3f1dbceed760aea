"""Runs cases under a tool, in a process that is replaced when it dies, and turns reports into violations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from moeproof.strategies.case import Case
from moeproof.verify.channel import DeadError
from moeproof.verify.child import START_SECONDS, HarnessError
from moeproof.verify.execute import Outcome
from moeproof.verify.subject import Subject, Unavailable
from moeproof.verify.violation import Violation

from .process import SanitizedProcess
from .reports import Report
from .tools import Tool

Key = tuple[str, str]
"""`Report.key`."""


class ToolError(Unavailable):
    """A tool, or the process under it, can't do its work: what it checks is unknown then, other than where a subject
    can't run on this machine at all."""


@dataclass(frozen=True)
class Observed:
    """What one run of a case under a tool gave.

    Attributes
    ----------
    reports : dict
        The first report of each key.
    counts : Counter
        How many reports each key got.
    raised : str
        What the subject raised.
    lost : str
        Why the process is gone: it died, or it gave no answer in time; empty if it is not.
    buffers : mapping of str to str
        Names of tensors by the address of their allocation.
    """

    reports: Mapping[Key, Report] = field(default_factory=dict)
    counts: Counter[Key] = field(default_factory=Counter)
    raised: str = ""
    lost: str = ""
    buffers: Mapping[str, str] = field(default_factory=dict)


class SanitizedChild:
    """A process under one tool that runs cases on any number of subjects.

    Parameters
    ----------
    program : Path
        compute-sanitizer.
    tool : Tool
        The tool.
    seconds : float
        Time limit of one case.
    """

    def __init__(self, program: Path, tool: Tool, seconds: float) -> None:
        self.program = program
        self.tool = tool
        self.seconds = seconds
        self.starts = 0
        self.doubts: list[str] = []
        self._process: SanitizedProcess | None = None

    def load(self, subject: Subject) -> str:
        """Load a subject in the process, starting it if need be, and return the name of its device.

        Raises
        ------
        Unavailable
            If the subject can't run on this machine.
        ToolError
            If it can't be loaded under the tool.
        """
        name = subject.source or subject.name
        process = self._started()
        if name in process.loaded:
            return process.loaded[name]
        try:
            answer = process.ask({"subject": name}, START_SECONDS)
        except DeadError as error:
            self._drop()
            raise ToolError(f"the process died loading {name} under {self.tool.name}: {error}") from None
        except TimeoutError:
            self._drop()
            raise ToolError(f"{name} took more than {START_SECONDS:.0f} s to load under {self.tool.name}") from None
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        for report in process.reports():
            self.doubts.append(f"{self.tool.name} reports while {subject.name} is loaded: {report.describe({}, 1)}")
        return process.loaded.setdefault(name, answer["ready"])

    def observe(self, subject: Subject, case: Case) -> Observed:
        """Run a case and return what the tool reported.

        Raises
        ------
        ToolError
            If the subject can't be loaded again.
        HarnessError
            If the driver failed outside the subject.
        """
        try:
            self.load(subject)
        except Unavailable as error:
            raise ToolError(f"{subject.name} can't be loaded again under {self.tool.name}: {error}") from None
        process = self._started()
        answer: dict[str, object] = {}
        lost = ""
        try:
            answer = process.ask({"subject": subject.source or subject.name, "case": case.to_json()}, self.seconds)
        except TimeoutError:
            lost = f"no answer within {self.seconds:g} s"
        except DeadError as error:
            lost = f"the process died: {error}"
        reports = process.reports()
        if lost or answer.get("fatal"):
            self._drop()
        if "fault" in answer:
            raise HarnessError(str(answer["fault"]))
        first: dict[Key, Report] = {}
        for report in reports:
            first.setdefault(report.key, report)
        buffers = answer.get("buffers", {})
        assert isinstance(buffers, dict)
        raised = str(answer.get("raised", ""))
        if answer.get("fatal") and not lost:
            lost = f"the CUDA context is lost: {raised}"
        return Observed(first, Counter(r.key for r in reports), raised, lost, buffers)

    def close(self) -> None:
        """Let the process end, and keep what is odd about its end in `doubts`."""
        process, self._process = self._process, None
        if process is not None:
            self.doubts += process.finish()

    def kill(self) -> None:
        """End the process at once."""
        self._drop()

    def _started(self) -> SanitizedProcess:
        if self._process is None:
            self.starts += 1
            try:
                self._process = SanitizedProcess(self.program, self.tool, START_SECONDS)
            except DeadError as error:
                raise ToolError(f"{self.tool.name} can't start a process: {error}") from None
            except TimeoutError:
                raise ToolError(f"{self.tool.name} started no process within {START_SECONDS:.0f} s") from None
        return self._process

    def _drop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()


class Focused:
    """Runs cases on one subject and looks for reports of one key: what reduction holds on to.

    Parameters
    ----------
    subject : Subject
        The implementation.
    child : SanitizedChild
        Runs it.
    key : tuple
        `Report.key` of the defect.
    """

    def __init__(self, subject: Subject, child: SanitizedChild, key: Key) -> None:
        self.subject = subject
        self.child = child
        self.key = key
        self.report: Report | None = None

    def run(self, case: Case, extras: tuple[str, ...] = (), *, refusal: bool = False) -> Outcome:
        """Run a case under the tool; its violation, if there is one, has the tool's name as its class."""
        observed = self.child.observe(self.subject, case)
        report = observed.reports.get(self.key)
        if report is None:
            return Outcome()
        self.report = report
        message = report.describe(observed.buffers, observed.counts[self.key])
        return Outcome((Violation(self.child.tool.name, message),), fatal=bool(observed.lost))
