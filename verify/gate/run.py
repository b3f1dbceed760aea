"""Runs a gate: what is touched is tested, then timed against the base."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from moeproof.verify import corpus
from moeproof.verify.config import Config
from moeproof.verify.coordinator import Summary, tee
from moeproof.verify.events import Event, Sink, environment
from moeproof.verify.lanes.schema import Lane, Lanes
from moeproof.verify.ledger import Ledger, folders_of
from moeproof.verify.subject import Subject, Unavailable

from . import opcheck, speed
from .campaign import CHECKED, GateCampaign, Plan, planned
from .git import Checkout, GitError
from .rule import SLOWER
from .selection import Touched, smoke
from .verdict import BROKEN, FAILED, PASSED, SKIPPED, Check, Outcome, signed

TEST_PART = 0.65
"""Part of the time for tests, sanitizers aside; the rest is for speed, and for what tests leave."""
SANITIZE_PART = 0.2
SANITIZERS = ("memcheck", "racecheck")
SANITIZED_CASES = 6
SMOKE = Plan(("fuzz",), ("any",))
SMOKE_CASES = 6
RUINED = ("cuda_error", "hang", "guard_zone", "memcheck")
"""Classes of findings after which a kernel is not timed: it may take the process or the GPU with it."""


@dataclass(frozen=True)
class Request:
    """What a gate is asked to do.

    Attributes
    ----------
    lanes : Lanes
        The lanes file.
    chosen : tuple of Lane
        Lanes of it.
    out : Path
        Folder of findings and logs.
    seconds : float
        Time to aim at.
    seed : int, optional
        Of all that is drawn; by lane if not given.
    cases : int, optional
        Generated cases of each subject.
    threshold : float, optional
        Slow-down that fails, in percent; by lane if not given.
    only : tuple of str
        Only these checks; empty for all that the lanes name.
    partial : bool
        What can't run here is left to another machine.
    cuda : bool
        There is a CUDA device.
    """

    lanes: Lanes
    chosen: tuple[Lane, ...]
    out: Path
    seconds: float
    seed: int | None = None
    cases: int | None = None
    threshold: float | None = None
    only: tuple[str, ...] = ()
    partial: bool = False
    cuda: bool = False

    def checks(self, lane: Lane) -> tuple[str, ...]:
        """Return the checks of a lane that are wanted."""
        return tuple(c for c in lane.checks if not self.only or c in self.only)

    def seed_of(self, lane: Lane) -> int:
        """Return the seed of a lane's cases."""
        return lane.seed if self.seed is None else self.seed


