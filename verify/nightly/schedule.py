"""Decides which unit of work comes next, so that time is spread by weight and by what found bugs lately."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

BONUS_LIMIT = 3.0
"""A subject with recent findings gets up to so much more time than its neighbours, on top of its own share."""


@dataclass(frozen=True)
class Unit:
    """What one slice of time is spent on: one subject of one lane, in shapes of one kind.

    Attributes
    ----------
    lane : str
        Name of the lane.
    target : str
        What `subject.find` takes for one subject; the path of a test file where `op` is empty.
    name : str
        The subject's name, as events have it.
    op : str
        Its op; empty for a test file.
    preset : str
        Model preset, or empty for shapes of every kind.
    checks : tuple of str
        The lane's checks.
    weight : float
        The lane's weight.
    slice_seconds : float
        Length of a slice.
    lane_seconds, cases : float and int, optional
        Budgets: of the lane, and of the unit.
    max_elements, case_seconds, reduce_seconds
        As in `Config`.
    """

    lane: str
    target: str
    name: str
    op: str
    preset: str = ""
    checks: tuple[str, ...] = ("corpus", "fuzz")
    weight: float = 1.0
    slice_seconds: float = 60.0
    lane_seconds: float | None = None
    cases: int | None = None
    max_elements: int | None = None
    case_seconds: float = 30.0
    reduce_seconds: float = 20.0

    @property
    def key(self) -> str:
        """Name that tells units of a run apart."""
        return "|".join((self.lane, self.name, self.preset))

    @property
    def family(self) -> str:
        """Subjects of one family share a child process."""
        return self.name.partition(":")[0]

    def to_json(self) -> dict[str, Any]:
        """Return the unit as JSON data."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Unit:
        """Return the unit that `to_json` gave."""
        return Unit(**{**data, "checks": tuple(data["checks"])})


@dataclass(frozen=True)
class Spent:
    """What a run has given to a unit so far, slices under way included."""

    seconds: float = 0.0
    cases: int = 0


NOTHING = Spent()


def choose(
    units: Sequence[Unit],
    spent: Mapping[str, Spent],
    found: Mapping[str, float],
    warm: Collection[str],
) -> Unit | None:
    """Return the unit that is furthest behind its share.

    First the lane that has had least time for its weight, then in it the unit that has had least for its bonus: a
    fair queue, so shares hold whatever the slices' lengths, and after a reboot too.

    Parameters
    ----------
    units : sequence of Unit
        What may run.
    spent : mapping of str to Spent
        By `Unit.key`.
    found : mapping of str to float
        Findings of late by subject, older ones counting less.
    warm : collection of str
        Families that the worker has loaded; of equally deserving units, one of these comes first.

    Returns
    -------
    Unit, optional
        None if every budget is used up.
    """
    lanes: dict[str, list[Unit]] = {}
    for unit in units:
        lanes.setdefault(unit.lane, []).append(unit)
    had = {lane: sum(spent.get(u.key, NOTHING).seconds for u in members) for lane, members in lanes.items()}
    open_lanes: dict[str, list[Unit]] = {}
    for lane, members in lanes.items():
        limit = members[0].lane_seconds
        if limit is not None and had[lane] >= limit:
            continue
        left = [u for u in members if u.cases is None or spent.get(u.key, NOTHING).cases < u.cases]
        if left:
            open_lanes[lane] = left
    if not open_lanes:
        return None
    lane = min(open_lanes, key=lambda name: had[name] / lanes[name][0].weight)

    def behind(unit: Unit) -> tuple[float, bool]:
        bonus = 1.0 + min(BONUS_LIMIT, found.get(unit.name, 0.0))
        turns = spent.get(unit.key, NOTHING).seconds / (bonus * unit.slice_seconds)
        return (float(int(turns * 2)), unit.family not in warm)

    return min(open_lanes[lane], key=behind)
