"""What a gate's outcome means, and how it is written down."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from gate_kit.sarif import problems

from moeproof.verify.bench.statistics import Estimate
from moeproof.verify.gate.git import Checkout
from moeproof.verify.gate.reports import junit, markdown
from moeproof.verify.gate.rule import Ratio
from moeproof.verify.gate.sarif import sarif, workflow_commands
from moeproof.verify.gate.selection import Touched
from moeproof.verify.gate.speed import Speed
from moeproof.verify.gate.verdict import BROKEN, FAILED, PASSED, SKIPPED, Check, Outcome
from moeproof.verify.lanes.schema import Lane
from moeproof.verify.subject import find

FINDING = {
    "identity": "0123456789", "subject": "numpy:fused_gate", "check": "tie_order", "severity": "medium",
    "title": "numpy:fused_gate: it is | wrong, 100%", "message": "row 0:\nexperts [1], expected <0>",
    "script": "print('''```''')\n", "case": "{}", "known": False,
}  # fmt: skip
SLOW = Ratio(Estimate(1.08, 1.07, 1.09), Estimate(1.0, 0.99, 1.01), 3.24, 3.0, 20, 0.03)
SAME = replace(SLOW, ratio=Estimate(1.0, 0.99, 1.01), candidate=3.0)


@pytest.fixture
def outcome(tmp_path: Path) -> Outcome:
    found = Checkout(tmp_path, "origin/main", "b" * 40, "a" * 40, False, ("kernels/a b.cu", "kernels/x.py"))
    subjects = find(["numpy:fused_gate", "own:fused_gate@delays"])
    files = {"kernels/x.py": "", "kernels/a b.cu": "kernels/x.py"}
    hit = [Touched(Lane("own", ("own",)), s, files, s if s.device != "cuda" else None) for s in subjects]
    return Outcome(found, hit, 0, "cpu", checks=[Check("numpy:fused_gate", "contract", PASSED, "9 cases", told=True)])


def failed(outcome: Outcome) -> Outcome:
    outcome.findings = {"0123456789": dict(FINDING)}
    outcome.speeds = [Speed("numpy:fused_gate", "gate E=256 T=1", "device", SLOW, SLOW)]
    outcome.checks = [
        Check("numpy:fused_gate", "contract", FAILED, "9 cases", told=True),
        Check("numpy:fused_gate", "speed", FAILED, "1 of 1 comparisons slower by more than 3%", told=True),
        Check("numpy:fused_gate", "torch.library.opcheck", FAILED, "OpCheckError: no\nat all\x00"),
        Check("own:fused_gate@delays", "tests", SKIPPED, "needs a CUDA device"),
    ]
    return outcome


def test_verdicts(outcome: Outcome) -> None:
    assert (outcome.verdict, outcome.code) == ("pass", 0)
    assert outcome.headline == "pass: 1 touched subject tested, 1 subject left to a machine that can run them"
    outcome.speeds = [Speed("numpy:fused_gate", "gate E=256 T=1", "device", SLOW, SAME)]
    assert outcome.verdict == "pass"  # slower once, not again
    outcome.findings = {"0123456789": {**FINDING, "listed": "known since long"}}
    assert outcome.verdict == "pass"
    outcome.errors = ["Traceback\nValueError: the harness"]
    assert (outcome.code, outcome.headline) == (2, "no verdict: ValueError: the harness")
    assert failed(outcome).code == 1  # what failed has failed, whatever else went wrong
    assert outcome.failures == [
        "tie_order: numpy:fused_gate: it is | wrong, 100%",
        "speed: numpy:fused_gate is 8.0% (7.0 to 9.0) slower at gate E=256 T=1 (device clock)",
        "torch.library.opcheck: numpy:fused_gate: OpCheckError: no\nat all\x00",
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"checks": [Check("numpy:fused_gate", "parity with torch", BROKEN, "it is wrong")]}, "parity with torch: "),
        ({"interrupted": True}, "it was interrupted"),
        ({"checks": []}, "nothing of what the change touches can run on this machine"),
    ],
)
def test_what_leaves_no_verdict(outcome: Outcome, change: dict[str, object], words: str) -> None:
    made = replace(outcome, **change)
    assert made.code == 2
    assert words in made.headline
    if not made.checks:
        assert replace(made, partial=True).code == 0


def test_nothing_touched_is_a_pass_if_the_harness_works(outcome: Outcome) -> None:
    made = replace(outcome, touched=[])
    assert made.headline == "pass: no kernel is touched; the harness works"
    assert replace(made, findings={"0123456789": FINDING}).code == 1


def test_sarif(outcome: Outcome) -> None:
    report = json.loads(sarif(failed(outcome)))
    assert problems(report) == []
    (run,) = report["runs"]
    assert [r["ruleId"] for r in run["results"]] == ["tie_order", "speed", "not-run"]
    assert run["invocations"][0]["exitCode"] == 1
    # Kernels before what launches them; a space is no character of a URI.
    places = {r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in run["results"]}
    assert places == {"kernels/a%20b.cu"}
    assert len({r["partialFingerprints"]["moeproof/v1"] for r in run["results"]}) == 3
    report["runs"][0]["results"][0]["ruleIndex"] = 1
    assert problems(report) == ["ruleIndex is another rule's"]  # the rules can be broken


def test_workflow_commands_escape_what_github_reads(outcome: Outcome) -> None:
    lines = workflow_commands(failed(outcome))
    assert lines[0] == (
        "::error file=kernels/a b.cu,line=1,title=moeproof tie_order::numpy:fused_gate: it is | wrong, 100%25"
        "%0Arow 0:%0Aexperts [1], expected <0>"
    )
    assert all("\n" not in line for line in lines)
    outcome.touched = [replace(outcome.touched[0], files={"a,b:c.cu": ""})]
    assert "file=a%2Cb%3Ac.cu,line=1," in workflow_commands(outcome)[0]


def test_junit(outcome: Outcome) -> None:
    root = ElementTree.fromstring(junit(failed(outcome)))
    assert {name: root.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "5", "failures": "4", "errors": "0", "skipped": "1",
    }  # fmt: skip
    texts = {case.get("name"): "".join(case.itertext()) for case in root.iter("testcase")}
    assert "expected <0>" in texts["contract"]
    assert "gate E=256 T=1, device clock: +8.0% (+7.0 to +9.0)" in texts["speed"]
    assert "expected <0>" not in texts["speed"]
    assert "at all\ufffd" in texts["torch.library.opcheck"]  # what XML can't hold
    assert "fail: 3 reasons" in junit(outcome)


def test_markdown(outcome: Outcome) -> None:
    text = markdown(failed(outcome))
    assert text.startswith("## moeproof gate: fail: 3 reasons\n")
    assert "| `own:fused_gate@delays` | kernels/x.py, kernels/a b.cu (by kernels/x.py) | not on this machine |" in text
    assert "| 3.00 | 3.24 | +8.0% (+7.0 to +9.0) | -1.0 to +1.0% | **slower** |" in text
    assert "````python" in text  # the script holds a fence
    assert "it is \\| wrong" in text
    outcome.findings["0123456789"]["listed"] = "an upstream issue"
    assert "- listed as known: `0123456789`" in markdown(outcome)


def test_json_holds_everything(outcome: Outcome) -> None:
    made = json.loads(json.dumps(failed(outcome).to_json()))
    assert (made["verdict"], made["exit"], made["base"]["asked"]) == ("fail", 1, "origin/main")
    assert made["speed"][0]["again"]["ratio"] == [1.08, 1.07, 1.09]
    assert "script" not in made["findings"][0]
