"""Right implementations are never flagged: 200,000 rows of the zoo's right subjects and the references."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from zoo import RIGHT

from moeproof.strategies.case import Case
from moeproof.strategies.domain_check import why_outside
from moeproof.verify.execute import Runner
from moeproof.verify.explore import derived, explore, inside
from moeproof.verify.extras import sampled
from moeproof.verify.subject import Subject, find

ROWS = {"fused_gate": 5_400, "moe_align_block_size": 11_000, "append_shared_experts": 11_000}
"""Fewest rows that each subject of an op has to have right: together more than 200,000."""
MAX_ELEMENTS = {"fused_gate": 1 << 14, "moe_align_block_size": 1 << 12, "append_shared_experts": 1 << 13}
CHUNK = 40
SUBJECTS = [*RIGHT, *find(["numpy", "torch"])]


def test_subjects_make_200_000_rows() -> None:
    assert sum(ROWS[subject.op] for subject in SUBJECTS) >= 200_000


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.name)
def test_right_subject_is_never_flagged(subject: Subject) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    runner = Runner(subject, torch.device("cpu"))
    seen: Counter[str] = Counter()

    def body(case: Case) -> None:
        if seen["rows"] >= ROWS[subject.op] or why_outside(case, subject.domain) is not None:
            return
        outcome = runner.run(case, sampled(seen["cases"], subject.op))
        assert not outcome.violations, f"{outcome.violations[0]}\n{case.dumps()}"
        seen.update(cases=1, rows=outcome.rows)

    strategy = inside(subject.op, subject.domain, max_elements=MAX_ELEMENTS[subject.op])
    try:
        for start in range(100):
            explore(strategy, body, start=derived("right", subject.name, start), count=CHUNK)
            if seen["rows"] >= ROWS[subject.op]:
                break
    finally:
        torch.set_num_threads(threads)
    assert seen["rows"] >= ROWS[subject.op]
