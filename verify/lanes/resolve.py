"""Finds the subjects that lanes name."""

from __future__ import annotations

from moeproof.verify.subject import Subject, SubjectError, find

from .reader import LanesError
from .schema import Lane, Lanes


def subjects_of(lanes: Lanes, lane: Lane) -> list[Subject]:
    """Return the subjects of a lane.

    Raises
    ------
    LanesError
        If a name is unknown, or no subject is left of the lane's ops.
    """
    where = f"{lanes.path}: lane {lane.name!r}"
    try:
        found = find(lane.subjects)
    except SubjectError as error:
        raise LanesError(f"{where}: subjects: {error}") from error
    chosen = [s for s in found if not lane.ops or s.op in lane.ops]
    if not chosen:
        have = ", ".join(sorted({s.op for s in found}))
        raise LanesError(f"{where}: ops is {list(lane.ops)!r}; allowed for its subjects: {have}")
    return chosen
