"""A run as rows of the history's tables, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Table

from . import schema
from .record import RunRecord, SubjectRecord

Row = dict[str, Any]

KEY_BYTES = {
    "id": 200,
    "run": 200,
    "identity": 200,
    "bucket": 100,
    "kind": 200,
    "check_class": 200,
    "subject": 1000,
    "value": 1000,
}
"""Bytes that texts in keys are cut to: PostgreSQL's indices take no more than 2704 in all."""
_SUBJECT = ("op", "device", "version", "unavailable", "cases", "rows", "seconds")
_RUN = ("job", "started", "seen", "ended", "exit", "interrupted", "seconds", "reducing", "details")
_DEFECT = {
    "subject": "subject",
    "op": "op",
    "check": "check_class",
    "severity": "severity",
    "title": "title",
    "script": "script",
    "case": "case_json",
}
"""Fields of a finding, and the columns of `schema.defects` that hold them."""


def to_rows(run: RunRecord) -> dict[Table, list[Row]]:
    """Return a run's rows by table, parents first; each table's are in the order of their keys."""
    of: Row = {"run": run.id}
    found: dict[Table, list[Row]] = {
        schema.runs: [{"id": run.id, **{name: getattr(run, name) for name in _RUN}}],
        schema.run_subjects: [],
        schema.experts: [],
        schema.coverage: [],
        schema.failures: [],
        schema.defects: [],
        schema.sightings: [],
        schema.notes: [{**of, "position": i, **note} for i, note in enumerate(run.notes)],
        schema.timings: [_timing(run.id, i, timing) for i, timing in enumerate(run.timings)],
    }
    for name, subject in run.subjects.items():
        key = {**of, "subject": name}
        row = {**key, **{field: getattr(subject, field) for field in _SUBJECT}, "domain": list(subject.domain)}
        found[schema.run_subjects].append(row)
        found[schema.experts] += [
            {**key, "bucket": bucket, **{n: counts.get(n, 0) for n in ("cases", "rows", "failed")}}
            for bucket, counts in subject.experts.items()
        ]
        found[schema.coverage] += [
            {**key, "kind": kind, "value": value, "cases": count}
            for kind, counts in subject.coverage.items()
            for value, count in counts.items()
        ]
        found[schema.failures] += [
            {**key, "check_class": check, "count": count} for check, count in subject.failures.items()
        ]
    for identity, finding in run.findings.items():
        columns = {column: str(finding.get(field, "")) for field, column in _DEFECT.items()}
        found[schema.defects].append({"identity": identity, **columns})
        rest = {n: v for n, v in finding.items() if n not in {*_DEFECT, "identity", "time", "known"}}
        row = {"identity": identity, "time": finding["time"], "known": finding["known"], "details": rest}
        found[schema.sightings].append({**of, **row})
    # Two runs that store the same defects take their locks in the same order.
    return {t: sorted(map(_clean, rows), key=lambda row, t=t: key_of(t, row)) for t, rows in found.items()}  # type: ignore[misc]


def key_of(table: Table, row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a row's primary key."""
    return tuple(row[column.name] for column in table.primary_key)


def from_rows(run: Row, parts: Mapping[Table, Sequence[Row]]) -> RunRecord:
    """Return a run from its row and those of the other tables; sightings come with their defect's columns."""
    record = RunRecord(run["id"], **{name: run[name] for name in _RUN})
    for row in parts[schema.run_subjects]:
        fields = {field: row[field] for field in _SUBJECT}
        record.subjects[row["subject"]] = SubjectRecord(row["subject"], **fields, domain=tuple(row["domain"]))
    for row in parts[schema.experts]:
        counts = {name: row[name] for name in ("cases", "rows", "failed")}
        record.subjects[row["subject"]].experts[row["bucket"]] = counts
    for row in parts[schema.coverage]:
        record.subjects[row["subject"]].coverage.setdefault(row["kind"], {})[row["value"]] = row["cases"]
    for row in parts[schema.failures]:
        record.subjects[row["subject"]].failures[row["check_class"]] = row["count"]
    for row in parts[schema.sightings]:
        about = {field: row[column] for field, column in _DEFECT.items()}
        times = {"time": row["time"], "known": row["known"]}
        record.findings[row["identity"]] = {"identity": row["identity"], **about, **row["details"], **times}
    record.notes = [{name: row[name] for name in ("time", "text", "error")} for row in parts[schema.notes]]
    record.timings = [
        {name: row[name] for name in ("op", "subject", "shape", "median")} | row["details"]
        for row in parts[schema.timings]
    ]
    return record


def _timing(run: str, position: int, timing: Row) -> Row:
    columns = ("op", "subject", "shape", "median")
    rest = {name: value for name, value in timing.items() if name not in columns}
    return {"run": run, "position": position, **{name: timing[name] for name in columns}, "details": rest}


def _clean(row: Row) -> Row:
    """Return a row that any database takes: what a library prints may hold NUL or half a surrogate pair."""
    return {name: _key(value, KEY_BYTES[name]) if name in KEY_BYTES else _value(value) for name, value in row.items()}


def _key(value: str, most: int) -> str:
    return _text(value).encode()[:most].decode(errors="ignore")


def _value(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return {_text(str(name)): _value(item) for name, item in value.items()}
    if isinstance(value, Iterable):
        return [_value(item) for item in value]
    # JSON knows no NaN, and PostgreSQL refuses it.
    return None if isinstance(value, float) and value - value != 0 else value


def _text(value: str) -> str:
    return value.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
