"""A night recognises the kept cases of earlier nights, those whose reduction was cut short too."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from zoo.entry import FRONT_DOOR

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify import campaign, corpus
from moeproof.verify.child import Inline
from moeproof.verify.events import Event
from moeproof.verify.finding import reduce_to_finding
from moeproof.verify.lanes.schema import Examples
from moeproof.verify.nightly import slices
from moeproof.verify.nightly.examples import chain
from moeproof.verify.nightly.schedule import Unit
from moeproof.verify.nightly.store import Slice, Store

torch.set_num_threads(1)  # several test processes share the cores
UNIT = Unit(
    "a", f"{FRONT_DOOR}:zoo:gate-tie-higher-id", "zoo:gate-tie-higher-id", "fused_gate", max_elements=1024, cases=40
)
CUT_SHORT, WHOLE = 0.0, 600.0
"""Seconds of a reduction."""
Night = Callable[[str, float], list[Event]]


@pytest.fixture
def night(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Night:
    """Return a function that runs a ``corpus`` or ``fuzz`` slice of a new night in one folder, and gives its events."""

    def call(kind: str, seconds: float) -> list[Event]:
        monkeypatch.setattr(
            campaign, "reduce_to_finding", lambda *a, **k: reduce_to_finding(*a, **(k | {"seconds": seconds}))
        )
        events: list[Event] = []
        store = Store(tmp_path / "state.sqlite")
        run = store.open_run(600.0, seed=7)
        store.prepare(run.id, {"devices": [], "corpus": []}, [UNIT], 600.0, replay_seconds=600.0)
        slices.run_slice(
            Slice(1, kind, UNIT, 600.0, time.time() + 600.0, cases=UNIT.cases), events.append,
            out=tmp_path, corpus=(), seed=3, children=slices.Children(tmp_path, 1), memory=slices.Memory(),
            examples=chain(tmp_path / "examples" / str(time.time_ns()), Examples(), print),
            store=store,
        )  # fmt: skip
        store.finish(run.id)
        return events

    monkeypatch.setattr(corpus, "SHIPPED", tmp_path / "none")
    monkeypatch.setattr(slices.SliceCampaign, "_executor", lambda campaign, subject: Inline(subject))
    return call


def told(events: list[Event], *kinds: str) -> list[str]:
    """Return the identities of the findings that events of some kinds are about."""
    return [event.data["identity"] for event in events if event.kind in kinds]


def reductions(events: list[Event]) -> int:
    return sum(event.kind == "reducing" for event in events)


def test_what_was_cut_short_is_known_the_next_night(night: Night) -> None:
    (first,) = told(night("fuzz", CUT_SHORT), "finding")
    replay = night("corpus", WHOLE)
    assert (told(replay, "finding"), told(replay, "known"), reductions(replay)) == ([], [first], 0)
    assert replay[-1].data["subjects"][UNIT.name]["failures"] == {"tie_order": 1}


def test_it_is_known_as_the_one_that_another_night_has_reduced(night: Night) -> None:
    (short,) = told(night("fuzz", CUT_SHORT), "finding")
    events = night("fuzz", WHOLE)
    (whole,) = told(events, "finding")
    assert whole != short
    assert [e.data.get("instead_of") for e in events if e.kind == "finding"] == [short]
    replay = night("corpus", WHOLE)
    assert (told(replay, "finding"), told(replay, "known"), reductions(replay)) == ([], [whole], 0)


def test_another_case_of_its_subject_and_check_is_reduced(night: Night, tmp_path: Path) -> None:
    (short,) = told(night("fuzz", CUT_SHORT), "finding")
    logits = TensorSpec("float32", (1, 3), rows=((1.0, 1.0, 0.5),))
    corpus.keep(tmp_path / "corpus", "another", Case("fused_gate", {"topk": 1}, {"logits": logits}))
    replay = night("corpus", WHOLE)
    assert reductions(replay) >= 1
    assert len(told(replay, "finding")) == 1
    assert short not in told(replay, "finding")
