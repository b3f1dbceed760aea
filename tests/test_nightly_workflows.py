"""The workflow files that ship are sound, and planted mistakes in them are caught."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHECKER = ROOT / "ci" / "check_workflows.py"
sys.path.insert(0, str(CHECKER.parent))

from check_workflows import check  # noqa: E402


@pytest.fixture
def workflow(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "ci" / "github" / "nightly.yml", tmp_path))


def test_the_workflows_that_ship_are_sound() -> None:
    done = subprocess.run([sys.executable, CHECKER], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 workflows, 0 problems" in done.stdout


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        ("runs-on:", "runs_on:", "'runs_on' was unexpected"),
        ("    timeout-minutes: 480\n", "", "job fuzz: timeout-minutes is missing"),
        (
            "permissions:\n  contents: read\n\n#",
            "permissions: write-all\n\n#",
            "permissions of the workflow are 'write-all'",
        ),
        ("LANE: ${{ matrix.lane }}", "LANE: ${{ matrix.lan }}", "names matrix.lan; allowed: gpu, lane, packages"),
        ("inputs.seconds ||", "inputs.second ||", "names inputs.second; allowed: seconds"),
        ("${{ !cancelled() }}", "${{ !canceled() }}", "calls canceled; allowed: always, cancelled"),
        ("github.run_id", "githb.run_id", "names 'githb'; allowed: env, github"),
        ("actions/checkout@v4", "actions/checkout", "uses 'actions/checkout'; allowed: an action with a version"),
        ("ci/nightly.sh --lane", "ci/nihgtly.sh --lane", "runs 'ci/nihgtly.sh'; allowed: what exists"),
        ('--lane "$LANE"', "--lane ${{ inputs.seconds }}", "allowed: through env, or it is run as code"),
        ("          fi\n", "", "is no shell script"),
        ("    steps:", "    needs: [build]\n    steps:", "needs 'build'; allowed: fuzz"),
    ],
)
def test_a_broken_workflow_is_caught(workflow: Path, good: str, bad: str, words: str) -> None:
    text = workflow.read_text(encoding="utf-8")
    assert good in text
    workflow.write_text(text.replace(good, bad), encoding="utf-8")
    problems = check(workflow)
    assert problems
    assert words in "\n".join(problems)


def test_the_command_names_what_is_wrong_and_fails(workflow: Path) -> None:
    workflow.write_text("name: broken\non: push\njobs: {}\n", encoding="utf-8")
    for path, code in ((workflow, 1), (workflow.parent / "none", 2)):
        done = subprocess.run([sys.executable, CHECKER, path], capture_output=True, text=True, check=False)
        assert done.returncode == code
        assert path.name in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("gate.sh", [], "BASE is missing; allowed: a revision"),
        ("nightly.sh", [], "moeproof is not on PATH"),
        ("gate.sh", ["HEAD"], "moeproof is not on PATH"),
    ],
)
def test_shell_entry_points_say_what_is_missing(script: str, arguments: list[str], words: str) -> None:
    done = subprocess.run(
        ["bash", ROOT / "ci" / script, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 2
    assert words in done.stderr


def test_the_gate_script_refuses_an_unknown_base(tmp_path: Path) -> None:
    fake = tmp_path / "moeproof"
    fake.write_text('#!/bin/sh\necho ran "$@"\n', encoding="utf-8")
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = ["bash", str(ROOT / "ci" / "gate.sh")]
    done = subprocess.run([*command, "no-such-revision"], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert "BASE is 'no-such-revision'; allowed: a revision" in done.stderr
    if not (ROOT / ".git").exists():
        pytest.skip("the next part needs a git clone")
    done = subprocess.run(
        [*command, "HEAD", str(tmp_path / "out"), "--seed", "3"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert f"ran gate --base HEAD --out {tmp_path / 'out'} --summary {tmp_path / 'out'}/summary.md" in done.stdout
    assert done.stdout.strip().endswith("--seed 3")
