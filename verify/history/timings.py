"""Results of `moeproof bench` as a run with timings."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

from moeproof.verify.bench.results import Measured, Results, ShapeResult, Timing
from moeproof.verify.bench.shapes import NAMES

from .record import RunRecord

TIMING = ("op", "subject", "shape", "median", "low", "high", "clock", "eager", "status", "detail", "path", "family")
"""Fields of a timing, besides those of its shape: ``series``, ``axis``, ``size``, ``floor`` and ``empty``.

``median``, ``low`` and ``high`` are microseconds by the ``clock`` (``graph``, ``events`` or ``host``), None where
``status`` tells why there is none. ``eager``, ``floor`` and ``empty`` are medians too.
"""


def from_bench(text: str) -> RunRecord:
    """Return results of `moeproof bench` as a run; the same results give the same run.

    Raises
    ------
    ResultsError
        The text holds none.
    """
    results = Results.loads(text)
    about = results.environment
    try:
        started = datetime.fromisoformat(str(about.get("started"))).timestamp()
    except ValueError:
        started = 0.0
    name = hashlib.sha256(results.dumps().encode()).hexdigest()[:32]
    run = RunRecord(name, "bench", started=started, seen=started, ended=started, exit=0, details=dict(about))
    for shape in results.shapes:
        for subject, measured in shape.subjects.items():
            run.timings.append(_timing(shape, subject, measured, results.families.get(subject, "")))
    return run


def _timing(result: ShapeResult, subject: str, measured: Measured, family: str) -> dict[str, Any]:
    shape, timing = result.shape, measured.device or measured.eager
    about = timing.estimate if timing is not None else None
    return {
        "op": NAMES[shape.op],
        "subject": subject,
        "shape": shape.label,
        "series": shape.series,
        "axis": shape.axis,
        "size": shape.size,
        "median": about.value if about else None,
        "low": about.low if about else None,
        "high": about.high if about else None,
        "clock": timing.method if timing else "",
        "eager": _median(measured.eager),
        "floor": _median(result.floor),
        "empty": _median(result.empty),
        "status": measured.status,
        "detail": measured.detail,
        "path": measured.path,
        "family": family,
    }


def _median(timing: Timing | None) -> float | None:
    return None if timing is None else timing.estimate.value
