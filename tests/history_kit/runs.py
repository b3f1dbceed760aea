"""Events of made-up runs, and a history of nights to report on."""

from __future__ import annotations

import itertools
from typing import Any

from moeproof.verify.bench.results import RIGHT, WRONG, Measured, Results, ShapeResult, Timing
from moeproof.verify.bench.shapes import Shape
from moeproof.verify.coverage import EXPERTS
from moeproof.verify.events import Event
from moeproof.verify.history.record import RunRecord, from_events

START = 1_700_000_000.0
DAY = 86_400.0
OWN, OTHER, ALIGN = "own:fused_gate", "vllm:fused_gate@grouped_topk", "own:moe_align_block_size"
SCRIPT = 'import sys\n\nprint("""wrong""", "<b>&amp;", sys.argv)\nsys.exit(1)\n'


def counts(cases: int, *, failed: int = 0, paths: bool = False) -> dict[str, Any]:
    """Return a subject's counts, as ``progress`` events hold them."""
    sizes = {"T=1": cases // 2, "T=2^5+1": cases // 4, "T=2^5..2^6": cases // 4, "E=2^8": cases, "k=2^3": cases}
    kinds = {
        "patterns": {"boundary_tie": cases, "normal": cases // 3},
        "specials": {"nan in one": 3},
        "flags": {"renormalize": cases},
        "sizes": sizes,
    }
    experts = {"129-256": {"cases": cases, "rows": cases * 10, "failed": failed}}
    return {
        "cases": cases,
        "rows": cases * 10,
        "counts": {**kinds, "path": {"hot": cases - 3, "general": 3}} if paths else kinds,
        "experts": experts,
        "failures": {"tie_order": failed} if failed else {},
    }


def finding(subject: str, identity: str = "0123456789", **changes: Any) -> dict[str, Any]:
    """Return a finding, as its event holds it."""
    return {
        "identity": identity,
        "subject": subject,
        "source": "",
        "version": "1.2",
        "op": "fused_gate",
        "check": "tie_order",
        "severity": "medium",
        "title": f"{subject}: experts with equal scores are not ordered by id (T=1, E=2, k=1)",
        "message": "row 0: experts [1], expected [0]",
        "outside_domain": False,
        "failed": 10,
        "runs": 10,
        "tries": 31,
        "seconds": 0.1,
        "complete": True,
        "device": "cpu",
        "moeproof": "0.1.0",
        "folder": f"/tmp/{identity}",
        "script": SCRIPT,
        "case": '{"op": "fused_gate"}',
        **changes,
    }


def run_events(
    name: str,
    subjects: dict[str, dict[str, Any]],
    *,
    start: float = START,
    found: tuple[dict[str, Any], ...] = (),
    known: bool = False,
    ended: bool = True,
) -> list[Event]:
    """Return the events of a run with two workers that share the cases evenly."""
    clock = itertools.count()

    def event(kind: str, **data: Any) -> Event:
        return Event(kind, data, start + next(clock), name)

    asked = {"job": "fuzz", "host": "gpu-1", "moeproof": "0.1.0", "revision": "abc", "seed": 3, "workers": 2}
    events = [event("start", **asked)]
    for subject in subjects:
        op = "moe_align_block_size" if subject == ALIGN else "fused_gate"
        about = {"op": op, "device": "cpu", "version": "1.2", "experts": list(EXPERTS)[3:6]}
        events.append(event("subject", worker=0, subject=subject, **about))
    events.append(event("unavailable", worker=0, subject="gone:fused_gate", op="fused_gate", reason="not installed"))
    events.append(event("note", worker=0, text="a case was in flight"))
    events += [event("known" if known else "finding", worker=0, **f) for f in found]
    for share in (0.5, 1):  # totals so far, which the next ones replace
        for worker in (0, 1):
            mine = {s: _scaled(c, share / 2) for s, c in subjects.items()}
            times = {"seconds": 60.0 * share, "reducing": 2.0, "spent": dict.fromkeys(subjects, 30.0 * share)}
            events.append(event("progress", worker=worker, subjects=mine, **times))
    if ended:
        events.append(event("end", exit=1 if found else 0, interrupted=False, errors=[]))
    return events


def _scaled(data: Any, factor: float) -> Any:
    if isinstance(data, dict):
        return {name: _scaled(value, factor) for name, value in data.items()}
    return int(data * factor)


def nights(*, hostile: str = "own:hostile") -> list[RunRecord]:
    """Return six nights and two benchmarks: a defect that comes and one that goes, and a subject with an odd name."""
    events: list[Event] = []
    for night in range(6):
        subjects = {
            OWN: counts(400 + 40 * night, paths=True),
            OTHER: counts(200, failed=4 if night < 3 else 0),
            ALIGN: counts(100),
            hostile: counts(40),
        }
        found = [finding(OTHER)] if night < 3 else []
        if night == 5:
            found += [
                finding(hostile, "feedbeef00", severity="critical", check="guard_zone", message=f"{hostile} </script>"),
                finding(ALIGN, "aaaaaaaaaa", op="moe_align_block_size", listed="known upstream"),
            ]
        events += run_events(f"{night:032x}", subjects, start=START + night * DAY, found=tuple(found), known=night == 1)
    return sorted([*from_events(events), bench(1), bench(4)], key=lambda run: run.started)


def bench(night: int) -> RunRecord:
    """Return a run of the benchmark."""
    from moeproof.verify.history.timings import from_bench

    return from_bench(bench_results(night).dumps())


def bench_results(night: int = 0) -> Results:
    """Return results of the benchmark: a curve a subject, one result wrong."""
    shapes = []
    for tokens in (1, 64, 4096):
        result = ShapeResult(Shape("gate", tokens, 256), 1024 * tokens, 64 * tokens, 4, True)
        result.floor, result.empty = _timing(1.5 + tokens / 1000), _timing(1.4)
        for factor, name in ((1.0, OWN), (1.5, OTHER)):
            result.subjects[name] = Measured(RIGHT, device=_timing(factor * (2 + tokens / 500)), eager=_timing(20.0))
        result.subjects["torch:fused_gate"] = Measured(WRONG, "weights: row 3")
        shapes.append(result)
    started = f"2023-11-{15 + night:02d}T12:00:00Z"
    environment = {"device": "NVIDIA H100 80GB HBM3", "started": started, "seed": night}
    return Results(environment, {OWN: "own", OTHER: "library"}, shapes)


def _timing(median: float) -> Timing:
    return Timing(tuple(median * (1 + 0.01 * (i - 5)) for i in range(11)), 100, "graph")
