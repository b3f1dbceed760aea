"""Reductions that are cut short: one defect has one name all the same."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo import RIGHT, WRONG

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify import campaign as module
from moeproof.verify import corpus
from moeproof.verify.child import Inline
from moeproof.verify.config import Config
from moeproof.verify.coordinator import Summary, run
from moeproof.verify.finding import Finding, make_finding, reduce_to_finding
from moeproof.verify.reduce.engine import Reduced
from moeproof.verify.subject import Subject
from moeproof.verify.unfinished import attributed, leads_to
from moeproof.verify.violation import Violation

torch.set_num_threads(1)  # several test processes share the cores
TIE = "gate-tie-higher-id"
SUBJECTS = {s.name.removeprefix("zoo:"): s for s in [*RIGHT, *(entry.subject for entry in WRONG)]}
NO_TIME = 0.0
RECIPE = {
    "kind": "scores",
    "seed": 1,
    "blocks": [{"pattern": "normal", "center": 0.0, "scale": 1.0, "quantised": False}],
    "edits": [],
}


@pytest.fixture(autouse=True)
def _no_shipped_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SHIPPED", tmp_path / "none")


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Summary]:
    """Return a function that runs a campaign on a subject whose reductions get the seconds that are given, in turns."""

    def call(out: Path, *seconds: float, seed: int = 3, known: tuple[Path, ...] = ()) -> Summary:
        turns = itertools.chain(seconds, itertools.repeat(seconds[-1]))
        monkeypatch.setattr(
            module, "reduce_to_finding", lambda *a, **k: reduce_to_finding(*a, **(k | {"seconds": next(turns)}))
        )
        config = Config(
            subjects=(f"zoo:{TIE}",),
            cases=40,
            seed=seed,
            out=out,
            known=known,
            isolate=False,
            max_elements=1024,
        )
        return run(config, [])

    monkeypatch.setattr(module, "find", lambda names: [s for s in SUBJECTS.values() if s.name in names])
    return call


def names(summary: Summary) -> list[tuple[str, bool]]:
    return [(f["check"], f["complete"]) for f in summary.findings.values()]


def test_a_slow_subject_and_a_tiny_limit_give_one_name(
    tmp_path: Path, fuzz: Callable[..., Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Inline.run

    def slow(self: Inline, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.02)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Inline, "run", slow)
    found = [fuzz(tmp_path / str(seed), 0.1, seed=seed) for seed in (3, 4)]
    assert all(summary.failures[f"zoo:{TIE}"]["tie_order"] > 3 for summary in found)
    assert [names(summary) for summary in found] == [[("tie_order", False)]] * 2
    assert list(found[0].findings) == list(found[1].findings)
    # The case that has a name is kept once.
    assert len(list((tmp_path / "3" / "corpus").rglob("*.json"))) == 1


def test_what_is_cut_short_is_the_kept_finding_that_it_would_become(
    tmp_path: Path, fuzz: Callable[..., Summary]
) -> None:
    whole = fuzz(tmp_path, 600.0)
    assert names(whole) == [("tie_order", True)]
    again = fuzz(tmp_path, NO_TIME, seed=4)
    assert list(again.findings) == list(whole.findings)
    assert next(iter(again.findings.values()))["known"]


def test_it_is_the_listed_finding_that_it_would_become(tmp_path: Path, fuzz: Callable[..., Summary]) -> None:
    (name,) = fuzz(tmp_path / "one", 600.0).findings
    listed = tmp_path / "one" / "findings" / name
    summary = fuzz(tmp_path / "two", NO_TIME, seed=4, known=(listed,))
    (found,) = summary.findings.values()
    assert (found["identity"], found["known"], found["folder"]) == (name, True, str(listed))


@pytest.mark.parametrize("seconds", [(NO_TIME, 600.0), (600.0, NO_TIME)])
def test_one_that_is_cut_short_waits_for_the_next(
    seconds: tuple[float, ...], tmp_path: Path, fuzz: Callable[..., Summary]
) -> None:
    assert names(fuzz(tmp_path, *seconds)) == [("tie_order", True)]
    assert not list((tmp_path / "corpus").rglob("raw-*.json"))


def test_one_that_nothing_follows_is_reported_at_the_end(
    tmp_path: Path, fuzz: Callable[..., Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REDUCTIONS", 1)
    summary = fuzz(tmp_path, NO_TIME)
    assert names(summary) == [("tie_order", False)]
    (file,) = (tmp_path / "corpus").rglob("*.json")
    assert file.stem in summary.findings


def _finding(subject: Subject, case: Case, *, complete: bool) -> Finding:
    reduced = Reduced(case, Violation("tie_order", "row 0"), 10, 10, 1, 1.0, complete)
    return make_finding(subject, reduced, refusal=False, device="cpu", actual={})


def gate(rows: tuple[tuple[float, ...], ...], **params: Any) -> Case:
    logits = TensorSpec("float32", (len(rows), len(rows[0])), rows=rows)
    return Case("fused_gate", {"topk": 1, "renormalize": False, **params}, {"logits": logits})


def test_a_kept_finding_must_still_happen_and_be_of_the_same_subject(tmp_path: Path) -> None:
    wrong, right = SUBJECTS[TIE], SUBJECTS["right-gate"]
    kept = _finding(wrong, gate(((0.0, 0.0),)), complete=True)
    kept.write(tmp_path)
    larger = _finding(wrong, gate(((1.0, 1.0, 0.5),) * 9, scoring="softmax"), complete=False)
    folders = [tmp_path / kept.identity]
    assert attributed(larger, folders, Inline(wrong), 600.0) == folders[0]
    assert attributed(larger, folders, Inline(right), 600.0) is None  # it was mended
    assert attributed(replace(larger, subject=right), folders, Inline(wrong), 600.0) is None


def test_reduction_takes_traits_away_and_adds_none() -> None:
    nan = float("nan")
    least = gate(((nan, 0.0),), scoring="softmax")
    assert leads_to(gate(((nan, 0.0, 1.0),) * 20, scoring="softmax", renormalize=True), least)
    assert not leads_to(gate(((nan, 0.0, 1.0),) * 20), least)
    assert not leads_to(gate(((2.0, 0.0),), scoring="softmax"), least)
    assert not leads_to(gate(((0.0, 0.0),)), gate(((0.0, 0.0),) * 9))
    recipe = TensorSpec("float32", (1, 2), recipe=RECIPE)
    assert leads_to(least.but(logits=recipe), least)  # who knows what it holds
    assert leads_to(gate(((0.0,) * 8,), num_expert_group=4), gate(((0.0,) * 4,), num_expert_group=2))
    assert not leads_to(gate(((0.0,) * 8,)), gate(((0.0,) * 4,), num_expert_group=2))


def test_an_empty_batch_leads_to_none_but_an_empty_one() -> None:
    empty = gate(((0.0, 0.0),)).but(logits=TensorSpec("float32", (0, 2), rows=()))
    assert leads_to(empty.but(topk=2), empty)
    assert not leads_to(gate(((0.0, 0.0),)), empty)
    assert not leads_to(empty, gate(((0.0, 0.0),)))
