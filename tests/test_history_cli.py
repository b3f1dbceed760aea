"""The history on the command line: filled by `fuzz`, listed, shown, imported."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from history_kit.runs import ALIGN, OTHER, OWN, bench_results, counts, finding, run_events
from typer.testing import CliRunner
from zoo.entry import FRONT_DOOR

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify import corpus
from moeproof.verify.cli import app
from moeproof.verify.coverage import Coverage, expert_buckets
from moeproof.verify.events import Event, JsonLines, to_json
from moeproof.verify.history.files import read_runs
from moeproof.verify.history.store import History
from moeproof.verify.sinks import NO_HISTORY, sinks
from moeproof.verify.subject import find

pytestmark = pytest.mark.slow

TIE = f"{FRONT_DOOR}:zoo:gate-tie-higher-id"
SUBJECTS = {OWN: counts(40), OTHER: counts(20, failed=4), ALIGN: counts(10)}


def moeproof(*arguments: str | Path) -> tuple[int, str]:
    """Run a command in this process and return its exit code and all that it printed."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def listed(*arguments: str | Path) -> list[dict[str, object]]:
    code, text = moeproof("history", "list", "--json", *arguments)
    assert code == 0, text
    found: list[dict[str, object]] = json.loads(text)
    return found


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    events = run_events("ab" * 16, SUBJECTS, found=(finding(OTHER),))
    events += run_events("ac" * 16, {OWN: counts(4)}, start=events[-1].time + 9)
    path.write_text("".join(json.dumps(to_json(event)) + "\n" for event in events))
    return path


def test_console_events_history_junit_and_summary_tell_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "SHIPPED", tmp_path / "none")
    out = tmp_path / "out"
    files = ("--junit", tmp_path / "j.xml", "--summary", tmp_path / "s.md")
    code, text = moeproof("fuzz", "-s", TIE, "-s", "numpy:fused_gate", "--cases", "12", "--out", out, *files)
    assert code == 1, text
    total = re.findall(r"(\d+) cases \(.*\), (\d+) rows", text)[-1]
    (stored,) = History(str(out / "history.db")).runs()
    (logged,) = read_runs(out / "events.jsonl")
    assert (stored.cases, stored.rows) == (logged.cases, logged.rows) == tuple(map(int, total))
    assert stored.subjects == logged.subjects
    assert stored.findings == logged.findings
    (found,) = stored.findings.values()
    assert found["script"] == (out / "findings" / str(found["identity"]) / "repro.py").read_text()
    assert Case.from_json(json.loads(str(found["case"]))).op == "fused_gate"
    assert (stored.exit, stored.details["subjects"]) == (1, [TIE, "numpy:fused_gate"])
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "1", "0")
    assert f"{stored.rows:,} rows judged in {stored.cases:,} cases" in (tmp_path / "s.md").read_text()


def test_the_history_is_chosen_by_option_or_environment_and_can_be_left_out(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOEPROOF_HISTORY", str(tmp_path / "team" / "h.db"))
    assert moeproof("history", "import", log)[0] == 0
    assert len(listed()) == 2
    assert moeproof("history", "list", "--history", tmp_path / "other.db")[0] == 2
    monkeypatch.delenv("MOEPROOF_HISTORY")
    assert moeproof("history", "import", log, "--out", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "history.db").exists()
    with sinks(history=NO_HISTORY, spool=tmp_path, junit=None, summary=None, tell=print) as found:
        assert found == []


@pytest.mark.parametrize("option", ["--history", "--junit", "--summary"])
def test_what_can_not_be_written_is_told_before_the_run(option: str, tmp_path: Path) -> None:
    where = "postgresql://u:secret@127.0.0.1:1/d" if option == "--history" else "/dev/null/x/file"
    code, text = moeproof("fuzz", "-s", TIE, "--cases", "5", "--out", tmp_path, option, where)
    assert code == 2
    assert f"{option[2:]} " in text
    assert "secret" not in text
    assert not (tmp_path / "findings").exists()


def test_a_killed_run_is_seen_and_its_log_can_be_added_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "moeproof.verify.cli", "fuzz", "-s", TIE, "--seconds", "1000", "--out", tmp_path]
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 300
        runs: list[dict[str, object]] = []
        while not (runs and runs[0]["cases"] and runs[0]["findings"]):
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.3)
            runs = listed("--out", tmp_path) if (tmp_path / "history.db").exists() else []
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (run,) = listed("--out", tmp_path)
    assert (run["status"], run["exit"], run["ended"]) == ("running", None, None)
    (stored,) = History(str(tmp_path / "history.db")).runs()
    assert stored.status(time.time() + 600) == "unfinished"
    assert not list(tmp_path.glob("*-journal"))
    code, text = moeproof("history", "import", tmp_path / "events.jsonl", "--history", tmp_path / "other.db")
    assert (code, "added: " in text) == (0, True)
    assert listed("--history", tmp_path / "other.db")[0]["findings"] == 1


