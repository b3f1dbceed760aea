"""The state of a nightly run on disk: its clock, its slices, its workers, and which defects were reported.

One SQLite file that survives a kill at any moment. Workers take slices from it, each in one transaction; what a lost
worker had is put back. The rollback journal is used and not WAL, which needs shared memory that network file systems
lack.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .schedule import NOTHING, Spent, Unit, choose

TRIES = 3
"""How often a slice is given out before it counts as one that can't be run."""
MIN_SECONDS = 1.0
"""Shorter slices are not worth starting."""
LATELY = 14
"""Runs whose findings still count when time is spread."""
REMEMBERED = 180 * 86400.0
"""How long a replay is remembered, in seconds: a case that has left the corpus is forgotten at last."""
BUSY_SECONDS = 60.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, begun REAL NOT NULL, seconds REAL NOT NULL, spent REAL NOT NULL DEFAULT 0,
  deadline REAL NOT NULL DEFAULT 0, seed INTEGER NOT NULL, plan TEXT NOT NULL DEFAULT '{}', finished REAL);
CREATE TABLE IF NOT EXISTS slice (
  id INTEGER PRIMARY KEY, run INTEGER NOT NULL, kind TEXT NOT NULL, unit TEXT NOT NULL, seconds REAL NOT NULL,
  state TEXT NOT NULL, worker INTEGER, tries INTEGER NOT NULL DEFAULT 0, begun REAL, used REAL NOT NULL DEFAULT 0,
  cases INTEGER NOT NULL DEFAULT 0);
CREATE INDEX IF NOT EXISTS slice_run ON slice (run, state);
CREATE TABLE IF NOT EXISTS worker (
  id INTEGER PRIMARY KEY, run INTEGER NOT NULL, name TEXT NOT NULL, pid INTEGER NOT NULL, slot INTEGER NOT NULL,
  device TEXT NOT NULL, seen REAL NOT NULL, up INTEGER NOT NULL DEFAULT 1);
CREATE TABLE IF NOT EXISTS absent (run INTEGER, name TEXT, reason TEXT, PRIMARY KEY (run, name));
CREATE TABLE IF NOT EXISTS replay (subject TEXT, entry TEXT, seen REAL NOT NULL, PRIMARY KEY (subject, entry));
CREATE TABLE IF NOT EXISTS unreplayed (run INTEGER, unit TEXT, count INTEGER NOT NULL, PRIMARY KEY (run, unit));
CREATE TABLE IF NOT EXISTS defect (
  identity TEXT PRIMARY KEY, run INTEGER NOT NULL, subject TEXT NOT NULL, seen REAL NOT NULL,
  reported INTEGER NOT NULL DEFAULT 0);
