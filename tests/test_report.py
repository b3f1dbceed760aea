"""Reports: what they say, and that what strangers wrote has no effect in them."""

from __future__ import annotations

import doctest
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from history_kit.runs import (
    ALIGN,
    DAY,
    OTHER,
    OWN,
    SCRIPT,
    START,
    bench_results,
    counts,
    finding,
    nights,
    run_events,
)
from typer.testing import CliRunner

from moeproof.verify import junit
from moeproof.verify.cli import app
from moeproof.verify.coverage import EXPERTS
from moeproof.verify.events import to_json
from moeproof.verify.history.record import RunRecord, from_events
from moeproof.verify.report import words
from moeproof.verify.report.chart import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Axis, Chart, Point, Series, chart
from moeproof.verify.report.covered import covered
from moeproof.verify.report.defects import defects
from moeproof.verify.report.markdown import LONGEST, MOST, summarise
from moeproof.verify.report.matrix import STATUSES, matrices
from moeproof.verify.report.page import render
from moeproof.verify.report.speed import speed_charts
from moeproof.verify.report.trends import kernel_trends, trends

HOSTILE = "own:<script>alert(1)</script>\"'><img src=x onerror=alert(2)>]]>|`![x](http://e.x/y)`@all"
NOW = START + 9 * DAY


