"""The command line: exit codes, messages, interruption, replay."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import pytest
import torch
from interrupt_kit import interrupted
from typer.testing import CliRunner
from zoo.entry import FRONT_DOOR

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify import corpus
from moeproof.verify.cli import app

TIE, RIGHT = (f"{FRONT_DOOR}:zoo:{slug}" for slug in ("gate-tie-higher-id", "right-gate"))


def moeproof(*arguments: str | Path) -> tuple[int, str]:
    """Run a command in this process and return its exit code and all that it printed."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def tie() -> Case:
    logits = TensorSpec("float32", (1, 2), rows=((0.0, 0.0),))
    return Case("fused_gate", {"topk": 1, "renormalize": False}, {"logits": logits})


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a run that has found one tie."""
    out = tmp_path_factory.mktemp("out")
    code, text = moeproof("fuzz", "-s", TIE, "--cases", "25", "--seed", "3", "--out", out)
    assert code == 1, text
    assert "medium tie_order (new) zoo:gate-tie-higher-id" in text
    return out


def test_a_clean_run_exits_with_0(tmp_path: Path) -> None:
    code, text = moeproof("fuzz", "-s", RIGHT, "--cases", "5", "--seed", "3", "--out", tmp_path / "out")
    assert (code, "no findings" in text, "seed 3" in text) == (0, True, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-s", "nothing"], "subject is 'nothing'; allowed: "),
        (["-s", "[/red]"], "subject is '[/red]'; allowed: "),
        (["-s", "no_such.py"], "subject file is 'no_such.py'; allowed: an existing Python file"),
        (["--op", "gate"], "op is 'gate'; allowed: fused_gate, moe_align_block_size"),
        (
            ["-s", "numpy:fused_gate", "--op", "moe_align_block_size"],
            "op is moe_align_block_size; allowed for",
        ),
        (["--preset", "gpt-0"], "preset is 'gpt-0'; allowed: "),
        (["--corpus", "/no/such"], "corpus is '/no/such'; allowed: an existing folder"),
        (["--seconds", "0"], "seconds is 0.0; allowed: 0.1 to 1e+07"),
        (["--workers", "0"], "workers is 0; allowed: 1 to 256"),
        (["--seed", "-1"], "seed is -1"),
        (["--cases", "many"], "integer"),
        (["--out", "/dev/null/out"], "out is '/dev/null/out', which can't be written"),
    ],
)
def test_usage_errors_name_the_argument_and_exit_with_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    subject = [] if "-s" in arguments else ["-s", "numpy"]
    out = [] if "--out" in arguments else ["--out", str(tmp_path)]
    code, text = moeproof("fuzz", *subject, *out, "--cases", "1", *arguments)
    assert code == 2
    assert words in re.sub(r" [│|] ", " ", text)


def test_presets_are_known_by_name(tmp_path: Path) -> None:
    code, text = moeproof("fuzz", "-s", RIGHT, "--preset", "deepseek-v3", "--cases", "2", "--out", tmp_path)
    assert code == 0, text


def test_nothing_that_can_run_exits_with_2(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("own kernels run here")
    code, text = moeproof("fuzz", "-s", "own:fused_gate", "--cases", "1", "--out", tmp_path)
    assert code == 2
    assert "needs a CUDA device" in text


def test_a_finding_is_replayed_by_id_and_below_a_folder(found: Path) -> None:
    (place,) = (found / "findings").iterdir()
    for path in (place.name, found):
        code, text = moeproof("replay", path, "--out", found, *(["-s", TIE] if path == found else []))
        assert code == 1, text
        assert "tie_order: row 0" in text
    code, text = moeproof("replay", place.name, "--out", found, "-s", RIGHT)
    assert code == 0
    assert "1 replayed, 0 failed" in text


def test_a_case_file_runs_on_every_subject_of_its_op(tmp_path: Path) -> None:
    path = corpus.keep(tmp_path, "tie", tie())
    code, text = moeproof("replay", path, "-s", "numpy", "-s", TIE)
    assert code == 1
    assert "passed numpy:fused_gate" in text
    assert "FAILED zoo:gate-tie-higher-id" in text


@pytest.mark.parametrize("path", ["0123456789", "x" * 300, "no/such/case.json"])
def test_what_can_not_be_replayed_is_named(path: str, tmp_path: Path) -> None:
    code, text = moeproof("replay", path, "--out", tmp_path)
    assert code == 2
    assert f"path is '{path}'" in text


@pytest.mark.parametrize("text", ["{}", "[[[", "null"])
def test_a_bad_case_file_is_a_problem_not_a_crash(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(text)
    code, output = moeproof("replay", tmp_path, "-s", "numpy")
    assert code == 2
    assert "bad.json" in output
    assert "1 could not be run" in output


@pytest.mark.parametrize("text", ["[]", "{}", '{"outside_domain": false, "subject": "gone:gate"}'])
def test_a_bad_finding_is_a_problem_not_a_crash(text: str, tmp_path: Path) -> None:
    (tmp_path / "case.json").write_text(tie().dumps())
    (tmp_path / "finding.json").write_text(text)
    code, output = moeproof("replay", tmp_path)
    assert code == 2
    assert "1 could not be run" in output


def test_subjects_are_listed() -> None:
    code, text = moeproof("subjects", "numpy", "--json")
    assert code == 0
    assert [s["name"].partition(":")[0] for s in json.loads(text)] == ["numpy"] * 3
    code, text = moeproof("subjects", "own:fused_gate")
    assert "refuses bad input" in text
    assert moeproof("subjects", "nothing")[0] == 2


def test_doctor_says_what_there_is() -> None:
    code, text = moeproof("doctor")
    assert code == 0
    for words in ("python: ", "torch: ", "GPU: ", "hypothesis: "):
        assert words in text


def test_the_version_and_the_help() -> None:
    assert moeproof("--version") == (0, "moeproof 0.1.0")
    code, text = moeproof("--help")
    assert code == 0
    assert "Exit codes: 0 clean, 1 findings, 2 usage" in re.sub(r" [│|] ", " ", text)


def test_workers_that_are_interrupted_before_they_have_begun_end_as_quietly(tmp_path: Path) -> None:
    """A worker imports for seconds: Ctrl-C of a terminal, which reaches it too, must wait for its handler."""
    log = tmp_path / "events.jsonl"
    _, text = interrupted(
        ["fuzz", "-s", TIE, "--workers", "2", "--out", str(tmp_path)],
        signal.SIGINT,
        lambda: log.exists() and '"start"' in log.read_text(),
        after=0.5,
        group=True,
    )
    assert "Traceback" not in text
    assert "interrupted, everything is kept" in text


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, "1"), (signal.SIGTERM, "2")])
def test_an_interrupted_run_ends_with_its_summary_and_everything_kept(
    number: signal.Signals, workers: str, tmp_path: Path
) -> None:
    code, text = interrupted(
        ["fuzz", "-s", TIE, "--seconds", "1000", "--workers", workers, "--out", str(tmp_path)],
        number,
        lambda: list(tmp_path.glob("findings/*/finding.json")),
    )
    assert code == 1, text
    assert "Traceback" not in text
    assert "interrupted, everything is kept" in text
    assert "tie_order (new)" in text
    assert '"kind": "end"' in (tmp_path / "events.jsonl").read_text().splitlines()[-1]
