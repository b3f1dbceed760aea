"""`moeproof sanitize` on the command line: what it refuses, what it prints first, how it ends."""

from __future__ import annotations

import json
import re
import stat
import sys
from pathlib import Path

import pytest
from sanitize import fake, stand_ins
from typer.testing import CliRunner

from moeproof.verify.cli import app
from moeproof.verify.sanitize import tools

RIGHT = stand_ins.RIGHT.source


def sanitize(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["sanitize", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, re.sub(r" [│|] ", " ", " ".join(result.output.split()))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a program that behaves like compute-sanitizer into CUDA_HOME, and nothing on PATH."""
    path = tmp_path / "cuda" / "bin" / tools.PROGRAM
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(fake.__file__).resolve()} "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return path


def test_without_the_program_it_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(tools, "PROGRAM", "no-such-sanitizer")
    code, text = sanitize("-s", RIGHT, "--out", tmp_path)
    assert code == 2
    assert f"no-such-sanitizer is not found (looked in PATH, {tmp_path}/bin" in text
    assert "install it, or set CUDA_HOME" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tool", "leakcheck"], "tool is 'leakcheck'; allowed: memcheck, racecheck, initcheck, synccheck"),
        (["-s", "nothing"], "subject is 'nothing'; allowed: "),
        (["-s", "numpy"], "subject is numpy, which run on the CPU: there is nothing to check"),
        (["--op", "gate"], "op is 'gate'; allowed: fused_gate"),
        (["--cases", "-1"], "cases is -1; allowed: 0 to 1e+06"),
        (["--seconds", "0"], "seconds is 0.0; allowed: 0.1 to 1e+07"),
        (["no-such-finding"], "path is 'no-such-finding'; allowed: a finding id below"),
        (["--ledger", "/no/such.toml"], "ledger is '/no/such.toml', which can't be read"),
    ],
)
def test_usage_errors_name_the_argument_and_exit_with_2(
    arguments: list[str], words: str, program: Path, tmp_path: Path
) -> None:
    subject = [] if "-s" in arguments else ["-s", RIGHT]
    code, text = sanitize(*subject, *arguments, "--out", tmp_path)
    assert code == 2
    assert words in text


def test_a_program_that_does_not_run_is_named(program: Path, tmp_path: Path) -> None:
    program.write_text("#!/bin/sh\nexit 1\n")
    code, text = sanitize("-s", RIGHT, "--out", tmp_path)
    assert code == 2
    assert f"{program} doesn't run" in text


def test_the_cost_comes_first_and_the_events_are_kept(program: Path, tmp_path: Path) -> None:
    code, text = sanitize("-s", RIGHT, "--tool", "memcheck", "--cases", "2", "--seed", "5", "--out", tmp_path)
    assert code == 0, text
    cost = text.index("1 process to start, about 11 s each on an H100, for")
    assert "compute-sanitizer 2025.3.1.0, seed 5" in text[:cost]
    assert cost < text.index("memcheck: stand_in:fused_gate@right: ")
    assert "no findings" in text
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert (events[0]["kind"], events[0]["job"], events[-1]["kind"], events[-1]["exit"]) == (
        "start",
        "sanitize",
        "end",
        0,
    )
