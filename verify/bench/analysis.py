"""What the times of a shape say: ours against the fastest rival and the floor."""

from __future__ import annotations

from dataclasses import dataclass

from .results import RIGHT, Measured, Results, ShapeResult, Timing
from .statistics import Estimate, paired_ratio


@dataclass(frozen=True)
class Rival:
    """A subject with a right result and its time."""

    name: str
    timing: Timing


@dataclass(frozen=True)
class Row:
    """One shape in a comparison.

    Attributes
    ----------
    result : ShapeResult
        The shape and all its times.
    ours, rival : Rival, optional
        The subject that the comparison is about and the fastest other one; None where none gave a right result.
    speedup : Estimate, optional
        Time of the rival over ours.
    floors : Estimate, optional
        Our time over that of a kernel that only moves the bytes.
    eager, eager_rival : Rival, optional
        The same two on the host's clock; the fastest rival there may be another.
    """

    result: ShapeResult
    ours: Rival | None
    rival: Rival | None
    speedup: Estimate | None
    floors: Estimate | None
    eager: Rival | None
    eager_rival: Rival | None


def our_name(results: Results, result: ShapeResult) -> str | None:
    """Return the subject that a comparison at a shape is about: the own kernel, else the first one measured."""
    names = list(result.subjects)
    return next((n for n in names if results.families.get(n) == "own"), names[0] if names else None)


def device_timing(measured: Measured) -> Timing | None:
    """Return the device's time of a right result; on a CPU that is the host's."""
    return (measured.device or measured.eager) if measured.status == RIGHT else None


def eager_timing(measured: Measured) -> Timing | None:
    """Return the time on the host's clock of a right result."""
    return measured.eager if measured.status == RIGHT else None


def compare(results: Results) -> list[Row]:
    """Return a row for each shape."""
    return [compare_at(results, result) for result in results.shapes]


def compare_at(results: Results, result: ShapeResult) -> Row:
    """Return the row of one shape of a run."""
    name = our_name(results, result)
    device = {n: t for n, m in result.subjects.items() if (t := device_timing(m)) is not None}
    eager = {n: t for n, m in result.subjects.items() if (t := eager_timing(m)) is not None}
    kin = {n for n, family in results.families.items() if family == "own"}
    ours, rival = _pick(device, name, kin)
    ours_eager, rival_eager = _pick(eager, name, kin)
    speedup = floors = None
    if ours is not None and rival is not None:
        speedup = paired_ratio(rival.timing.samples, ours.timing.samples)
    if ours is not None and result.floor is not None:
        floors = paired_ratio(ours.timing.samples, result.floor.samples)
    return Row(result, ours, rival, speedup, floors, ours_eager, rival_eager)


def _pick(timings: dict[str, Timing], name: str | None, kin: set[str]) -> tuple[Rival | None, Rival | None]:
    """Return our time and that of the fastest other subject; variants of an own kernel are no rivals of it."""
    ours = Rival(name, timings[name]) if name in timings else None
    others = [Rival(n, t) for n, t in timings.items() if n != name and not (name in kin and n in kin)]
    return ours, min(others, key=lambda r: r.timing.estimate.value, default=None)
