"""The history: the same in SQLite and in PostgreSQL, both real."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from history_kit.postgres import Missing, Postgres
from history_kit.runs import ALIGN, OTHER, OWN, START, bench, bench_results, counts, finding, nights, run_events

from moeproof.verify.events import Event, to_json
from moeproof.verify.history import schema
from moeproof.verify.history import sink as sink_module
from moeproof.verify.history.errors import HistoryError
from moeproof.verify.history.files import RunFileError, read_runs
from moeproof.verify.history.record import RunRecord, from_events
from moeproof.verify.history.sink import HistorySink
from moeproof.verify.history.store import History

pytestmark = pytest.mark.slow

SUBJECTS = {OWN: counts(40, paths=True), OTHER: counts(20, failed=4), ALIGN: counts(10)}


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    try:
        postgres = Postgres()
    except Missing as error:
        pytest.skip(str(error))
    yield postgres
    postgres.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/history.db"
    url: str = request.getfixturevalue("server").database()
    return url


def run_of(**changes: Any) -> RunRecord:
    (run,) = from_events(run_events("f" * 32, SUBJECTS, found=(finding(OTHER),), **changes))
    return run


def differing(one: RunRecord, other: RunRecord) -> list[str]:
    return [f.name for f in fields(RunRecord) if f.compare and getattr(one, f.name) != getattr(other, f.name)]


def test_a_run_comes_back_as_it_was_saved(where: str) -> None:
    history = History(where, create=True)
    for run in (run_of(), bench(2)):
        history.save(run)
    history.close()
    fuzz, timed = (History(where).runs()[i] for i in (0, 1))
    assert not differing(fuzz, run_of())
    assert not differing(timed, bench(2))
    assert (fuzz.cases, fuzz.rows) == (70, 700)
    assert fuzz.subjects[OTHER].failures == {"tie_order": 4}
    assert fuzz.findings["0123456789"]["script"].startswith("import sys")


def test_what_has_not_changed_is_not_written_again(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(where, create=True)
    written: list[int] = []
    real = History._upsert

    def counted(self: History, connection: Any, table: Any, rows: list[Any]) -> None:
        written.append(len(rows))
        real(self, connection, table, rows)

    monkeypatch.setattr(History, "_upsert", counted)
    events = run_events("a" * 32, SUBJECTS)
    for upto, expected in ((-3, 1), (-3, 0), (None, 1)):
        written.clear()
        history.save(from_events(events[:upto])[0])
        assert min(sum(written), 1) == expected
    assert not differing(history.runs()[0], from_events(events)[0])


def test_a_write_that_fails_leaves_nothing_behind(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    history = History(where, create=True)
    real = History._upsert

    def broken(self: History, connection: Any, table: Any, rows: list[Any]) -> None:
        if table is schema.notes:
            raise OperationalError("INSERT", {}, Exception("disk full"))
        real(self, connection, table, rows)

    with monkeypatch.context() as patch:
        patch.setattr(History, "_upsert", broken)
        with pytest.raises(HistoryError, match=r"history .* can't be written: disk full"):
            history.save(run_of())
    assert history.runs() == []
    history.save(run_of())
    assert not differing(history.runs()[0], run_of())


def test_what_a_library_prints_can_be_stored(where: str) -> None:
    name = "odd:\0" + "é" * 3000
    run = from_events(run_events("b" * 32, {name: counts(4)}, found=(finding(name, message="NUL \0 half \ud800"),)))[0]
    run.details["nan"] = float("nan")
    history = History(where, create=True)
    history.save(run)
    (back,) = history.runs()
    assert back.findings["0123456789"]["message"] == "NUL \ufffd half ?"
    assert back.details["nan"] is None
    assert back.cases == 4


def test_a_defect_keeps_its_first_script_and_counts_its_runs(where: str) -> None:
    history = History(where, create=True)
    for name, script in (("a", "first"), ("b", "second")):
        found = (finding(OTHER, script=script, message=name),)
        history.save(from_events(run_events(name * 32, SUBJECTS, start=START + ord(name), found=found))[0])
    first, second = history.runs()
    assert [r.findings["0123456789"]["script"] for r in (first, second)] == ["first", "first"]
    assert [r.findings["0123456789"]["message"] for r in (first, second)] == ["a", "b"]


def test_runs_are_found_by_job_subject_and_id(where: str) -> None:
    history = History(where, create=True)
    for run in nights():
        history.save(run)
    assert len(history.runs()) == 8
    assert [r.started for r in history.runs(last=2)] == sorted(r.started for r in nights())[-2:]
    assert {r.job for r in history.runs(job="bench")} == {"bench"}
    assert len(history.runs(subject="torch:fused_gate")) == 2
    assert [r.id for r in history.find("0" * 31 + "3")] == ["0" * 31 + "3"]
    assert history.find("%") == []


# -- migrations ------------------------------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_the_code_uses(where: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    from moeproof.verify.history.migrate import MIGRATIONS

    history = History(where, create=True)
    with history._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []
        assert context.get_current_revision() == schema.HEAD
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    assert ScriptDirectory.from_config(config).get_current_head() == schema.HEAD


def test_workers_that_start_at_once_migrate_once(where: str) -> None:
    script = (
        "import sys, time\n"
        "from moeproof.verify.history.store import History\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"History({where!r}, create=True).close()\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, stderr=-1, text=True) for _ in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        outputs = [process.communicate("go\n", timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [(p.returncode, err) for p, (_, err) in zip(processes, outputs, strict=True)] == [(0, "")] * 3


def test_a_history_of_a_newer_version_is_left_alone(where: str) -> None:
    from sqlalchemy import text

    history = History(where, create=True)
    with history._engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(HistoryError, match=r"revision 9999, which this moeproof doesn't know; allowed: up to 0001"):
        History(where)


def test_a_migration_that_fails_leaves_no_tables(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic.operations import Operations
    from sqlalchemy import inspect
    from sqlalchemy.exc import OperationalError

    from moeproof.verify.history import engine

    def broken(*_: Any, **__: Any) -> None:
        raise OperationalError("CREATE INDEX", {}, Exception("killed"))

    with monkeypatch.context() as patch:
        patch.setattr(Operations, "create_index", broken, raising=False)
        with pytest.raises(HistoryError, match="can't be opened: killed"):
            History(where, create=True)
    connected = engine.connect(engine.parse(where), create=False)
    assert inspect(connected).get_table_names() == []
    connected.dispose()
    History(where, create=True).close()


# -- what can't be opened --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("mysql://u:secret@h/d", "history is 'mysql://u:***@h/d'; allowed: sqlite:///FILE"),
        ("postgresql://u:se@cret@h:port/d", "history is 'postgresql://u:***@h:port/d', which is no URL"),
        ("postgresql://u:secret@127.0.0.1:1/d", "history postgresql://u:***@127.0.0.1:1/d can't be opened: "),
        ("sqlite://", "history is 'sqlite://'; allowed"),
        ("", "history is ''; allowed"),
        ("/dev/null/x/history.db", "history is '/dev/null/x/history.db', whose folder can't be made"),
        ("/no/such/file.db", "history is '/no/such/file.db'; allowed: an existing file"),
    ],
)
def test_a_history_that_can_not_be_opened_is_named_without_its_password(where: str, words: str) -> None:
    if "127.0.0.1" in where:
        pytest.importorskip("psycopg")
    with pytest.raises(HistoryError) as caught:
        History(where, create=not where.startswith("/no"))
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "cret@" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database at all, but long enough to be looked at as one" * 20)
    with pytest.raises(HistoryError, match=r"notes.txt can't be opened: file is not a database"):
        History(str(path), create=True)
    assert path.read_text().startswith("not a database")


# -- files -----------------------------------------------------------------------------------------------------------


def write_events(path: Path, events: list[Event]) -> Path:
    path.write_text("".join(json.dumps(to_json(e)) + "\n" for e in events))
    return path


def test_a_log_of_several_runs_is_told_apart(tmp_path: Path) -> None:
    one = run_events("1" * 32, {OWN: counts(8)})
    two = run_events("2" * 32, {OWN: counts(4)}, start=START + 5)
    mixed = [e for pair in zip(one, two, strict=True) for e in pair]
    runs = read_runs(write_events(tmp_path / "events.jsonl", mixed))
    assert [(r.id[0], r.cases) for r in runs] == [("1", 8), ("2", 4)]


def test_a_log_without_names_is_split_at_its_starts(tmp_path: Path) -> None:
    events = run_events("", {OWN: counts(8)}) + run_events("", {OWN: counts(4)}, start=START + 99)
    path = write_events(tmp_path / "events.jsonl", events)
    runs = read_runs(path)
    assert [r.cases for r in runs] == [8, 4]
    assert [r.id for r in read_runs(path)] == [r.id for r in runs]


def test_a_line_cut_short_by_a_kill_is_left_out_and_another_bad_one_is_named(tmp_path: Path) -> None:
    path = write_events(tmp_path / "events.jsonl", run_events("1" * 32, {OWN: counts(8)}, ended=False))
    whole = path.read_text()
    path.write_text(whole + '{"kind": "progress", "ti')
    (run,) = read_runs(path)
    assert (run.cases, run.status(time.time())) == (8, "unfinished")
    path.write_text('{"kind": "odd", "time": 1}\n' + whole)
    with pytest.raises(RunFileError, match=r"events.jsonl, line 1 is no event: kind is 'odd'"):
        read_runs(path)


@pytest.mark.parametrize("text", ["", "{}\n", "[]\n", "\x00\x01", '{"moeproof_bench": 9}', '{"kind":"end","time":1}\n'])
def test_a_file_that_tells_of_no_run_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_text(text)
    with pytest.raises(RunFileError, match=r"odd.*allowed: an events.jsonl"):
        read_runs(path)


def test_results_of_the_benchmark_are_a_run(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text(bench_results().dumps())
    (run,) = read_runs(path)
    assert (run.job, len(run.timings), run.id) == ("bench", 9, read_runs(path)[0].id)
    own = next(t for t in run.timings if t["subject"] == OWN and t["size"] == 64)
    assert own["low"] < own["median"] < own["high"]
    assert own["median"] == pytest.approx(2.128)
    assert (own["family"], own["clock"], own["series"]) == ("own", "graph", "gate E=256")
    assert {t["median"] for t in run.timings if t["status"] == "wrong"} == {None}


# -- while a run lasts -----------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BATCH", 0.05), ("RETRY", 0.1), ("HEARTBEAT", 0.2)):
        monkeypatch.setattr(sink_module, name, seconds)


def wait_for(condition: Callable[[], Any], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "never came"
        time.sleep(0.02)


@pytest.mark.usefixtures("quick")
def test_a_run_shows_while_it_lasts_and_as_unfinished_if_it_never_ends(where: str, tmp_path: Path) -> None:
    sink = HistorySink(where, tmp_path, print)
    history = History(where)
    events = run_events("c" * 32, SUBJECTS, found=(finding(OTHER),), start=time.time(), ended=False)
    for event in events[:-2]:
        sink(event)
    wait_for(lambda: history.runs() and history.runs()[0].cases)
    half = history.runs()[0]
    assert (half.cases, len(half.findings), half.ended) == (34, 1, None)
    assert half.status(time.time()) == "running"
    seen = half.seen
    wait_for(lambda: history.runs()[0].seen > seen)  # a sign of life without any event
    for event in events[-2:]:
        sink(event)
    sink.close()
    (last,) = history.runs()
    assert last.cases == 70
    assert last.status(time.time() + 3600) == "unfinished"
    assert list(tmp_path.glob("*.jsonl")) == []


@pytest.mark.usefixtures("quick")
def test_a_database_that_vanishes_loses_nothing(server: Postgres, tmp_path: Path) -> None:
    where = server.database()
    told: list[str] = []
    events = run_events("d" * 32, SUBJECTS, found=(finding(OTHER),), start=time.time())
    sink = HistorySink(where, tmp_path, told.append)
    try:
        for event in events[:4]:
            sink(event)
        wait_for(lambda: History(where).runs())
        server.stop()
        for event in events[4:-2]:
            sink(event)
        wait_for(lambda: told)
        spool = tmp_path / f"history-{'d' * 32}.jsonl"
        assert "can't be written" in told[0]
        assert str(spool) in told[0]
        for event in events[-2:]:
            sink(event)
        sink.close()
    finally:
        server.start()
    assert told[-1].endswith(f"moeproof history import {spool}")
    history = History(where)
    assert history.runs()[0].ended is None
    (run,) = read_runs(spool)
    assert history.add(run)
    assert not history.add(run)
    assert not differing(history.runs()[0], from_events(events)[0])


@pytest.mark.usefixtures("quick")
def test_a_database_that_comes_back_gets_everything_and_the_spool_goes(server: Postgres, tmp_path: Path) -> None:
    where = server.database()
    told: list[str] = []
    events = run_events("e" * 32, SUBJECTS, start=time.time())
    sink = HistorySink(where, tmp_path, told.append)
    server.stop()
    try:
        for event in events[:-1]:
            sink(event)
        wait_for(lambda: list(tmp_path.glob("*.jsonl")))
    finally:
        server.start()
    sink(events[-1])
    sink.close()
    assert told[-1] == "history: reachable again, nothing is lost"
    assert list(tmp_path.glob("*.jsonl")) == []
    assert not differing(History(where).runs()[0], from_events(events)[0])


@pytest.mark.usefixtures("quick")
def test_a_database_that_hangs_does_not_hold_up_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "PATIENCE", 0.3)
    told: list[str] = []
    sink = HistorySink(str(tmp_path / "h.db"), tmp_path / "spool", told.append)
    answers = threading.Event()
    saved: list[bool] = []
    monkeypatch.setattr(sink._history, "save", lambda run: saved.append(answers.wait(300)))
    try:
        for event in run_events("a" * 32, SUBJECTS):
            sink(event)
        sink.close()
        assert saved == []  # no event, and not the end either, has waited for it
        assert "no answer within" in told[0]
        (run,) = read_runs(tmp_path / "spool" / f"history-{'a' * 32}.jsonl")
        assert run.cases == 70
    finally:
        answers.set()  # not before: a run that is saved leaves the spool


def test_a_run_that_goes_on_after_an_interruption_has_not_ended() -> None:
    events = run_events("a" * 32, SUBJECTS)
    later = run_events("a" * 32, SUBJECTS, start=START + 100)
    run = from_events([*events, *later[:-1]])[0]
    assert run.ended is None
    assert from_events([*events, *later])[0].ended == later[-1].time


def test_what_is_known_better_is_not_overwritten(where: str) -> None:
    history = History(where, create=True)
    events = run_events("a" * 32, SUBJECTS)
    half, whole = from_events(events[:-3])[0], from_events(events)[0]
    assert [history.add(run) for run in (half, whole, half, whole)] == [True, True, False, False]
    assert history.runs()[0].cases == whole.cases
