"""A night's replay of kept cases: it keeps to its time, and over the nights each case has its turn."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from zoo.entry import FRONT_DOOR

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify import corpus
from moeproof.verify.child import Inline
from moeproof.verify.events import Event
from moeproof.verify.execute import Outcome
from moeproof.verify.lanes.reader import load_lanes
from moeproof.verify.lanes.schema import Examples
from moeproof.verify.nightly import slices
from moeproof.verify.nightly.examples import chain, save_case
from moeproof.verify.nightly.plan import LEAST_SECONDS, replay_seconds
from moeproof.verify.nightly.schedule import Unit
from moeproof.verify.nightly.store import Store
from moeproof.verify.nightly.supervisor import Night, Request

torch.set_num_threads(1)  # several test processes share the cores
RIGHT = f"{FRONT_DOOR}:zoo:right-gate"
UNIT = Unit("a", RIGHT, "zoo:right-gate", "fused_gate")


@pytest.fixture(autouse=True)
def _no_shipped_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SHIPPED", tmp_path / "none")


def case(experts: int) -> Case:
    logits = TensorSpec("float32", (1, experts), rows=((0.5,) * experts,))
    return Case("fused_gate", {"topk": 1, "renormalize": False}, {"logits": logits})


class Nights:
    """Nights in one folder, on a clock that a case moves on by a second."""

    def __init__(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.out = out
        self.store = Store(out / "state.sqlite")
        self.ran: list[int] = []
        self.memory = slices.Memory()
        self.events: list[Event] = []
        clock = [0.0]

        def run(inline: Inline, case: Case, *args: Any, **kwargs: Any) -> Outcome:
            clock[0] += 1.0
            self.ran.append(case.main.shape[1])
            return Outcome(())

        monkeypatch.setattr(slices, "time", SimpleNamespace(monotonic=lambda: clock[0], time=time.time))
        monkeypatch.setattr(slices.SliceCampaign, "_executor", lambda campaign, subject: Inline(subject))
        monkeypatch.setattr(Inline, "run", run)

    def replay(self, seconds: float) -> list[int]:
        """Run the corpus slice of a new night and return the cases that ran, by their number of experts."""
        run = self.store.open_run(600.0, seed=7)
        self.store.prepare(run.id, {"devices": [], "corpus": []}, [UNIT], 600.0, replay_seconds=seconds)
        self.store.restart(run.id)
        work = self.store.take(self.store.join("gw0", 1, []).id)
        assert work is not None
        assert (work.kind, work.seconds) == ("corpus", seconds)
        self.ran = []
        slices.run_slice(
            work, self.events.append, out=self.out, corpus=(), seed=1, children=slices.Children(self.out, 1),
            memory=self.memory, examples=chain(self.out / "examples", Examples(), print), store=self.store,
        )  # fmt: skip
        self.store.done(work.id, 1.0, len(self.ran))
        self.left = self.store.unreplayed(run.id)
        self.store.finish(run.id)
        return self.ran


def test_a_large_corpus_keeps_to_its_time_and_all_of_it_is_replayed_over_the_nights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights = Nights(tmp_path, monkeypatch)
    for experts in range(1, 6):
        corpus.keep(tmp_path / "corpus", f"case-{experts}", case(experts))
    first = nights.replay(1.5)
    assert first == [1, 2]
    assert nights.left == {UNIT.key: 3}
    assert nights.replay(1.5) == [3, 4]
    assert nights.replay(1.5)[:1] == [5]
    corpus.keep(tmp_path / "corpus", "new", case(9))
    assert nights.replay(0.5) == [9]  # never replayed: before all others
    every = nights.replay(100.0)
    assert Counter(every) == Counter([1, 2, 3, 4, 5, 9])
    assert every[-1] == 9
    assert nights.left == {}


def test_what_other_machines_have_stored_keeps_to_its_time_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nights = Nights(tmp_path, monkeypatch)
    database = chain(tmp_path / "examples", Examples(), print)
    for experts in range(1, 6):
        save_case(database, case(experts))
    first = nights.replay(4.0)
    assert len(first) == 2
    assert len({*first, *nights.replay(100.0)}) == 5  # the rest, by the same worker


def test_a_share_of_the_night_is_spread_over_the_replays() -> None:
    units = [Unit("a", f"f{n}:op", f"f{n}:op", "fused_gate", preset=p) for n in range(5) for p in ("", "kimi-k2")]
    assert replay_seconds(units, 1000.0, 2) == pytest.approx(100.0)
    assert replay_seconds(units, 1.0, 1) == LEAST_SECONDS
    assert replay_seconds([], 1000.0, 2) > 0


def test_the_end_of_a_night_says_what_was_left(tmp_path: Path) -> None:
    lanes = tmp_path / "lanes.toml"
    lanes.write_text(f'[lane.a]\nsubjects = ["{RIGHT}", "numpy:fused_gate", "torch:fused_gate"]\n', encoding="utf-8")
    found = load_lanes(lanes)
    night = Night(Request(found, found.lanes, 600.0, tmp_path / "out", 1, [], 7), None)
    try:
        night._prepare()
        night.store.restart(night.run.id)
        work = night.store.take(night.store.join("gw0", 1, []).id)
        assert work is not None
        night.store.note_replays(work.unit, ["x"], 12)
        night.store.done(work.id, 1.0, 1)
        night.store.absent("torch:fused_gate", "gone")
        night.end({"exit": 0})
        notes = night.summary.notes
    finally:
        night.close()
    assert len(notes) == 1
    assert notes[0].endswith(": all on numpy:fused_gate, 12 on zoo:right-gate")
