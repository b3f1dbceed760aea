"""Tables of the history. A change here needs a revision in ``migrations/versions`` and its name in `HEAD`."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)

HEAD = "0001"
"""The revision that this version of moeproof reads and writes."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def _of_run() -> Column[str]:
    return Column("run", Text, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)


runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("job", Text, nullable=False),
    Column("started", Double, nullable=False),
    Column("seen", Double, nullable=False),
    Column("ended", Double),
    Column("exit", Integer),
    Column("interrupted", Boolean, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("reducing", Double, nullable=False),
    Column("details", JSON, nullable=False),
    Index(None, "started"),
)
"""One row a run; ``ended`` is null until it ends, so that one that was killed shows."""

run_subjects = Table(
    "run_subjects",
    metadata,
    _of_run(),
    Column("subject", Text, primary_key=True),
    Column("op", Text, nullable=False),
    Column("device", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("domain", JSON, nullable=False),
    Column("unavailable", Text, nullable=False),
    Column("cases", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("seconds", Double, nullable=False),
)
"""What a run did with each subject."""

experts = Table(
    "experts",
    metadata,
    _of_run(),
    Column("subject", Text, primary_key=True),
    Column("bucket", Text, primary_key=True),
    Column("cases", BigInteger, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("failed", BigInteger, nullable=False),
)
"""Cases, rows and failed cases by range of E."""

coverage = Table(
    "coverage",
    metadata,
    _of_run(),
    Column("subject", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    Column("cases", BigInteger, nullable=False),
)
"""Cases by label: sizes, patterns, dispatch paths, ..."""

failures = Table(
    "failures",
    metadata,
    _of_run(),
    Column("subject", Text, primary_key=True),
    Column("check_class", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
)
"""Every failed check, by class."""

defects = Table(
    "defects",
    metadata,
    Column("identity", Text, primary_key=True),
    Column("subject", Text, nullable=False),
    Column("op", Text, nullable=False),
    Column("check_class", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("script", Text, nullable=False),
    Column("case_json", Text, nullable=False),
)
"""What was found, once for each identity, as the first run that stored it found it."""

sightings = Table(
    "sightings",
    metadata,
    _of_run(),
    Column("identity", Text, ForeignKey("defects.identity"), primary_key=True),
    Column("time", Double, nullable=False),
    Column("known", Boolean, nullable=False),
    Column("details", JSON, nullable=False),
    Index(None, "identity"),
)
"""In which run a defect was seen, with what that run tells of it."""

notes = Table(
    "notes",
    metadata,
    _of_run(),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("time", Double, nullable=False),
    Column("error", Boolean, nullable=False),
    Column("text", Text, nullable=False),
)
"""What else a run tells, faults of the harness included."""

timings = Table(
    "timings",
    metadata,
    _of_run(),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("op", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("shape", Text, nullable=False),
    Column("median", Double),
    Column("details", JSON, nullable=False),
    Index(None, "subject", "op"),
)
"""Benchmark results, in microseconds; ``median`` is null where nothing could be measured."""
