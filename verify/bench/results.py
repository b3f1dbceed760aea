"""What a run of the benchmark gives, and the JSON that holds it (docs/benchmarks/method.md)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from .shapes import Shape
from .statistics import Estimate, estimate

FORMAT = 1
RIGHT, WRONG, OUTSIDE, UNAVAILABLE, FAILED, EXCLUDED = "right", "wrong", "outside", "unavailable", "failed", "excluded"
"""Statuses of a subject at a shape: measured; measured, but the oracle rejects its result; the shape is outside the
declared domain; it can't run on this machine; it raised or ended the process; it ended the process before."""

_PLAIN = ("bytes_read", "bytes_written", "sets", "cold")


class ResultsError(ValueError):
    """A file that holds no results of the benchmark."""


@dataclass(frozen=True)
class Timing:
    """Samples of one time.

    Attributes
    ----------
    samples : tuple of float
        Microseconds a call, one a round.
    calls : int
        Calls that a sample is averaged over.
    method : str
        ``"graph"``, ``"events"`` or ``"host"``.
    """

    samples: tuple[float, ...]
    calls: int
    method: str

    @property
    def estimate(self) -> Estimate:
        """The median with its interval."""
        return estimate(self.samples)


@dataclass
class Measured:
    """A subject at a shape.

    Attributes
    ----------
    status : str
        See `RIGHT` and its neighbours.
    detail : str
        Why, where it isn't `RIGHT`; what went amiss besides.
    path : str
        The dispatch path, where the subject names it.
    device : Timing, optional
        The device's time.
    eager : Timing, optional
        The time on the host's clock.
    """

    status: str
    detail: str = ""
    path: str = ""
    device: Timing | None = None
    eager: Timing | None = None


@dataclass
class ShapeResult:
    """All that was measured at a shape.

    Attributes
    ----------
    shape : Shape
        The shape.
    bytes_read, bytes_written : int
        Bytes of the inputs and outputs of a call.
    sets : int
        Sets of inputs that calls rotate over.
    cold : bool
        The sets are so large together that none is in the last-level cache when its turn comes.
    floor, empty : Timing, optional
        A kernel that moves as many bytes, and an empty one.
    dispatch : Timing, optional
        One small operation of torch on the host's clock: no change of a subject moves it.
    subjects : dict of str to Measured
        By name.
    """

    shape: Shape
    bytes_read: int
    bytes_written: int
    sets: int
    cold: bool
    floor: Timing | None = None
    empty: Timing | None = None
    dispatch: Timing | None = None
    subjects: dict[str, Measured] = field(default_factory=dict)


@dataclass
class Results:
    """A run.

    Attributes
    ----------
    environment : dict
        Device, versions, seed and the like.
    families : dict of str to str
        ``"own"``, ``"library"``, ``"reference"`` or ``""`` by subject.
    shapes : list of ShapeResult
        In the order in which they were measured.
    """

    environment: dict[str, Any]
    families: dict[str, str]
    shapes: list[ShapeResult] = field(default_factory=list)

    def dumps(self) -> str:
        """Return the run as JSON text."""
        shapes = [_shape_json(s) for s in self.shapes]
        head = {"moeproof_bench": FORMAT, "environment": self.environment, "families": self.families}
        lines = ",\n".join(json.dumps(s) for s in shapes)
        return json.dumps(head, indent=1)[:-2] + f',\n "shapes": [\n{lines}\n ]\n}}\n'

    @classmethod
    def loads(cls, text: str) -> Results:
        """Read a run from JSON text.

        Raises
        ------
        ResultsError
            If it is none.
        """
        try:
            data = json.loads(text)
            if data["moeproof_bench"] != FORMAT:
                raise ResultsError(f"moeproof_bench is {data['moeproof_bench']!r}; allowed: {FORMAT}")
            shapes = [_shape_result(s) for s in data["shapes"]]
            return cls(data["environment"], data["families"], shapes)
        except ResultsError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"not results of moeproof bench: {type(error).__name__}: {error}") from error


def _timing_json(timing: Timing | None) -> dict[str, Any] | None:
    if timing is None:
        return None
    about = timing.estimate
    return {
        "median": round(about.value, 4),
        "low": round(about.low, 4),
        "high": round(about.high, 4),
        "method": timing.method,
        "calls": timing.calls,
        "samples": [round(s, 4) for s in timing.samples],
    }


def _timing(data: dict[str, Any] | None) -> Timing | None:
    return None if data is None else Timing(tuple(data["samples"]), data["calls"], data["method"])


def _shape_json(result: ShapeResult) -> dict[str, Any]:
    subjects = {}
    for name, m in result.subjects.items():
        timings = {"device": _timing_json(m.device), "eager": _timing_json(m.eager)}
        subjects[name] = {"status": m.status, "detail": m.detail, "path": m.path, **timings}
    plain = {name: getattr(result, name) for name in _PLAIN}
    return {
        "label": result.shape.label,
        "shape": asdict(result.shape),
        **plain,
        "floor": _timing_json(result.floor),
        "empty": _timing_json(result.empty),
        "dispatch": _timing_json(result.dispatch),
        "subjects": subjects,
    }


def _shape_result(data: dict[str, Any]) -> ShapeResult:
    subjects = {
        name: Measured(m["status"], m["detail"], m["path"], _timing(m["device"]), _timing(m["eager"]))
        for name, m in data["subjects"].items()
    }
    plain = {name: data[name] for name in _PLAIN}
    timings = {name: _timing(data[name]) for name in ("floor", "empty", "dispatch")}
    result = ShapeResult(Shape(**data["shape"]), **plain, subjects=subjects)
    result.floor, result.empty, result.dispatch = timings["floor"], timings["empty"], timings["dispatch"]
    return result
