"""Runs the migrations on the connection that `migrate.upgrade` hands over, inside its transaction."""

from __future__ import annotations

from alembic import context

from moeproof.verify.history.schema import metadata

# SQLite's DDL is transactional too: pysqlite's habit of committing before it is switched off in `engine`.
context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
