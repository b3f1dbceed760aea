"""Brings a history's tables up to date; of several processes that start at once, one does it and the others wait."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, Engine, column, inspect, select, table, text

from .engine import reading, writing
from .errors import HistoryError
from .schema import HEAD

MIGRATIONS = Path(__file__).with_name("migrations")
LOCK = 0x6D6F6570
"""Key of PostgreSQL's advisory lock: the bytes of ``moep``."""


def upgrade(engine: Engine) -> None:
    """Run the migrations that are missing, all in one transaction.

    Raises
    ------
    HistoryError
        A newer version of moeproof has written the history.
    """
    with reading(engine) as connection:
        if revision(connection) == HEAD:
            return
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        _upgrade(connection)


def revision(connection: Connection) -> str | None:
    """Return the revision of a history's tables, or None if it has none yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found: str | None = connection.execute(select(column("version_num")).select_from(table("alembic_version"))).scalar()
    return found


def _upgrade(connection: Connection) -> None:
    # Only here: a history that is up to date needs none of it.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    found = revision(connection)
    if found == HEAD:  # another process was faster
        return
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "newline")
    if found is not None and found not in {s.revision for s in ScriptDirectory.from_config(config).walk_revisions()}:
        raise HistoryError(
            f"its tables are at revision {found}, which this moeproof doesn't know; allowed: up to {HEAD}. "
            "A newer moeproof has written it: upgrade this one"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
