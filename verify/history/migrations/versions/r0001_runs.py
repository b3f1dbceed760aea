"""Runs, subjects, coverage, failures, defects, sightings, notes and timings."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "runs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("started", sa.Double, nullable=False),
        sa.Column("seen", sa.Double, nullable=False),
        sa.Column("ended", sa.Double),
        sa.Column("exit", sa.Integer),
        sa.Column("interrupted", sa.Boolean, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("reducing", sa.Double, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
    )
    op.create_index("ix_runs_started", "runs", ["started"])
    op.create_table(
        "run_subjects",
        _run(),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("op", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("domain", sa.JSON, nullable=False),
        sa.Column("unavailable", sa.Text, nullable=False),
        sa.Column("cases", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
    )
    op.create_table(
        "experts",
        _run(),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("bucket", sa.Text, primary_key=True),
        sa.Column("cases", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("failed", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "coverage",
        _run(),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, primary_key=True),
        sa.Column("cases", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "failures",
        _run(),
        sa.Column("subject", sa.Text, primary_key=True),
        sa.Column("check_class", sa.Text, primary_key=True),
        sa.Column("count", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "defects",
        sa.Column("identity", sa.Text, primary_key=True),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("op", sa.Text, nullable=False),
        sa.Column("check_class", sa.Text, nullable=False),
        sa.Column("severity", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("script", sa.Text, nullable=False),
        sa.Column("case_json", sa.Text, nullable=False),
    )
    op.create_table(
        "sightings",
        _run(),
        sa.Column("identity", sa.Text, sa.ForeignKey("defects.identity"), primary_key=True),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("known", sa.Boolean, nullable=False),
        sa.Column("details", sa.JSON, nullable=False),
    )
    op.create_index("ix_sightings_identity", "sightings", ["identity"])
    op.create_table(
        "notes",
        _run(),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("time", sa.Double, nullable=False),
        sa.Column("error", sa.Boolean, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_table(
        "timings",
        _run(),
        sa.Column("position", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("op", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("shape", sa.Text, nullable=False),
        sa.Column("median", sa.Double),
        sa.Column("details", sa.JSON, nullable=False),
    )
    op.create_index("ix_timings_subject_op", "timings", ["subject", "op"])


def _run() -> sa.Column[str]:
    return sa.Column("run", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
