"""One run of `moeproof sanitize`: every tool over every subject's corpus and a few generated cases."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from moeproof.strategies.case import Case, CaseError
from moeproof.strategies.domain_check import why_outside
from moeproof.strategies.draws import NoChoicesLeftError
from moeproof.verify import corpus
from moeproof.verify.child import HarnessError
from moeproof.verify.coverage import Coverage, expert_buckets
from moeproof.verify.events import Event, Sink
from moeproof.verify.explore import derived, explore, inside
from moeproof.verify.finding import Finding, artefacts, make_finding, version_of
from moeproof.verify.reduce.engine import reduce_case
from moeproof.verify.subject import Subject, Unavailable, find
from moeproof.verify.violation import Violation

from .executor import Focused, Key, Observed, SanitizedChild, ToolError
from .reports import Report
from .tools import Tool, chosen

ELEMENTS = 1 << 14
"""Largest number of elements in a generated tensor: the tools cost ten to a hundred times a plain run."""
CONFIRM = 3
"""Runs of a case that has a report, until it has it again; the case before it gets as many."""
LOSSES = 3
"""Processes lost to one subject under one tool, after which it is left out there."""
TORCH = ("at::", "at_cuda_detail::", "c10::")
"""Starts of the names of torch's own kernels, which a subject may launch and nobody blames it for."""
PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class Lane:
    """What a run is asked to do.

    Attributes
    ----------
    program : Path
        compute-sanitizer.
    work : tuple of Work
        Subjects and their cases.
    out : Path
        Folder of findings and corpus.
    seconds : float, optional
        Time to run cases in, without start-up and reduction; shared evenly among tools and subjects.
    case_seconds, reduce_seconds : float
        Time limits of one case and of one reduction.
    """

    program: Path
    work: tuple[Work, ...]
    out: Path
    seconds: float | None = None
    case_seconds: float = 120.0
    reduce_seconds: float = 30.0

    @property
    def processes(self) -> int:
        """Starts of a process under a tool, if none dies."""
        return len({(tool.name, work.family) for work in self.work for tool in work.tools})

    @property
    def runs(self) -> int:
        """Cases to run, under each tool."""
        return sum(len(work.cases) * len(work.tools) for work in self.work)


@dataclass(frozen=True)
class Work:
    """One subject, the tools to run it under, and its cases."""

    subject: Subject
    tools: tuple[Tool, ...]
    cases: tuple[Case, ...]

    @property
    def family(self) -> str:
        """The part of the subject's name that says which library it belongs to."""
        return self.subject.name.partition(":")[0]


def generated_work(
    subjects: Iterable[Subject], tools: Iterable[Tool], *, folders: Iterable[Path], cases: int, seed: int
) -> tuple[list[Work], list[str]]:
    """Return each subject with the corpus of its op and `cases` generated ones, and what can't be read or drawn."""
    entries, problems = corpus.load(folders)
    work = []
    for subject in subjects:
        chosen_cases = [e.case for e in entries if e.case.op == subject.op]
        drawn: list[Case] = []
        try:
            strategy = inside(subject.op, subject.domain, max_elements=ELEMENTS)
            explore(strategy, drawn.append, start=derived(seed, subject.name), count=cases)
        except (NoChoicesLeftError, ValueError) as error:
            problems.append(f"{subject.name}: no case of its domain can be drawn: {error}")
        fitting = [c for c in [*chosen_cases, *drawn] if why_outside(c, subject.domain) is None]
        work.append(Work(subject, tuple(tools), tuple(fitting)))
    return work, problems


def work_of_files(files: Iterable[Path], subjects: list[Subject] | None, tools: list[str]) -> list[Work]:
    """Return the work that case files ask for; a finding of a tool runs under that tool, on its own subject.

    Parameters
    ----------
    files : iterable of Path
        Case files; one beside a ``finding.json`` belongs to that finding.
    subjects : list of Subject, optional
        Run on these instead.
    tools : list of str
        Run under these instead.

    Raises
    ------
    ValueError
        If a file can't be read, or names no subject; a `SubjectError` or `CaseError` is one.
    """
    merged: dict[tuple[str, tuple[Tool, ...]], tuple[Subject, list[Case]]] = {}
    for path in files:
        case = corpus.read_case(path)
        beside = path.with_name("finding.json")
        summary = json.loads(beside.read_text(encoding="utf-8")) if path.name == "case.json" and beside.exists() else {}
        if not isinstance(summary, dict) or (subjects is None and "subject" not in summary):
            raise CaseError(f"{path} belongs to no finding that names its subject; allowed: name one with --subject")
        check = summary.get("check")
        own = chosen(tools or ([check] if check in {t.name for t in chosen([])} else []))
        for subject in find([str(summary.get("source") or summary["subject"])]) if subjects is None else subjects:
            if subject.op == case.op:
                merged.setdefault((subject.name, tuple(own)), (subject, []))[1].append(case)
    return [Work(subject, own, tuple(cases)) for (_, own), (subject, cases) in merged.items()]


