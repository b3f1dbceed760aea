"""Connecting to a history: URLs, timeouts, and transactions that take their lock at the start."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, NullPool, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from .errors import HistoryError

ALLOWED = "sqlite:///FILE, a path of a file, or postgresql://USER@HOST/DATABASE"
WAIT = 30
"""Seconds to wait for another writer's lock."""
_WRITING = "moeproof_writing"


def parse(where: str) -> URL:
    """Return the URL of a history.

    Parameters
    ----------
    where : str
        A URL, or a path of an SQLite file.

    Raises
    ------
    HistoryError
        It is neither; a password in it is not repeated.
    """
    if "://" not in where:
        if not where.strip() or "\0" in where:
            raise HistoryError(f"history is {where!r}; allowed: {ALLOWED}")
        return URL.create("sqlite", database=where)
    try:
        url = make_url(where)
    except (ArgumentError, ValueError) as error:
        raise HistoryError(f"history is {_masked(where)!r}, which is no URL; allowed: {ALLOWED}") from error
    backend = url.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite" or not url.database or url.database == ":memory:":
        raise HistoryError(f"history is {_masked(where)!r}; allowed: {ALLOWED}")
    return url.set(drivername="sqlite")


def shown(url: URL) -> str:
    """Return a history's URL as a person may see it, without its password."""
    if url.get_backend_name() == "sqlite":
        return url.database or ""
    return url.set(drivername="postgresql").render_as_string(hide_password=True)


def connect(url: URL, *, create: bool) -> Engine:
    """Return an engine; nothing is asked of the database yet.

    Parameters
    ----------
    url : URL
        What `parse` gives.
    create : bool
        An SQLite file that isn't there is made, with its folder.

    Raises
    ------
    HistoryError
        There is no such file and none is to be made, or the driver isn't installed.
    """
    if url.get_backend_name() == "sqlite":
        path = Path(str(url.database))
        if not create and not path.is_file():
            raise HistoryError(
                f"history is {str(path)!r}; allowed: an existing file, or postgresql://USER@HOST/DATABASE"
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HistoryError(f"history is {str(path)!r}, whose folder can't be made: {error}") from error
        engine = create_engine(url, poolclass=NullPool, connect_args={"timeout": WAIT, "isolation_level": None})
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    # What hangs has to end: a fuzz run must not wait for a database for ever. A pooler may stand between, so no
    # statement is prepared and no parameter is set for longer than a transaction.
    defaults = {"connect_timeout": "10", "keepalives_idle": "10", "tcp_user_timeout": "20000"}
    options: dict[str, Any] = {name: value for name, value in defaults.items() if name not in url.query}
    try:
        return create_engine(url, pool_pre_ping=True, pool_size=1, connect_args={**options, "prepare_threshold": None})
    except ImportError as error:
        raise HistoryError(f"history is {shown(url)}, which needs psycopg: pip install 'moeproof[postgres]'") from error


@contextlib.contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Give a transaction to read in."""
    with engine.begin() as connection:
        yield connection


@contextlib.contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Give a transaction to write in; on SQLite it has the write lock from its start, so that none can deadlock."""
    with engine.connect().execution_options(**{_WRITING: True}) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SET LOCAL statement_timeout = {WAIT * 2000}"))
            connection.execute(text(f"SET LOCAL lock_timeout = {WAIT * 1000}"))
        yield connection


@contextlib.contextmanager
def explained(url: URL, doing: str) -> Iterator[None]:
    """Turn a database's errors into a `HistoryError` of one line that says where."""
    try:
        yield
    except SQLAlchemyError as error:
        reason = _masked(str(getattr(error, "orig", None) or error).strip().splitlines()[0])
        raise HistoryError(f"history {shown(url)} can't be {doing}: {reason}") from error


def _begin_sqlite(connection: Connection) -> None:
    # pysqlite begins no transaction by itself here (isolation_level None), so that DDL rolls back like the rest.
    immediate = connection.get_execution_options().get(_WRITING)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


def _masked(text_: str) -> str:
    return re.sub(r"(://[^:/@\s]*):.*@", r"\1:***@", text_)
