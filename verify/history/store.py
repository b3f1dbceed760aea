"""The history: runs are saved as they go and read back as they were."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Select, Table, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL

from . import schema
from .engine import connect, explained, parse, reading, shown, writing
from .errors import HistoryError
from .migrate import upgrade
from .record import RunRecord
from .rows import Row, from_rows, key_of, to_rows

_PARTS = (
    schema.run_subjects,
    schema.experts,
    schema.coverage,
    schema.failures,
    schema.sightings,
    schema.notes,
    schema.timings,
)
AT_ONCE = 200
"""Runs whose rows are asked for in one query."""


class History:
    """A database of runs.

    Parameters
    ----------
    where : str
        A URL, or a path of an SQLite file.
    create : bool
        An SQLite file that isn't there is made.

    Raises
    ------
    HistoryError
        It can't be opened, or a newer version of moeproof has written it.
    """

    def __init__(self, where: str, *, create: bool = False) -> None:
        self._url: URL = parse(where)
        self._engine: Engine = connect(self._url, create=create)
        self._saved: dict[tuple[Table, tuple[Any, ...]], Row] = {}
        try:
            with explained(self._url, "opened"):
                upgrade(self._engine)
        except HistoryError as error:
            self.close()
            text = str(error)
            raise HistoryError(text if text.startswith("history ") else f"history {self}: {text}") from error

    def __str__(self) -> str:
        return shown(self._url)

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    def save(self, run: RunRecord) -> None:
        """Write a run as it stands, in one transaction; rows that are as this object wrote them last are left out.

        Raises
        ------
        HistoryError
            It can't be written; nothing of it is then.
        """
        fresh: dict[tuple[Table, tuple[Any, ...]], Row] = {}
        try:
            with explained(self._url, "written"), writing(self._engine) as connection:
                for table, rows in to_rows(run).items():
                    changed = {(table, key_of(table, r)): r for r in rows}
                    changed = {k: r for k, r in changed.items() if self._saved.get(k) != r}
                    self._upsert(connection, table, list(changed.values()))
                    fresh |= changed
        except HistoryError:
            self._saved.clear()  # what the database has of it is unknown now
            raise
        self._saved |= fresh

    def add(self, run: RunRecord) -> bool:
        """Write a run that was recorded elsewhere, unless more of it is here already; say whether it was written."""
        with explained(self._url, "read"), reading(self._engine) as connection:
            known = connection.execute(
                select(schema.runs.c.seen, schema.runs.c.ended).where(schema.runs.c.id == run.id)
            ).one_or_none()
        ends = run.ended is not None and known is not None and known.ended is None
        if known is not None and known.seen >= run.seen and not ends:
            return False
        self.save(run)
        return True

    def runs(self, *, last: int | None = None, job: str | None = None, subject: str | None = None) -> list[RunRecord]:
        """Return runs with all that is known of them, oldest first.

        Parameters
        ----------
        last : int, optional
            Only so many, the latest.
        job, subject : str, optional
            Only runs of a job, or with a subject.
        """
        query = select(schema.runs).order_by(schema.runs.c.started.desc(), schema.runs.c.id)
        if job is not None:
            query = query.where(schema.runs.c.job == job)
        if subject is not None:
            with_it = [t.c.run for t in (schema.run_subjects, schema.timings)]
            chosen = [select(c).where(c.table.c.subject == subject) for c in with_it]
            query = query.where(schema.runs.c.id.in_(chosen[0]) | schema.runs.c.id.in_(chosen[1]))
        return self._load(query.limit(last) if last is not None else query)

    def find(self, start: str) -> list[RunRecord]:
        """Return the runs whose id begins with some text."""
        return self._load(select(schema.runs).where(schema.runs.c.id.startswith(start, autoescape=True)))

    def _load(self, query: Select[Any]) -> list[RunRecord]:
        with explained(self._url, "read"), reading(self._engine) as connection:
            found = [dict(row) for row in connection.execute(query).mappings()]
            records = []
            for start in range(0, len(found), AT_ONCE):
                some = found[start : start + AT_ONCE]
                parts = _parts(connection, [run["id"] for run in some])
                records += [from_rows(run, {t: parts[t][run["id"]] for t in _PARTS}) for run in some]
        return sorted(records, key=lambda run: run.started)

    def _upsert(self, connection: Connection, table: Table, rows: list[Row]) -> None:
        if not rows:
            return
        insert = (postgresql if self._engine.dialect.name == "postgresql" else sqlite).insert(table)
        keys = [column.name for column in table.primary_key]
        rest = {column.name: insert.excluded[column.name] for column in table.c if column.name not in keys}
        if table is schema.defects:  # a defect stays as it was first found
            statement = insert.on_conflict_do_nothing(index_elements=keys)
        else:
            statement = insert.on_conflict_do_update(index_elements=keys, set_=rest)
        connection.execute(statement, rows)


def _parts(connection: Connection, ids: Sequence[str]) -> dict[Table, dict[str, list[Row]]]:
    """Return the rows of some runs by table and run, in the order of their keys."""
    found: dict[Table, dict[str, list[Row]]] = {}
    for table in _PARTS:
        query: Select[Any] = select(table)
        if table is schema.sightings:
            about = [column for column in schema.defects.c if column.name != "identity"]
            query = select(table, *about).join(schema.defects).order_by(table.c.time)
        query = query.where(table.c.run.in_(ids)).order_by(*table.primary_key)
        by_run: dict[str, list[Row]] = defaultdict(list)
        for row in connection.execute(query).mappings():
            by_run[row["run"]].append(dict(row))
        found[table] = by_run
    return found