@dataclass
class _State:
    """What a run knows of one subject."""

    device: str
    coverage: Coverage = field(default_factory=Coverage)
    failures: Counter[str] = field(default_factory=Counter)
    spent: float = 0.0
    seen: set[tuple[str, Key]] = field(default_factory=set)
    passed_over: set[Key] = field(default_factory=set)


class LaneRun:
    """Runs a lane in this process.

    Parameters
    ----------
    lane : Lane
        What to do.
    sink : callable
        Takes the run's events.
    """

    def __init__(self, lane: Lane, sink: Sink) -> None:
        self.lane = lane
        self.sink = sink
        self.states: dict[str, _State] = {}
        self.out: set[str] = set()
        self.reducing = 0.0
        self.running = 0.0
        self._shown = 0.0

    def run(self) -> None:
        """Run until the work is done or time is up."""
        tools = {tool.name: tool for work in self.lane.work for tool in work.tools}
        parts = [(tool, work) for tool in tools.values() for work in self.lane.work if tool in work.tools]
        children: dict[str, SanitizedChild] = {}
        try:
            for position, (tool, work) in enumerate(parts):
                if any(child.tool != tool for child in children.values()):
                    self._close(children)
                if work.family not in children:
                    limit = self.lane.case_seconds
                    children[work.family] = SanitizedChild(self.lane.program, tool, limit)
                share = None
                if self.lane.seconds is not None:
                    share = max(0.0, self.lane.seconds - self.running) / (len(parts) - position)
                if work.subject.name not in self.out:
                    self._part(children[work.family], work, share)
            self._close(children)
        finally:
            for child in children.values():
                child.kill()
            self._progress(force=True)

    def _close(self, children: dict[str, SanitizedChild]) -> None:
        """Let processes end, and say what speaks against taking their silence for a pass."""
        while children:
            _, child = children.popitem()
            child.close()
            for doubt in child.doubts:
                self._error(doubt)

    def _part(self, child: SanitizedChild, work: Work, share: float | None) -> None:
        """Run a subject's cases under one tool."""
        subject, name = work.subject, work.subject.name
        begin = time.monotonic()
        try:
            device = child.load(subject)
        except ToolError as error:
            self._error(str(error))
            return
        except Unavailable as error:
            self.out.add(name)
            self._emit("unavailable", subject=name, op=subject.op, reason=str(error))
            return
        start = time.monotonic() - begin
        if name not in self.states:
            self.states[name] = _State(device)
            version, experts = version_of(subject), expert_buckets(subject.domain)
            self._emit("subject", subject=name, op=subject.op, device=device, version=version, experts=experts)
        if not work.cases:
            self._error(f"{name}: there is no case to run")
        raised, losses, done = Counter[str](), 0, 0
        before = self.running
        for at, case in enumerate(work.cases):
            if (share is not None and self.running - before > share) or losses >= LOSSES:
                break
            begin = time.monotonic()
            try:
                observed = self._observed(child, subject, case)
            except (ToolError, HarnessError) as error:
                self._error(str(error))
                break
            spent = time.monotonic() - begin
            self.running += spent
            done += 1
            losses += bool(observed.lost)
            raised.update([observed.raised.partition("\n")[0]] if observed.raised and not observed.lost else [])
            self._took(child, work, at, observed, spent)
        if done and raised.total() == done:
            self._error(f"{name} raised on every case under {child.tool.name}, so that nothing was checked")
        for text, count in raised.items():
            self._note(f"{name} raised on {count} cases under {child.tool.name}; `moeproof fuzz` judges that: {text}")
        text = f"{child.tool.name}: {name}: {done} of {len(work.cases)} cases in {self.running - before:.1f} s"
        self._note(f"{text}, start {start:.1f} s")
        if losses >= LOSSES:
            self._error(f"{name} is left out under {child.tool.name} after {losses} lost processes")

    def _observed(self, child: SanitizedChild, subject: Subject, case: Case) -> Observed:
        """Run a case; if the process is lost without a report, once more in a new one: a tool may hang by itself."""
        first = child.observe(subject, case)
        if not first.lost or first.reports:
            return first
        second = child.observe(subject, case)
        if second.lost and not second.reports:
            return first
        kept = self._kept("lost", case)
        self._note(f"{subject.name} under {child.tool.name} with {kept}: {first.lost}; not so in a new process")
        return second

    def _kept(self, what: str, case: Case) -> Path:
        return corpus.keep(self.lane.out / "corpus", f"{what}-{derived(case.dumps()):x}", case)

    def _took(self, child: SanitizedChild, work: Work, at: int, observed: Observed, spent: float) -> None:
        """Take in what one run of a case gave."""
        case, state = work.cases[at], self.states[work.subject.name]
        state.spent += spent
        rows = case.main.shape[0] if case.main.shape else 0
        path = work.subject.path(case) if work.subject.path is not None else ""
        state.coverage.add(case, rows, path, failed=bool(observed.reports))
        if observed.lost and not observed.reports:
            lost = f"{work.subject.name} under {child.tool.name} with {self._kept('lost', case)}: {observed.lost}"
            self._error(f"{lost}, and again in a new process")
        for key, report in observed.reports.items():
            if report.kernel.startswith(TORCH) and "reference" not in work.subject.tags:
                if key not in state.passed_over:
                    text = f"{child.tool.name} reports in a kernel of torch's own, which {work.subject.name} launches"
                    self._note(f"{text}: passed over: {report.describe(observed.buffers, observed.counts[key])}")
                state.passed_over.add(key)
                continue
            state.failures[child.tool.name] += 1
            message = report.describe(observed.buffers, observed.counts[key])
            self._emit("failure", subject=work.subject.name, check=child.tool.name, message=message)
            if (child.tool.name, key) in state.seen:
                continue
            state.seen.add((child.tool.name, key))
            try:
                self._found(child, work, at, report)
            except (ToolError, HarnessError) as error:
                self._error(str(error))
        self._progress()

    # -- findings ------------------------------------------------------------------------------------------------

    def _found(self, child: SanitizedChild, work: Work, at: int, report: Report) -> None:
        """Find the case that a report belongs to, reduce it, and write the finding."""
        self._emit("reducing", subject=work.subject.name, check=child.tool.name)
        begin = time.monotonic()
        focused = Focused(work.subject, child, report.key)
        case, violation = self._culprit(focused, [work.cases[at], *work.cases[max(0, at - 1) : at]])
        if case is None or violation is None:
            self.reducing += time.monotonic() - begin
            kept = self._kept("once", work.cases[at])
            self._error(f"{work.subject.name}: {child.tool.name} reported once, not again, near {kept}: {report.text}")
            return
        finding = self._reduced(focused, case, violation)
        self.reducing += time.monotonic() - begin
        place = self.lane.out / "findings" / finding.identity
        kind = "known" if (place / "finding.json").exists() else "finding"
        if kind == "finding":
            finding.write(self.lane.out / "findings")
            corpus.keep(self.lane.out / "corpus", finding.identity, finding.case)
        self._emit(kind, **finding.summary(), **artefacts(place), folder=str(place))

    def _culprit(self, focused: Focused, cases: list[Case]) -> tuple[Case, Violation] | tuple[None, None]:
        # A report may be printed late, when the next case runs already.
        for case in cases:
            for _ in range(CONFIRM):
                if violations := focused.run(case).violations:
                    return case, violations[0]
        return None, None

    def _reduced(self, focused: Focused, case: Case, violation: Violation) -> Finding:
        """Reduce a case that has a report, and return the finding."""
        reduced = reduce_case(focused, case, violation, seconds=self.lane.reduce_seconds)
        if not reduced.failed:  # a late report has led reduction astray
            reduced = replace(reduced, case=case, violation=violation, failed=1, runs=1, complete=False)
        assert focused.report is not None
        actual = {"report": focused.report.text}
        device = self.states[focused.subject.name].device
        finding = make_finding(focused.subject, reduced, refusal=False, device=device, actual=actual)
        return replace(finding, identity=identity(focused.subject, focused.child.tool.name, focused.key))

    # -- events --------------------------------------------------------------------------------------------------

    def _emit(self, kind: str, **data: Any) -> None:
        self.sink(Event(kind, {"worker": 0, **data}))

    def _note(self, text: str) -> None:
        self._emit("note", text=text)

    def _error(self, text: str) -> None:
        self._emit("note", text=text, error=True)

    def _progress(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._shown < PROGRESS_SECONDS:
            return
        self._shown = now
        subjects = {n: {**s.coverage.to_json(), "failures": dict(s.failures)} for n, s in self.states.items()}
        spent = {name: state.spent for name, state in self.states.items()}
        self._emit("progress", subjects=subjects, spent=spent, seconds=self.running, reducing=self.reducing)


def identity(subject: Subject, tool: str, key: Key) -> str:
    """Return what tells one defect from another: subject, tool, kind of error, and kernel."""
    return hashlib.sha256("\n".join([subject.name, tool, *key]).encode()).hexdigest()[:10]
