"""Each planted bug is found within its number of examples, and shrinks to its size."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis.strategies import SearchStrategy
from zoo import WRONG, Entry

from moeproof.strategies.case import Case
from moeproof.verify.child import Child, Executor, Inline, Isolated
from moeproof.verify.explore import beyond, explore, inside
from moeproof.verify.extras import sampled
from moeproof.verify.reduce.engine import Reduced, reduce_case
from moeproof.verify.violation import Violation

DEADLY = {"cuda_error", "hang"}
MAX_ELEMENTS = 1 << 13


@dataclass(frozen=True)
class Found:
    case: Case
    violation: Violation
    refusal: bool


def hunt(executor: Executor, entry: Entry, seed: int) -> Found | None:
    """Return the first failure of an admissible class within the entry's number of examples."""
    subject = executor.subject
    strategy = inside(subject.op, subject.domain, max_elements=MAX_ELEMENTS)
    found = first_failure(executor, entry, strategy, seed, refusal=False)
    if found is None and "domain" in entry.check:
        return first_failure(executor, entry, beyond(subject.domain), seed, refusal=True)
    return found


def first_failure(
    executor: Executor, entry: Entry, strategy: SearchStrategy[Case], seed: int, *, refusal: bool
) -> Found | None:
    ran = 0
    found: list[Found] = []

    def body(case: Case) -> None:
        nonlocal ran
        if found:
            return
        extras = () if refusal else sampled(ran, executor.subject.op)
        ran += 1
        outcome = executor.run(case, extras, refusal=refusal)
        found.extend(Found(case, v, refusal) for v in outcome.violations if v.check in entry.check)

    explore(strategy, body, start=seed, count=entry.examples)
    return found[0] if found else None


def reduced(executor: Executor, found: Found) -> Reduced:
    # What kills its process costs a new one, and a hang the watchdog's time too, at each try.
    seconds = 60 if isinstance(executor, Isolated) else 20
    return reduce_case(executor, found.case, found.violation, seconds=seconds, refusal=found.refusal)


def sizes(case: Case) -> dict[str, int]:
    main = case.tensors["logits" if case.op == "fused_gate" else "topk_ids"]
    if case.op == "moe_align_block_size":
        # Reduction spells ids as a column where it can: [3, 1] is as small as [1, 3].
        ids = main.shape[0] * main.shape[1]
        return {"rows": -(-ids // 3), "experts": int(case.params["num_experts"]), "topk": min(main.shape)}
    topk = case.params["topk"] if case.op == "fused_gate" else main.shape[1]
    experts = main.shape[1] if case.op == "fused_gate" else case.params["num_experts"]
    return {"rows": main.shape[0], "experts": int(experts), "topk": int(topk)}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # One thread, as in the child processes: the pool's start-up costs more than these small tensors.
    torch.set_num_threads(1)


@pytest.mark.parametrize("entry", WRONG, ids=lambda e: e.subject.name.partition(":")[2])
def test_planted_bug_is_found_and_shrinks(entry: Entry) -> None:
    if DEADLY & set(entry.check):
        with Child(seconds=2.0) as child:
            check_entry(Isolated(entry.subject, child), entry)
    else:
        check_entry(Inline(entry.subject), entry)


def check_entry(executor: Executor, entry: Entry) -> None:
    found = hunt(executor, entry, seed=0)
    assert found is not None, f"{entry.why} Not found in {entry.examples} examples."
    result = reduced(executor, found)
    got = sizes(result.case)
    limits = {"rows": entry.rows, "experts": entry.experts, "topk": entry.topk}
    too_large = {n: (got[n], limit) for n, limit in limits.items() if limit is not None and got[n] > limit}
    assert not too_large, f"{entry.why} Shrunk to {result.case.dumps()} (got, allowed): {too_large}"
    assert result.failed > 0


def test_the_zoo_is_large_enough() -> None:
    assert len(WRONG) >= 40