def test_runs_are_imported_listed_and_shown(log: Path, tmp_path: Path) -> None:
    database = ("--history", str(tmp_path / "h.db"))
    (tmp_path / "bench.json").write_text(bench_results().dumps())
    code, text = moeproof("history", "import", log, tmp_path / "bench.json", *database)
    assert (code, text.count("added: ")) == (0, 3)
    assert moeproof("history", "import", log, *database)[1].count("there already: ") == 2
    assert {run["job"]: run["timings"] for run in listed(*database)} == {"fuzz": 0, "bench": 9}
    assert [run["cases"] for run in listed(*database, "--job", "fuzz")] == [70, 4]
    assert len(listed(*database, "--last", "1")) == 1
    code, text = moeproof("history", "list", *database)
    assert (code, "abababababab" in text, "gpu-1" in text) == (0, True, True)
    code, text = moeproof("history", "show", "aba", *database)
    assert code == 0
    for words in ("status    finished", "4 tie_order", "medium tie_order 0123456789", "not installed", "in flight"):
        assert words in text
    shown = json.loads(moeproof("history", "show", "aba", "--json", *database)[1])
    assert shown["subjects"][OTHER]["failures"] == {"tie_order": 4}
    latest = moeproof("history", "show", *database)[1]
    assert "job       bench" in latest
    assert f"gate E=256 T=64  {OWN}  2.128 µs" in latest
    assert "torch:fused_gate  wrong" in latest


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "--history", "/no/such.db"], "history is '/no/such.db'; allowed: an existing file"),
        (["show", "zz", "--history", "H"], "run is 'zz': no run begins with it; allowed: "),
        (["show", "a", "--history", "H"], "run is 'a': 2 runs begin with it: abababababab, acacacacacac"),
        (["import", "/no/such.jsonl", "--history", "H"], "file is '/no/such.jsonl', which can't be read: No such file"),
        (["list", "--last", "0"], "Invalid value for '--last'"),
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str], words: str, log: Path, tmp_path: Path) -> None:
    path = str(tmp_path / "h.db")
    assert moeproof("history", "import", log, "--history", path)[0] == 0
    code, text = moeproof("history", *(path if a == "H" else a for a in arguments))
    assert code == 2
    assert words in " ".join(re.sub(r" [│|] ", " ", text).split())


# -- what the events hold --------------------------------------------------------------------------------------------


def case(experts: int, **recipe: object) -> Case:
    block = {"pattern": "normal", "center": 0.0, "scale": 1.0, "quantised": False, **recipe}
    logits = {"kind": "scores", "seed": 1, "edits": [], "blocks": [block]}
    return Case("fused_gate", {"topk": 1}, {"logits": TensorSpec("float32", (33, experts), recipe=logits)})


def test_coverage_counts_each_size_and_special_value_by_itself() -> None:
    coverage = Coverage()
    coverage.add(case(257, special=float("-inf"), where="some", every=2), 33, "hot", failed=True)
    coverage.add(case(5000), 33, "")
    coverage.add(case(8), 0, "", failed=True, refusal=True)
    data = coverage.to_json()
    assert data["counts"]["sizes"] == {"T=2^5+1": 3, "k=1": 3, "E=2^8+1": 1, "E=2^12..2^13": 1, "E=2^3": 1}
    assert data["counts"]["patterns"] == {"normal": 3}
    assert data["counts"]["specials"] == {"-inf in some": 1}
    assert data["experts"] == {"257-512": {"cases": 1, "rows": 33, "failed": 1}}
    again = Coverage()
    again.merge(data)
    again.merge(data)
    assert again.to_json()["experts"] == {"257-512": {"cases": 2, "rows": 66, "failed": 2}}


def test_a_domain_has_its_ranges_of_experts() -> None:
    assert expert_buckets(find(["numpy:fused_gate"])[0].domain) == list(expert_buckets(find(["numpy"])[0].domain))
    assert expert_buckets(find([TIE])[0].domain) == ["1-8", "9-32", "33-64", "65-128"]


def test_a_long_run_logs_few_totals_and_the_last_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    path = tmp_path / "events.jsonl"
    log = JsonLines(path)
    for step in range(8 * 3600 * 2):
        now[0] += 0.5
        log(Event("progress", {"worker": step % 2, "number": step}))
    log(Event("end", {}))
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) < 1800
    assert lines[0]["number"] == 0
    assert {line["number"] for line in lines[-3:-1]} == {57598, 57599}
    assert lines[-1]["kind"] == "end"
