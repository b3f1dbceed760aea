"""`moeproof gate` on a team's repository: the right verdict on each kind of change, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from click.testing import Result
from gate_kit.repository import ENVIRONMENT, commit, edit, forget, git, team
from gate_kit.sarif import problems
from interrupt_kit import interrupted
from typer.testing import CliRunner

from moeproof.verify.bench.shapes import parse
from moeproof.verify.cli import app
from moeproof.verify.gate.git import PREFIX
from moeproof.verify.gate.speed import SpeedError, Trees
from moeproof.verify.gate.timed import AbsentError, Bench, HostTimer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
SLOW, TIE = ("3000", "6000"), ("torch.arange(experts)", "torch.arange(experts).flip(0)")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name, value in {**ENVIRONMENT, "TMPDIR": str(tmp_path / "tmp"), "GITHUB_ACTIONS": "true"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    handler, threads = signal.getsignal(signal.SIGTERM), torch.get_num_threads()
    yield
    signal.signal(signal.SIGTERM, handler)
    torch.set_num_threads(threads)
    forget()
    assert not list((tmp_path / "tmp").glob(f"{PREFIX}*"))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = team(tmp_path / "team")
    monkeypatch.chdir(folder)
    return folder


def gate(*options: str) -> Result:
    return CliRunner().invoke(app, ["gate", "--base", "main", "--lanes", "lanes.toml", *options])


def test_a_harmless_change_passes(repository: Path) -> None:
    edit(repository / "ranking.py", "def columns(experts: int)", "def columns(experts: int, /)")
    commit(repository, "harmless")
    result = gate("--summary", "out/s.md", "--junit", "out/j.xml", "--sarif", "out/s.sarif")
    assert result.exit_code == 0, result.output
    made = json.loads((repository / ".moeproof/gate/result.json").read_text(encoding="utf-8"))
    assert made["headline"] == "pass: 1 touched subject tested, no slow-down in 1 comparison"
    assert made["touched"][0]["files"] == {"ranking.py": "routing.py"}
    assert {c["name"]: c["status"] for c in made["checks"]} == {
        "contract": "passed", "batch_invariance": "skipped", "graph_replay": "skipped", "speed": "passed",
    }  # fmt: skip
    assert (repository / "out/s.md").read_text(encoding="utf-8").startswith("## moeproof gate: pass: ")
    assert ElementTree.parse(repository / "out/j.xml").getroot().get("failures") == "0"
    report = json.loads((repository / "out/s.sarif").read_text(encoding="utf-8"))
    assert problems(report) == []
    assert report["runs"][0]["results"] == []
    assert "::error" not in result.output
    events = (repository / ".moeproof/gate/events.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(e)["kind"] for e in (events[0], events[-1])] == ["start", "end"]
    assert git(repository, "status", "--porcelain") == "?? out/"


def test_a_planted_tie_break_fails_where_it_was_planted(repository: Path) -> None:
    edit(repository / "ranking.py", *TIE)  # not committed: the working tree is gated
    result = gate("--only", "fuzz", "--summary", "s.md", "--junit", "j.xml", "--sarif", "s.sarif")
    assert result.exit_code == 1, result.output
    assert "with uncommitted changes" in result.output
    report = json.loads((repository / "s.sarif").read_text(encoding="utf-8"))
    assert problems(report) == []
    (alert,) = report["runs"][0]["results"]
    place = alert["locations"][0]["physicalLocation"]
    assert (alert["ruleId"], place["artifactLocation"]["uri"], place["region"]["startLine"]) == (
        "tie_order", "ranking.py", 10,
    )  # fmt: skip
    assert "::error file=ranking.py,line=10,title=moeproof tie_order::routing:team_gate: " in result.output
    failures = ElementTree.parse(repository / "j.xml").getroot().findall(".//failure")
    assert len(failures) == 2  # the check, and the verdict
    assert "tie_order" in (failures[0].text or "")
    text = (repository / "s.md").read_text(encoding="utf-8")
    assert text.startswith("## moeproof gate: fail: 1 reason\n")
    assert "<summary>Script that shows it</summary>" in text


def test_a_planted_slow_down_fails(repository: Path) -> None:
    edit(repository / "work.py", *SLOW)
    commit(repository, "slow")
    result = gate("--only", "bench", "--sarif", "s.sarif")
    assert result.exit_code == 1, result.output
    made = json.loads((repository / ".moeproof/gate/result.json").read_text(encoding="utf-8"))
    (speed,) = made["speed"]
    assert speed["change"] == "slower"
    assert speed["again"]["ratio"][1] > 1.25  # shown by two pairs of processes
    (reason,) = made["failures"]
    assert reason.startswith("speed: routing:team_gate is ")
    assert "slower at gate E=64 k=4 bias=0 T=8 (host clock)" in reason
    (alert,) = json.loads((repository / "s.sarif").read_text(encoding="utf-8"))["runs"][0]["results"]
    assert alert["ruleId"] == "speed"


def test_a_checkout_that_holds_the_harness_is_compared_too(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, base = repository.resolve(), tmp_path.resolve() / "base"
    shutil.copytree(root, base)
    for folder in ("src", "kernels", "references", "strategies", "verify"):
        shutil.copytree(ROOT / folder, root / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.syspath_prepend(str(root / "src"))
    shape = parse("gate:E=8,T=1,k=2,bias=0")[0]
    with Trees(root, base, "cpu").processes() as pair:
        for process in pair:
            assert process.ask("prepare", ("file", str(root / "routing.py"), "routing:team_gate"), shape, 0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes can't be given a core here")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_both_processes_have_the_same_core(repository: Path, device: str) -> None:
    with Trees(repository.resolve(), repository.resolve() / "tables", device).processes() as pair:
        for process in pair:
            with pytest.raises(SpeedError):  # nothing is prepared
                process.ask("sample", "host")
        cores = [os.sched_getaffinity(process._process.pid) for process in pair]
    assert cores[0] == cores[1]
    assert len(cores[0]) == 1


def test_a_kernel_that_the_base_does_not_have_is_told(repository: Path, tmp_path: Path) -> None:
    shape = parse("gate:E=8,T=1,k=2,bias=0")[0]
    (tmp_path / "base").mkdir()
    bench = Bench(repository.resolve(), tmp_path / "base", "cpu")
    with pytest.raises(AbsentError, match=r"the base has no routing.py"):
        bench.prepare(("file", str(repository.resolve() / "routing.py"), "routing:team_gate"), shape, 0)
    other = "import moeproof.testing\nx = moeproof.testing.subject(print, op='fused_gate')\n"
    (tmp_path / "base" / "routing.py").write_text(other, encoding="utf-8")
    with pytest.raises(AbsentError, match=r"the base's routing.py has no subject routing:team_gate"):
        bench.prepare(("file", str(repository.resolve() / "routing.py"), "routing:team_gate"), shape, 0)


def test_a_sample_has_as_many_calls_as_the_other_process_takes() -> None:
    made: list[int] = []
    timer = HostTimer([lambda: made.append(0), lambda: made.append(1)], lambda: None)
    assert timer.number == 200  # for calls that cost next to nothing
    timer.number = 5
    made.clear()
    assert timer.sample() > 0
    assert made == [0, 0, 1, 0, 1, 0]  # one that is not timed, then the sets in turn


def test_a_change_that_touches_no_kernel_passes_with_a_smoke_check(repository: Path) -> None:
    edit(repository / "notes.md", "Nothing", "Not a thing")
    commit(repository, "words")
    result = gate("--summary", "s.md")
    assert result.exit_code == 0, result.output
    assert "no kernel of the lanes is touched" in result.output
    assert "The change touches no kernel of the lanes (1 file changed)" in (repository / "s.md").read_text("utf-8")
    made = json.loads((repository / ".moeproof/gate/result.json").read_text(encoding="utf-8"))
    assert [c["status"] for c in made["checks"]] == ["passed"] * 3  # a subject of each op


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--base", "nothing"], "base is 'nothing', which is no commit here"),
        (["--lanes", "no.toml"], "lanes is 'no.toml'"),
        (["--lane", "other"], "lane is 'other'; allowed by lanes.toml: team"),
        (["--only", "speed"], "only is 'speed'; allowed: corpus, fuzz"),
        (["--threshold", "fast"], "threshold is 'fast'; allowed: percent from 0.1 to 1000, such as 3%"),
        (["--threshold", "-5%"], "threshold is '-5%'"),
        (["--junit", "notes.md/j.xml"], "junit is 'notes.md/j.xml'"),
        (["--ledger", "no.toml"], "ledger is 'no.toml'"),
    ],
)
def test_what_can_not_be_done_is_said_in_one_line(options: list[str], words: str, repository: Path) -> None:
    result = gate(*options)
    assert result.exit_code == 2
    assert words in " ".join(result.output.split())


def test_shapes_that_can_not_be_read_are_named(repository: Path) -> None:
    edit(repository / "lanes.toml", "E=64,T", "E=64,Q")
    result = gate()
    assert result.exit_code == 2
    assert "lane 'team': shapes: 'Q' in shape" in " ".join(result.output.split())


def test_what_nothing_here_can_run_is_no_pass(repository: Path) -> None:
    edit(repository / "routing.py", "    batch_invariant=False,", '    batch_invariant=False,\n    device="cuda",')
    result = gate("--sarif", "s.sarif")
    if result.exit_code != 2:
        pytest.skip("there is a CUDA device")
    assert "nothing of what the change touches can run on this machine (routing:team_gate)" in result.output
    assert "::error title=moeproof gate::no verdict: " in result.output
    report = json.loads((repository / "s.sarif").read_text(encoding="utf-8"))
    assert problems(report) == []
    assert report["runs"][0]["invocations"][0]["executionSuccessful"] is False
    result = gate("--partial")
    assert result.exit_code == 0, result.output
    assert "1 subject left to a machine that can run them" in result.output


def test_sigterm_leaves_reports_and_no_folders(repository: Path, tmp_path: Path) -> None:
    edit(repository / "work.py", *SLOW)
    edit(repository / "lanes.toml", "T=8", "T=8/7/6/5/4/3/2/1")
    code, output = interrupted(
        ["gate", "--base", "main", "--lanes", "lanes.toml", "--only", "bench", "--junit", "j.xml"],
        signal.SIGTERM,
        lambda: list((tmp_path / "tmp").glob(f"{PREFIX}*/base/work.py")),
        after=0.5,
    )
    assert code == 2, output
    assert "no verdict: it was interrupted" in output
    assert ElementTree.parse(repository / "j.xml").getroot().get("errors") == "1"