"""


@dataclass(frozen=True)
class Run:
    """One night: the time it was given, and the part of it that is over."""

    id: int
    name: str
    seconds: float
    spent: float
    seed: int
    begun: float


@dataclass(frozen=True)
class Slice:
    """A piece of work that a worker has taken.

    Attributes
    ----------
    id : int
        Its number.
    kind : str
        ``corpus`` (replay), ``fuzz`` or ``tests``.
    unit : Unit
        What it is spent on.
    seconds : float
        Its length, of a ``corpus`` slice at most.
    deadline : float
        The run's end, in seconds since the epoch.
    cases : int, optional
        What is left of the unit's budget.
    """

    id: int
    kind: str
    unit: Unit
    seconds: float
    deadline: float
    cases: int | None = None


@dataclass(frozen=True)
class Worker:
    """A worker process, its number among all that the state knows, and the GPU that it is pinned to."""

    id: int
    name: str
    pid: int
    slot: int
    device: str
    seen: float


class Store:
    """The state file of a folder of nightly runs.

    Parameters
    ----------
    path : Path
        The file; made if missing.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        with self._change() as db:
            for statement in _SCHEMA.split(";\n"):
                db.execute(statement)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextlib.contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """Hold the write lock; what happens inside is kept whole or not at all."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # -- runs ----------------------------------------------------------------------------------------------------

    def unfinished(self) -> Run | None:
        """Return the run that was not brought to its end, if there is one."""
        row = self._db.execute("SELECT * FROM run WHERE finished IS NULL ORDER BY id DESC LIMIT 1").fetchone()
        return None if row is None else _run(row)

    def open_run(self, seconds: float, seed: int) -> Run:
        """Start a new run; one that was not finished is given up, and its defects are still to be reported."""
        now = time.time()
        with self._change() as db:
            db.execute("UPDATE run SET finished = ? WHERE finished IS NULL", (now,))
            db.execute(
                "INSERT INTO run (name, begun, seconds, seed) VALUES (?, ?, ?, ?)",
                (uuid.uuid4().hex, now, seconds, seed),
            )
        run = self.unfinished()
        assert run is not None
        return run

    def prepare(
        self, run: int, plan: dict[str, Any], units: Collection[Unit], seconds: float, *, replay_seconds: float
    ) -> None:
        """Start or go on: write down what workers need to know.

        Parameters
        ----------
        run : int
            Its number.
        plan : dict
            JSON data for the workers.
        units : collection of Unit
            What may run; those that were absent before are tried again.
        seconds : float
            The run's whole time.
        replay_seconds : float
            Most that one replay of the corpus takes.
        """
        with self._change() as db:
            text = json.dumps(plan | {"units": [u.to_json() for u in units]})
            db.execute("UPDATE run SET plan = ?, seconds = ? WHERE id = ?", (text, seconds, run))
            db.execute("DELETE FROM absent WHERE run = ?", (run,))
            known = {
                row["unit"] for row in db.execute("SELECT unit FROM slice WHERE run = ? AND kind = 'corpus'", (run,))
            }
            # One replay of the corpus for each subject, whatever its presets.
            first = {(u.lane, u.name): u for u in reversed(list(units)) if u.op and "corpus" in u.checks}
            for unit in reversed(list(first.values())):
                if unit.key not in known:
                    db.execute(
                        "INSERT INTO slice (run, kind, unit, seconds, state) VALUES (?, 'corpus', ?, ?, 'waiting')",
                        (run, unit.key, replay_seconds),
                    )

    def plan(self) -> dict[str, Any]:
        """Return what `prepare` wrote down, with ``run``, ``seed`` and ``deadline`` of the current run."""
        row = self._db.execute("SELECT * FROM run WHERE finished IS NULL ORDER BY id DESC LIMIT 1").fetchone()
        if row is None:
            raise LookupError(f"{self.path} holds no run that is under way")
        plan: dict[str, Any] = json.loads(row["plan"])
        return plan | {"run": row["id"], "seed": row["seed"], "deadline": row["deadline"]}

    def restart(self, run: int) -> None:
        """Give back what workers had, none of which is alive, and set the clock by what is left."""
        with self._change() as db:
            db.execute("UPDATE run SET deadline = ? + seconds - spent WHERE id = ?", (time.time(), run))
            db.execute("UPDATE worker SET up = 0 WHERE run = ?", (run,))
            taken = "SELECT DISTINCT worker FROM slice WHERE run = ? AND state = 'taken'"
            for row in db.execute(taken, (run,)).fetchall():
                self._put_back(db, row["worker"])

    def tick(self, run: int, seconds: float) -> Run:
        """Add to the time that a run has taken, and return it."""
        with self._change() as db:
            db.execute("UPDATE run SET spent = spent + ? WHERE id = ?", (seconds, run))
            return _run(db.execute("SELECT * FROM run WHERE id = ?", (run,)).fetchone())

    def stop(self, run: int) -> None:
        """Give out no more slices until the run is started again."""
        with self._change() as db:
            db.execute("UPDATE run SET deadline = 0 WHERE id = ?", (run,))

    def finish(self, run: int) -> None:
        """Bring a run to its end: all defects count as reported, and old slices are forgotten."""
        with self._change() as db:
            db.execute("UPDATE run SET finished = ? WHERE id = ?", (time.time(), run))
            db.execute("UPDATE defect SET reported = 1")
            for table in ("slice", "unreplayed"):
                db.execute(f"DELETE FROM {table} WHERE run <= ?", (run - LATELY,))
            db.execute("DELETE FROM replay WHERE seen < ?", (time.time() - REMEMBERED,))

    # -- slices --------------------------------------------------------------------------------------------------

    def take(self, worker: int, warm: Collection[str] = ()) -> Slice | None:
        """Give a worker its next slice, or None if time or budgets are used up."""
        plan = self.plan()
        now = time.time()
        if plan["deadline"] - now < MIN_SECONDS:
            return None
        with self._change() as db:
            found = self._next(db, plan, warm)
            if found is None:
                return None
            if isinstance(found, Unit):
                unit, kind = found, "fuzz" if found.op else "tests"
                seconds = min(unit.slice_seconds, plan["deadline"] - now)
                number = db.execute(
                    "INSERT INTO slice (run, kind, unit, seconds, state) VALUES (?, ?, ?, ?, 'waiting')",
                    (plan["run"], kind, unit.key, seconds),
                ).lastrowid
                assert number is not None
            else:
                unit = next(u for u in _units(plan) if u.key == found["unit"])
                number, kind, seconds = found["id"], found["kind"], found["seconds"]
            db.execute(
                "UPDATE slice SET state = 'taken', worker = ?, tries = tries + 1, begun = ? WHERE id = ?",
                (worker, now, number),
            )
            had = self._spent(db, plan["run"]).get(unit.key, NOTHING).cases
        cases = None if unit.cases is None else max(1, unit.cases - had)
        return Slice(number, kind, unit, seconds, plan["deadline"], cases)

    def idle(self) -> bool:
        """Say whether nothing is left to do: every budget is used up, or no subject can run here."""
        with self._change() as db:
            return self._next(db, self.plan(), ()) is None

    def _next(self, db: sqlite3.Connection, plan: dict[str, Any], warm: Collection[str]) -> Unit | sqlite3.Row | None:
        """Return the slice that waits for a worker, else the unit that is to have another, if there is one."""
        run = plan["run"]
        absent = {row["name"] for row in db.execute("SELECT name FROM absent WHERE run = ?", (run,))}
        present = [u for u in _units(plan) if u.name not in absent]
        waiting = self._waiting(db, run, {u.key: u for u in present}, warm)
        if waiting is not None:
            return waiting
        able = [u for u in present if ("fuzz" if u.op else "tests") in u.checks]
        return choose(able, self._spent(db, run), self._found(db, run), warm)

    def _waiting(
        self, db: sqlite3.Connection, run: int, units: dict[str, Unit], warm: Collection[str]
    ) -> sqlite3.Row | None:
        """Return the slice that is next of those that wait: of the lane that has had least for its weight."""
        rows = db.execute("SELECT * FROM slice WHERE run = ? AND state = 'waiting' ORDER BY id", (run,)).fetchall()
        able = [row for row in rows if row["unit"] in units]
        if not able:
            return None
        had: dict[str, float] = {}
        for row in db.execute("SELECT unit, state, used, seconds FROM slice WHERE run = ?", (run,)):
            unit = units.get(row["unit"])
            if unit is not None and row["state"] != "waiting":
                seconds = unit.slice_seconds if row["state"] == "taken" else row["used"]
                had[unit.lane] = had.get(unit.lane, 0.0) + seconds / unit.weight

        def behind(row: sqlite3.Row) -> tuple[float, bool, int]:
            unit = units[row["unit"]]
            return had.get(unit.lane, 0.0), unit.family not in warm, row["id"]

        return min(able, key=behind)

    def _spent(self, db: sqlite3.Connection, run: int) -> dict[str, Spent]:
        """Return what units have had; a slice under way counts as it was planned, and one that ended as a second."""
        rows = db.execute(
            "SELECT unit, SUM(CASE state WHEN 'taken' THEN seconds ELSE MAX(used, 1.0) END) AS seconds, "
            "SUM(cases) AS cases FROM slice WHERE run = ? AND kind <> 'corpus' GROUP BY unit",
            (run,),
        )
        return {row["unit"]: Spent(row["seconds"], row["cases"]) for row in rows}

    def _found(self, db: sqlite3.Connection, run: int) -> dict[str, float]:
        """Return the findings of late by subject; each earlier run counts half of the next."""
        rows = db.execute("SELECT subject, run FROM defect WHERE run > ?", (run - LATELY,))
        found: dict[str, float] = {}
        for row in rows:
            found[row["subject"]] = found.get(row["subject"], 0.0) + 0.5 ** (run - row["run"])
        return found

    def done(self, slice_id: int, used: float, cases: int) -> None:
        """Note that a slice is over, and what it took."""
        with self._change() as db:
            db.execute("UPDATE slice SET state = 'done', used = ?, cases = ? WHERE id = ?", (used, cases, slice_id))

    def absent(self, name: str, reason: str) -> None:
        """Leave a subject out until the run is started again."""
        run = self.plan()["run"]
        with self._change() as db:
            db.execute("INSERT OR REPLACE INTO absent VALUES (?, ?, ?)", (run, name, reason))

    def _put_back(self, db: sqlite3.Connection, worker: int) -> None:
        db.execute(
            "UPDATE slice SET state = CASE WHEN tries >= ? THEN 'lost' ELSE 'waiting' END "
            "WHERE worker = ? AND state = 'taken'",
            (TRIES, worker),
        )

    def slices(self, run: int) -> list[dict[str, Any]]:
        """Return a run's slices, for its report."""
        return [dict(row) for row in self._db.execute("SELECT * FROM slice WHERE run = ? ORDER BY id", (run,))]

    # -- replays of the corpus -----------------------------------------------------------------------------------

    def replayed(self, subject: str) -> dict[str, float]:
        """Return when each kept case was last replayed on a subject."""
        rows = self._db.execute("SELECT entry, seen FROM replay WHERE subject = ?", (subject,))
        return {row["entry"]: row["seen"] for row in rows}

    def note_replays(self, unit: Unit, entries: Collection[str], left: int) -> None:
        """Note which kept cases were replayed on a unit's subject, and how many there was no time for."""
        run, now = self.plan()["run"], time.time()
        with self._change() as db:
            rows = [(unit.name, entry, now) for entry in entries]
            db.executemany("INSERT OR REPLACE INTO replay VALUES (?, ?, ?)", rows)
            db.execute("INSERT OR REPLACE INTO unreplayed VALUES (?, ?, ?)", (run, unit.key, left))

    def unreplayed(self, run: int) -> dict[str, int]:
        """Return how many kept cases were left by unit, where there were any; 0 where no replay has begun."""
        absent = {row["name"] for row in self._db.execute("SELECT name FROM absent WHERE run = ?", (run,))}
        able = {unit.key for unit in _units(self.plan()) if unit.name not in absent}
        waiting = "SELECT unit FROM slice WHERE run = ? AND kind = 'corpus' AND state = 'waiting' ORDER BY id"
        left = {row["unit"]: 0 for row in self._db.execute(waiting, (run,)) if row["unit"] in able}
        rows = self._db.execute("SELECT unit, count FROM unreplayed WHERE run = ? AND count > 0 ORDER BY unit", (run,))
        return left | {row["unit"]: row["count"] for row in rows}

    # -- workers -------------------------------------------------------------------------------------------------

    def join(self, name: str, pid: int, devices: list[str]) -> Worker:
        """Add a worker and pin it: it takes the lowest place that no living worker has, and that place's GPU."""
        run = self.plan()["run"]
        with self._change() as db:
            held = {row["slot"] for row in db.execute("SELECT slot FROM worker WHERE run = ? AND up = 1", (run,))}
            slot = next(n for n in range(len(held) + 1) if n not in held)
            device = devices[slot % len(devices)] if devices else ""
            now = time.time()
            cursor = db.execute(
                "INSERT INTO worker (run, name, pid, slot, device, seen) VALUES (?, ?, ?, ?, ?, ?)",
                (run, name, pid, slot, device, now),
            )
            assert cursor.lastrowid is not None
            return Worker(cursor.lastrowid, name, pid, slot, device, now)

    def seen(self, worker: int) -> None:
        """Note that a worker is alive and gets on."""
        with self._change() as db:
            db.execute("UPDATE worker SET seen = ? WHERE id = ?", (time.time(), worker))

    def left(self, name: str) -> Worker | None:
        """Note that a worker is gone, and put back the slice that it had; return it."""
        run = self.plan()["run"]
        with self._change() as db:
            row = db.execute("SELECT * FROM worker WHERE run = ? AND name = ? AND up = 1", (run, name)).fetchone()
            if row is None:
                return None
            db.execute("UPDATE worker SET up = 0 WHERE id = ?", (row["id"],))
            self._put_back(db, row["id"])
            return _worker(row)

    def workers(self, run: int, *, living: bool = True) -> list[Worker]:
        """Return a run's workers."""
        rows = self._db.execute("SELECT * FROM worker WHERE run = ? AND up >= ? ORDER BY id", (run, int(living)))
        return [_worker(row) for row in rows]

    # -- defects -------------------------------------------------------------------------------------------------

    def defect(self, identity: str, subject: str) -> None:
        """Note a defect at its first sight."""
        run = self.plan()["run"]
        with self._change() as db:
            db.execute(
                "INSERT OR IGNORE INTO defect (identity, run, subject, seen) VALUES (?, ?, ?, ?)",
                (identity, run, subject, time.time()),
            )

    def reported(self) -> set[str]:
        """Return the defects that a finished run has reported."""
        return {row["identity"] for row in self._db.execute("SELECT identity FROM defect WHERE reported = 1")}


def _units(plan: dict[str, Any]) -> list[Unit]:
    return [Unit.from_json(data) for data in plan["units"]]


def _run(row: sqlite3.Row) -> Run:
    return Run(row["id"], row["name"], row["seconds"], row["spent"], row["seed"], row["begun"])


def _worker(row: sqlite3.Row) -> Worker:
    return Worker(row["id"], row["name"], row["pid"], row["slot"], row["device"], row["seen"])