class Gate:
    """One run.

    Parameters
    ----------
    request : Request
        What to do.
    found : Checkout
        The change.
    hit : list of Touched
        What it touches.
    sinks : list of callable
        Take the run's events.
    ledger : Ledger, optional
        Known findings.
    tell : callable
        Takes lines for whoever watches.
    """

    def __init__(
        self,
        request: Request,
        found: Checkout,
        hit: list[Touched],
        sinks: list[Sink],
        ledger: Ledger | None,
        tell: Callable[[str], None],
    ) -> None:
        self.request = request
        self.summary = Summary()
        device = "cuda" if request.cuda else "cpu"
        self.outcome = Outcome(found, hit, request.seed or 0, device, partial=request.partial)
        self._known = folders_of(ledger)
        self._sink = tee(self.summary, sinks, ledger)
        self._tell = tell
        self._stages = itertools.count()
        self._begin = time.monotonic()

    def run(self) -> Outcome:
        """Run it; Ctrl-C ends it with what is known by then."""
        outcome, request = self.outcome, self.request
        asked = {"seconds": request.seconds, "seed": request.seed, "base": outcome.checkout.base}
        about = {**environment(), "revision": outcome.checkout.head}
        subjects = [t.subject.name for t in outcome.touched]
        self._sink(Event("start", {"job": "gate", **about, **asked, "subjects": subjects, "ops": [], "workers": 1}))
        try:
            if outcome.touched:
                self._test()
                self._time()
            else:
                self._smoke()
        except KeyboardInterrupt:
            outcome.interrupted = True
        outcome.findings = dict(self.summary.findings)
        outcome.errors += self.summary.errors
        outcome.notes += self.summary.notes
        outcome.seconds = time.monotonic() - self._begin
        self._sink(Event("end", {"exit": outcome.code, "interrupted": outcome.interrupted, "errors": outcome.errors}))
        return outcome

    def _left(self, part: float = 1.0) -> float:
        """Return the time on the monotonic clock at which a part of the run's time is over."""
        return self._begin + part * self.request.seconds

    # -- tests ---------------------------------------------------------------------------------------------------

    def _test(self) -> None:
        corpus.recover(self.request.out)
        by_lane: dict[str, list[Touched]] = defaultdict(list)
        for t in self.outcome.touched:
            if t.runs is None:
                reason = "needs a CUDA device, and torch sees none here"
                self._say(t.subject, "tests", SKIPPED, reason)
                self._sink(Event("unavailable", {"subject": t.subject.name, "op": t.subject.op, "reason": reason}))
            else:
                by_lane[t.lane.name].append(t)
        for number, group in enumerate(by_lane.values()):
            now, end = time.monotonic(), self._left(TEST_PART)
            self._lane(group[0].lane, [t.runs for t in group if t.runs], now + (end - now) / (len(by_lane) - number))
        for group in by_lane.values():
            self._sanitize(group[0].lane, [t.subject for t in group if t.runs is t.subject])
            self._opcheck(group[0].lane, [t.subject for t in group if t.runs is t.subject])

    def _lane(self, lane: Lane, subjects: list[Subject], deadline: float) -> None:
        checks = self.request.checks(lane)
        if not {"corpus", "fuzz", "parity", *CHECKED} & set(checks):
            return
        self._tell(f"{lane.name}: {', '.join(s.name for s in subjects)}")
        cases = planned(subjects, self.request.cases or lane.cases, cuda=self.request.cuda)
        campaign = self._campaign(lane, subjects, Plan(checks, lane.presets, cases), deadline)
        for subject in subjects:
            self._report(subject, campaign)

    def _campaign(self, lane: Lane, subjects: Sequence[Subject], plan: Plan, deadline: float) -> GateCampaign:
        config = Config(
            subjects=tuple(s.source or s.name for s in subjects),
            cases=1,  # the plan says how many
            seed=self.request.seed_of(lane),
            out=self.request.out,
            corpus=self.request.lanes.corpus,
            known=self._known,
            max_elements=lane.max_elements,
            case_seconds=lane.case_seconds,
            reduce_seconds=lane.reduce_seconds,
        )
        campaign = GateCampaign(config, self._stage(), plan, deadline)
        campaign.run()
        return campaign

    def _stage(self) -> Sink:
        """Return a sink for one part of the run: what each counts is added up by its number."""
        number = next(self._stages)
        return lambda event: self._sink(replace(event, data={**event.data, "worker": number}))

    def _report(self, subject: Subject, campaign: GateCampaign) -> None:
        """Put what a campaign has found of a subject into checks."""
        found = [f for f in self.summary.findings.values() if f["subject"] == subject.name and not f.get("listed")]
        state = next((s for s in campaign.states if s.subject.name == subject.name), None)
        if state is None or state.out:
            reason = self.summary.unavailable.get(subject.name, "it could not run")
            # What was found before it was lost counts.
            self._say(subject, "tests", FAILED if found else SKIPPED, reason, told=bool(found))
            return
        special = {name: check for name, check in CHECKED.items() if name in campaign.plan.checks}
        rest = [f for f in found if f["check"] not in special.values()]
        text = f"{state.cases} cases, {state.coverage.rows} rows"
        if subject.name in campaign.late:
            text += ", cut short as time was up"
        text += "".join(f"; {check} failed {count} times" for check, count in state.failures.items())
        self._say(subject, "contract", FAILED if rest else PASSED, text, told=True)
        for name, check in special.items():
            reason = self._beside(subject, state.executor.device, name)
            count = campaign.checked[subject.name]
            reason = reason or ("" if count else "time was up before its turn")
            bad = [f["title"] for f in found if f["check"] == check]
            status = FAILED if bad else SKIPPED if reason else PASSED
            self._say(subject, name, status, bad[0] if bad else reason or f"{count} cases of its own", told=True)
        for reference, parity in campaign.parity.get(subject.name, {}).items():
            name = f"parity with {reference}"
            if parity.broken:
                self._say(subject, name, BROKEN, f"the reference breaks the contract: {parity.broken}")
            elif parity.same + parity.open:
                more = f", {parity.open} differ as the contract allows" if parity.open else ""
                self._say(subject, name, PASSED, f"{parity.same} cases equal{more}")
            else:
                late = subject.name in campaign.late
                reason = "time was up before its turn" if late else "no case that both support and pass"
                self._say(subject, name, SKIPPED, parity.missing or reason)

    def _beside(self, subject: Subject, device: str, check: str) -> str:
        """Return why a check does not apply to a subject; empty if it does."""
        if check == "batch_invariance" and subject.op == "fused_gate":
            return "" if subject.batch_invariant and subject.bitwise else "it does not promise that"
        if check == "graph_replay" and not device.startswith("cuda"):
            return "needs a CUDA device"
        if check == "graph_replay" and not subject.capturable:
            return "it does not promise that"
        return "it is no registered op" if check == "opcheck" and "fake" not in subject.tags else ""

    def _sanitize(self, lane: Lane, subjects: list[Subject]) -> None:
        if "sanitize" not in self.request.checks(lane):
            return
        from moeproof.verify.sanitize import tools
        from moeproof.verify.sanitize.lane import Lane as Job
        from moeproof.verify.sanitize.lane import LaneRun, generated_work

        on_gpu = [s for s in subjects if self.request.cuda and s.device != "cpu" and not self._ruined(s)]
        for subject in subjects:
            if subject not in on_gpu:
                self._say(subject, "sanitize", SKIPPED, "needs a CUDA device, and a subject that does not crash")
        if not on_gpu:
            return
        try:
            program = tools.locate()
        except Unavailable as error:
            for subject in on_gpu:
                self._say(subject, "sanitize", SKIPPED, str(error))
            return
        self._tell(f"{lane.name}: {', '.join(SANITIZERS)}")
        chosen = tools.chosen(SANITIZERS)
        seed = self.request.seed_of(lane)
        work, problems = generated_work(on_gpu, chosen, folders=[], cases=SANITIZED_CASES, seed=seed)
        self.outcome.notes += problems
        seconds = max(5.0, SANITIZE_PART * self.request.seconds)
        before = len(self.summary.errors)
        LaneRun(Job(program, tuple(work), self.request.out, seconds=seconds), self._stage()).run()
        for subject in on_gpu:
            bad = [
                f for f in self.summary.findings.values() if f["subject"] == subject.name and f["check"] in SANITIZERS
            ]
            status = FAILED if bad else BROKEN if len(self.summary.errors) > before else PASSED
            detail = bad[0]["title"] if bad else f"{SANITIZED_CASES} cases under {' and '.join(SANITIZERS)}"
            self._say(subject, "sanitize", status, detail, told=bool(bad))

    def _opcheck(self, lane: Lane, subjects: list[Subject]) -> None:
        for subject in subjects:
            if "opcheck" not in self.request.checks(lane) or subject.name != f"own:{subject.op}":
                continue
            if self._ruined(subject) or not self.request.cuda:
                continue
            wrong = opcheck.run(subject.op, self.request.seed_of(lane))
            self._say(subject, "torch.library.opcheck", FAILED if wrong else PASSED, wrong)

    def _ruined(self, subject: Subject) -> bool:
        return any(f["subject"] == subject.name and f["check"] in RUINED for f in self.summary.findings.values())

    def _smoke(self) -> None:
        """See that the harness works, where there is nothing else to see."""
        request = self.request
        from moeproof.verify.lanes.resolve import subjects_of

        known = [s for lane in request.chosen for s in subjects_of(request.lanes, lane)]
        subjects = smoke(known, cuda=request.cuda)
        plan = replace(SMOKE, cases=planned(subjects, SMOKE_CASES, cuda=request.cuda))
        campaign = self._campaign(request.chosen[0], subjects, plan, self._left())
        for subject in subjects:
            self._report(subject, campaign)

    # -- speed ---------------------------------------------------------------------------------------------------

    def _time(self) -> None:
        outcome, request = self.outcome, self.request
        device = outcome.device
        targets: list[speed.Target] = []
        for t in outcome.touched:
            if "bench" not in request.checks(t.lane):
                continue
            reason = self._untimed(t, device)
            shapes = () if reason else speed.shapes_of(t.subject, t.lane.shapes, device)
            if reason or not shapes:
                self._say(t.subject, "speed", SKIPPED, reason or "none of the shapes to measure is in its domain")
                continue
            percent = t.lane.speed_percent if request.threshold is None else request.threshold
            targets.append(speed.Target(t.subject, shapes, percent / 100))
        if not targets:
            return
        self._tell(f"speed: {', '.join(t.subject.name for t in targets)}")
        try:
            with outcome.checkout.base_files() as base:
                trees = speed.Trees(outcome.checkout.root, base, device)
                made = speed.measure(trees, targets, seed=request.seed or 0, deadline=self._left(), each=self._timed)
        except (GitError, OSError) as error:
            outcome.errors.append(f"the base can't be checked out: {error}")
            return
        outcome.speeds = made.speeds
        for target in targets:
            name = target.subject.name
            mine = [s for s in outcome.speeds if s.subject == name]
            slow = [s for s in mine if s.change == SLOWER]
            if name in made.failed:
                self._say(target.subject, "speed", FAILED, f"it can't be timed: {made.failed[name]}")
            elif name in made.absent:
                self._say(target.subject, "speed", SKIPPED, f"not compared with the base: {made.absent[name]}")
            else:
                text = f"{len(slow)} of {len(mine)} comparisons slower by more than {100 * target.threshold:g}%"
                self._say(target.subject, "speed", FAILED if slow else PASSED, text, told=True)

    def _timed(self, made: speed.Speed) -> None:
        self._tell(f"  {made.change:8} {made.subject}  {made.shape}  {made.clock}  {signed(made.ratio)}")

    def _untimed(self, t: Touched, device: str) -> str:
        """Return why a subject is not timed; empty if it is."""
        if not {"own", "reference"} & set(t.subject.tags) and not t.subject.source:
            return "it comes from no file of this checkout"
        if "simt" in t.subject.tags or "@" in t.subject.name or "reference" in t.subject.tags:
            return "it is not made for speed"
        if t.subject.device not in (device, "any"):
            return (
                "needs a CUDA device, and torch sees none here" if device == "cpu" else f"it runs on {t.subject.device}"
            )
        return "it crashed" if self._ruined(t.subject) else ""

    def _say(self, subject: Subject, name: str, status: str, detail: str, *, told: bool = False) -> None:
        self.outcome.checks.append(Check(subject.name, name, status, detail, told))
