"""Makes a run's units of work from its lanes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moeproof.strategies.presets import presets_in
from moeproof.verify.lanes.resolve import subjects_of
from moeproof.verify.lanes.schema import ANY_PRESET, Lane, Lanes
from moeproof.verify.pytest_plugin import gpu_count

from .schedule import Unit

TURNS = 3
"""A short run still gives each unit so many slices, if it can."""
LEAST_SECONDS = 2.0
"""Of a slice, however short the run."""
REPLAY_SHARE = 0.25
"""Part of a run's time that replays of kept cases may take: they find what has come back, only fuzzing what is new.
What is left over comes first in the next run."""
PER_GPU = 4
"""Most workers that one GPU gets by default: drawing and judging cases takes more time than the kernels."""


def devices() -> list[str]:
    """Return the GPUs of this machine as CUDA_VISIBLE_DEVICES has them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [part.strip() for part in visible.split(",") if part.strip()]
    return [str(number) for number in range(gpu_count())]


def default_workers(gpus: int, per_gpu: int | None) -> int:
    """Return how many workers a machine gets; each takes about two cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not gpus:
        return max(1, cores // 2)
    return gpus * (per_gpu or max(1, min(PER_GPU, cores // (2 * gpus))))


def replay_seconds(units: Sequence[Unit], seconds: float, workers: int) -> float:
    """Return how long the replay of kept cases on one subject of one lane may take, in a run of some workers."""
    replays = {(u.lane, u.name) for u in units if u.op and "corpus" in u.checks}
    return max(LEAST_SECONDS, REPLAY_SHARE * seconds * workers / max(1, len(replays)))


def make_units(lanes: Lanes, chosen: Sequence[Lane], seconds: float, workers: int) -> list[Unit]:
    """Return what a run may spend time on.

    A preset outside a subject's domain gives no unit.

    Raises
    ------
    LanesError
        If a lane names a subject that is not known.
    """
    units: list[Unit] = []
    for lane in chosen:
        common: dict[str, Any] = {
            "lane": lane.name,
            "checks": lane.checks,
            "weight": lane.weight,
            "slice_seconds": lane.slice_seconds,
            "lane_seconds": lane.seconds,
            "cases": lane.cases,
            "max_elements": lane.max_elements,
            "case_seconds": lane.case_seconds,
            "reduce_seconds": lane.reduce_seconds,
        }
        for subject in subjects_of(lanes, lane):
            inside = {p.name for p in presets_in(subject.domain, subject.op)}
            presets = ["" if p == ANY_PRESET else p for p in lane.presets if p == ANY_PRESET or p in inside]
            target = subject.source or subject.name
            units += [Unit(target=target, name=subject.name, op=subject.op, preset=p, **common) for p in presets]
        units += [Unit(target=t, name=f"tests:{Path(t).name}", op="", **common) for t in lane.tests]
    longest = max(LEAST_SECONDS, seconds * workers / (TURNS * max(1, len(units))))
    return [Unit(**{**u.__dict__, "slice_seconds": min(u.slice_seconds, longest)}) for u in units]