class Tags(HTMLParser):
    """Collects tags with their attributes, and the text of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def runs() -> list[RunRecord]:
    return nights(hostile=HOSTILE)


@pytest.fixture(scope="module")
def page(runs: list[RunRecord]) -> str:
    return render(runs, now=NOW)


# -- what is shown ---------------------------------------------------------------------------------------------------


def test_the_matrix_tells_what_passes_fails_and_has_not_been_tried(runs: list[RunRecord]) -> None:
    gate, align = matrices(runs)
    assert (gate.op, align.op) == ("fused_gate", "moe_align_block_size")
    assert [line.subject for line in gate.lines] == [*sorted([OWN, HOSTILE]), "gone:fused_gate", OTHER]
    lines = {line.subject: line for line in gate.lines}
    statuses = {name: {b: c.status for b, c in zip(EXPERTS, line.cells, strict=True)} for name, line in lines.items()}
    assert statuses[OWN] == dict.fromkeys(EXPERTS, "outside") | {
        "65-128": "untested",
        "129-256": "passing",
        "257-512": "untested",
    }
    assert statuses[OTHER]["129-256"] == "recovered"
    cell = lines[OTHER].cells[list(EXPERTS).index("129-256")]
    assert (cell.cases, cell.rows, cell.failed) == (1200, 12000, 12)
    assert lines["gone:fused_gate"].unavailable == "not installed"
    again = matrices(runs[:4])[0].lines
    assert next(line for line in again if line.subject == OTHER).cells[4].status == "failing"
    assert {c.status for m in (gate, align) for line in m.lines for c in line.cells} <= set(STATUSES)


def test_findings_are_open_listed_or_gone_and_new_once(runs: list[RunRecord]) -> None:
    found = {d.about["identity"]: d for d in defects(runs)}
    assert {name: (d.state, d.new, d.runs) for name, d in found.items()} == {
        "feedbeef00": ("open", True, 1),
        "aaaaaaaaaa": ("listed", True, 1),
        "0123456789": ("gone", False, 3),
    }
    assert [d.state for d in defects(runs)] == ["open", "listed", "gone"]
    gone = found["0123456789"]
    assert gone.last - gone.first == 2 * DAY
    first = defects(runs[:1])[0]
    assert (first.state, first.new) == ("open", False)  # with nothing before it, nothing is new


def test_a_finding_that_a_later_run_did_not_look_for_stays_open() -> None:
    events = run_events("1" * 32, {OWN: counts(4), OTHER: counts(4)}, found=(finding(OTHER),))
    events += run_events("2" * 32, {OWN: counts(4)}, start=START + DAY)
    assert [d.state for d in defects(from_events(events))] == ["open"]


def test_coverage_is_by_op_with_sizes_in_order(runs: list[RunRecord]) -> None:
    gate = covered(runs)[0]
    assert gate.subjects == [*sorted([OWN, HOSTILE]), OTHER]
    assert list(gate.sizes) == ["T", "E", "k"]
    assert list(gate.sizes["T"]) == ["1", "2^5+1", "2^5..2^6"]
    assert gate.sizes["T"]["1"] == sum(gate.sizes["T"].values()) / 2
    (patterns,) = [t for t in gate.tables if t.kind == "patterns"]
    assert [value for value, _ in patterns.rows] == ["boundary_tie", "normal"]
    assert [(name, [path for path, _ in paths]) for name, paths in gate.paths] == [(OWN, ["hot", "general"])]


def test_trends_need_two_runs_and_have_axes_with_units(runs: list[RunRecord]) -> None:
    fuzz = [run for run in runs if run.job == "fuzz"]
    assert trends(fuzz[:1]) == []
    rows, found, speed = trends(runs)
    assert [c.y.title for c in (rows, found, speed)] == ["rows", "findings", "cases per second"]
    assert [row[1:] for row in found.rows] == [["1", "1"], ["1", "0"], ["1", "1"], ["0", "0"], ["0", "0"], ["2", "2"]]
    assert [row[1] for row in rows.rows] == [f"{run.rows:,}" if run.rows >= 10000 else str(run.rows) for run in fuzz]
    assert [s.name for s in speed.drawn] == ["fused_gate", "moe_align_block_size"]
    (own,) = kernel_trends(runs)
    assert own.title == "Time of the own fused_gate"
    assert len(own.drawn) == 3


def test_benchmark_plots_have_a_line_a_subject_and_the_floors(runs: list[RunRecord]) -> None:
    (plot,) = speed_charts(next(run for run in runs if run.timings))
    assert [(s.name, s.style) for s in plot.drawn] == [
        (OWN, "own"),
        (OTHER, ""),
        ("floor: the same bytes", "floor"),
        ("empty kernel", "empty"),
    ]
    assert (plot.x.title, plot.y.title) == ("tokens", "µs a call")
    assert [text for _, text in plot.x_ticks] == ["1", "64", "4096"]
    assert len(plot.drawn[0].spans) == 3


@pytest.mark.parametrize(
    ("x", "y", "points"),
    [
        (Axis("run", names=("a", "b", "c")), Axis("rows"), [(0, 0), (1, 5), (2, 7e9)]),
        (Axis("T", log=2), Axis("µs", log=10), [(1, 0.4), (65536, 300), (0, 1), (5, 0)]),
        (Axis("T", log=2), Axis("µs", log=10), [(8, 1.0)]),
        (Axis("run", names=("a",)), Axis("findings"), [(0, 0)]),
    ],
)
def test_a_chart_draws_all_points_between_its_axes(x: Axis, y: Axis, points: list[tuple[float, float]]) -> None:
    drawn = chart("t", "d", x, y, [Series("s", tuple(Point(*p) for p in points))])
    assert isinstance(drawn, Chart)
    kept = [p for p in points if (p[0] > 0 or not x.log) and (p[1] > 0 or not y.log)]
    marks = drawn.drawn[0].marks
    assert len(marks) == len(kept)
    for left, top, _ in marks:
        assert LEFT <= left <= WIDTH
        assert TOP <= top <= HEIGHT - BOTTOM["lines"]
    order = [at for at, _ in drawn.y_ticks]
    assert order == sorted(order, reverse=True)
    assert 2 <= len(order) <= 9
    assert len({text for _, text in drawn.y_ticks}) == len(order)
    assert chart("t", "d", x, y, [Series("s", ())]) is None


def test_words_say_what_their_examples_say() -> None:
    assert doctest.testmod(words).failed == 0
    assert words.short(999_999) == "1M"
    assert [words.duration(s) for s in (0.5, 61, 28_830)] == ["0.5 s", "1 min 1 s", "8 h 0 min"]


@pytest.mark.parametrize(
    ("change", "tone", "text"),
    [
        ({}, "ok", "No open findings."),
        ({"ended": False}, "warn", "has no end"),
        (
            {"found": (finding(OWN), finding(OWN, "1" * 10, severity="high"))},
            "bad",
            "2 open findings: 1 high, 1 medium",
        ),
        ({"found": (finding(OWN, listed="upstream"),)}, "ok", "No open findings."),
    ],
)
def test_the_page_says_first_how_things_stand(change: dict[str, object], tone: str, text: str) -> None:
    runs = from_events(run_events("1" * 32, {OWN: counts(4)}, **change))  # type: ignore[arg-type]
    found = re.search(r'<p class="verdict (\w+)">.*?<span>(.*?)</span>', render(runs, now=NOW), re.DOTALL)
    assert found is not None
    assert found[1] == tone
    assert text in found[2]


# -- the page itself -------------------------------------------------------------------------------------------------


def test_nothing_on_the_page_is_loaded_or_linked_elsewhere(page: str) -> None:
    tags = Tags(page)
    targets = [a.get("href") or a.get("src") for _, a in tags.tags if "href" in a or "src" in a]
    assert {t for t in targets if t and not t.startswith("#")} == {"data:,"}
    ids = {a["id"] for _, a in tags.tags if "id" in a}
    assert {t[1:] for t in targets if t and t.startswith("#")} <= ids
    assert not re.search(r"@import|url\(", page.partition("</style>")[0])
    (policy,) = [a["content"] for a in tags.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_what_strangers_wrote_is_text(page: str) -> None:
    tags = Tags(page)
    assert len(tags.named("script")) == 1
    assert not tags.named("img")
    assert not [name for _, attributes in tags.tags for name in attributes if name.startswith("on")]
    assert not [1 for _, attributes in tags.tags if "style" in attributes]
    assert HOSTILE in tags.text
    assert SCRIPT in tags.text
    assert page.count("</script>") == 1


def test_tables_and_pictures_can_be_read_aloud(page: str) -> None:
    tags = Tags(page)
    assert len(tags.named("caption")) == len(tags.named("table")) > 10
    assert all(a.get("scope") in ("col", "row", "rowgroup") for a in tags.named("th"))
    pictures = [a for a in tags.named("svg") if a.get("role") == "img"]
    assert len(pictures) == len(tags.named("desc")) > 5
    ids = [a["id"] for _, a in tags.tags if "id" in a]
    assert len(ids) == len(set(ids))
    named = [part for _, a in tags.tags for part in (a.get("aria-labelledby") or "").split()]
    assert set(named) <= set(ids)
    levels = [int(name[1]) for name, _ in tags.tags if re.fullmatch(r"h\d", name)]
    assert levels[0] == 1
    assert max(b - a for a, b in itertools.pairwise(levels)) <= 2


# -- other files -----------------------------------------------------------------------------------------------------


def test_junit_has_a_case_a_subject_and_findings_as_failures() -> None:
    found = (finding(OTHER), finding(OTHER, "1" * 10, check="weights"), finding(ALIGN, "2" * 10, listed="issue 7"))
    (run,) = from_events(
        run_events("1" * 32, {OWN: counts(4), OTHER: counts(8, failed=4), ALIGN: counts(4)}, found=found)
    )
    run.notes.append({"time": 1.0, "text": "Traceback\nValueError: odd", "error": True})
    root = ElementTree.fromstring(junit.render(run))
    suite = root[0]
    for element in (root, suite):
        about = {name: element.get(name) for name in ("tests", "failures", "errors", "skipped")}
        assert about == {"tests": "5", "failures": "1", "errors": "1", "skipped": "1"}
    cases = {case.get("name"): case for case in suite}
    assert [f.get("type") for f in cases[OTHER].findall("failure")] == ["tie_order", "weights"]
    assert cases[OTHER][0].get("message", "").startswith(f"[1/2] {OTHER}: experts with equal scores")
    assert SCRIPT in (cases[OTHER][0].text or "")
    assert cases[ALIGN].find("failure") is None
    assert "listed as known: 2222222222" in (cases[ALIGN].findtext("system-out") or "")
    assert cases["gone:fused_gate"].find("skipped").get("message") == "left out: not installed"  # type: ignore[union-attr]
    assert cases["harness"].find("error").get("message") == "ValueError: odd"  # type: ignore[union-attr]
    assert suite.get("timestamp") == "2023-11-14T22:13:20"


def test_junit_of_a_killed_run_is_an_error_and_any_text_is_xml() -> None:
    name = f"{HOSTILE}\0\x1b[31m\ud800"
    found = (finding(name, message="\x00\x0b]]>\uffff", script="&<>\x1f"),)
    (run,) = from_events(run_events("1" * 32, {name: counts(4)}, found=found, ended=False))
    suite = ElementTree.fromstring(junit.render(run).encode())[0]
    assert suite.get("errors") == "1"
    assert "has not ended" in (suite[-1][0].get("message") or "")
    case = next(c for c in suite if c.find("failure") is not None)
    assert (case.get("name") or "").startswith(HOSTILE)


def test_the_summary_shows_strangers_text_as_text() -> None:
    found = (finding(HOSTILE, message="```\n<b>x</b>\n````", script="````\n"), finding(HOSTILE, "1" * 10, listed="so"))
    (run,) = from_events(run_events("1" * 32, {HOSTILE: counts(4), OWN: counts(4)}, found=found))
    text = summarise([run])
    assert text.startswith("## moeproof: 1 finding, 1 more listed as known\n\n80 rows judged in 8 cases, ")
    outside = re.sub(r"(?ms)^(`{3,})\w*$.*?^\1$", "", text)
    outside = re.sub(r"(`+) ?.*?[^`]\1(?!`)", "", outside)
    assert "<" not in re.sub(r"</?(details|summary)>", "", outside)
    assert not re.search(r"(?<![\\\w])@\w|(?<!\\)!?\[", outside)
    assert "`````text\n```\n<b>x</b>\n````\n`````" in text
    for line in text.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) == 7


def test_the_summary_stays_below_what_a_jobs_page_holds() -> None:
    found = [finding("own:fused_gate", f"{n:010x}", script="x" * (LONGEST + n - 2)) for n in range(MOST + 1)]
    (run,) = from_events(run_events("1" * 32, {OWN: counts(4)}, found=found))
    text = summarise([run])
    assert len(text.encode()) < 1 << 20
    assert text.count("Script that shows it") == 3
    assert f"`findings/{found[3]['identity']}/repro.py`, has {LONGEST + 1:,} bytes" in text


# -- the command -----------------------------------------------------------------------------------------------------


def report(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["report", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, " ".join(result.output.split())


def test_a_report_is_the_same_from_files_and_from_the_history(tmp_path: Path) -> None:
    events = run_events("1" * 32, {OWN: counts(4), OTHER: counts(4, failed=4)}, found=(finding(OTHER),))
    log, results, database = tmp_path / "events.jsonl", tmp_path / "bench.json", tmp_path / "h.db"
    log.write_text("".join(json.dumps(to_json(e)) + "\n" for e in events))
    results.write_text(bench_results().dumps())
    files = ("--junit", tmp_path / "j.xml", "--summary", tmp_path / "s.md", "--title", "ours <now>")
    code, text = report(log, results, "--out", tmp_path / "a.html", *files)
    assert (code, text.endswith("a.html: 2 runs, 1 findings")) == (0, True)
    assert (
        CliRunner().invoke(app, ["history", "import", str(log), str(results), "--history", str(database)]).exit_code
        == 0
    )
    assert report("--history", database, "--out", tmp_path / "b.html", "--title", "ours <now>")[0] == 0
    one, other = (re.sub(r"Made <time.*?</time>", "", (tmp_path / f"{n}.html").read_text()) for n in "ab")
    assert one == other
    assert "<h1>ours &lt;now&gt;</h1>" in one
    assert ElementTree.parse(tmp_path / "j.xml").getroot()[0].get("failures") == "1"
    assert "1 finding" in (tmp_path / "s.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/no/such.jsonl"], "file is '/no/such.jsonl', which can't be read"),
        (["--history", "/no/such.db"], "history is '/no/such.db'; allowed: an existing file"),
        (["LOG", "--out", "/dev/null/x.html"], "file is '/dev/null/x.html', which can't be written"),
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str], words: str, tmp_path: Path) -> None:
    log = tmp_path / "events.jsonl"
    log.write_text("".join(json.dumps(to_json(e)) + "\n" for e in run_events("1" * 32, {OWN: counts(4)})))
    code, text = report(*(log if a == "LOG" else a for a in arguments))
    assert code == 2
    assert words in text
