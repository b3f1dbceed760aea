"""Compares a run with an older one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .analysis import device_timing, eager_timing
from .results import Results, ShapeResult, Timing
from .statistics import Estimate, unpaired_ratio


@dataclass(frozen=True)
class Change:
    """How one time has changed.

    Attributes
    ----------
    label, subject, clock : str
        Shape, subject, and ``"device"`` or ``"eager"``.
    ratio : Estimate
        New time over old.
    control : Estimate, optional
        The same for the floor, or for the host's dispatch of a small operation, which no change of code can move: how
        far the two runs differ by themselves.
    """

    label: str
    subject: str
    clock: str
    ratio: Estimate
    control: Estimate | None

    @property
    def verdict(self) -> str:
        """``"faster"``, ``"slower"``, or ``"same"`` where the change may be noise or the machine's own."""
        low = min(1.0, self.control.low) if self.control else 1.0
        high = max(1.0, self.control.high) if self.control else 1.0
        return "slower" if self.ratio.low > high else "faster" if self.ratio.high < low else "same"


def changes(new: Results, old: Results) -> Iterator[Change]:
    """Yield the change of each subject that both runs have a right result of, shape by shape."""
    before = {s.shape: s for s in old.shapes}
    for result in new.shapes:
        earlier = before.get(result.shape)
        if earlier is not None:
            yield from _changes(result, earlier)


def _changes(new: ShapeResult, old: ShapeResult) -> Iterator[Change]:
    controls = {"device": _ratio(new.floor, old.floor), "eager": _ratio(new.dispatch, old.dispatch)}
    for name, measured in new.subjects.items():
        if name not in old.subjects:
            continue
        was = old.subjects[name]
        for clock, pick in (("device", device_timing), ("eager", eager_timing)):
            if clock == "device" and measured.device is None:
                continue
            ratio = _ratio(pick(measured), pick(was))
            if ratio is not None:
                yield Change(new.shape.label, name, clock, ratio, controls[clock])


def _ratio(new: Timing | None, old: Timing | None) -> Estimate | None:
    if new is None or old is None or new.method != old.method:
        return None
    return unpaired_ratio(new.samples, old.samples)
