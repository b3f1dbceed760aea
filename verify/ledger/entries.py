"""What a ledger holds: a TOML file with one ``[[finding]]`` for each known defect."""

from __future__ import annotations

import datetime
import json
import os
import re
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from moeproof.verify.files import write_text
from moeproof.verify.violation import CHECKS

REQUIRED = ("identity", "library", "version", "check", "title", "date")
OPTIONAL = ("folder", "reason", "upstream")
HEAD = """\
# Known findings. `moeproof fuzz --ledger FILE` fails on what is not listed here; `moeproof ledger check FILE` fails on
# what is listed and no longer happens. `moeproof ledger add FOLDER --ledger FILE` appends an entry.
"""


class LedgerError(ValueError):
    """A ledger that can't be used; names the file, the entry, the value and what is allowed."""


@dataclass(frozen=True)
class Entry:
    """A known finding.

    Attributes
    ----------
    identity : str
        As `Finding.identity`.
    library : str
        The family of its subject: ``sglang-kernel`` in ``sglang-kernel:fused_gate@kimi_k2``.
    version : SpecifierSet
        Versions of the library that have the defect, as in ``==0.4.3``; empty for all.
    check : str
        The class of its check.
    title : str
        What happens, one line.
    date : date
        When it was listed.
    reason, upstream : str
        Why it stays, and where it is reported; at least one of them is not empty.
    folder : Path
        The finding's folder, with its case.
    """

    identity: str
    library: str
    version: SpecifierSet
    check: str
    title: str
    date: datetime.date
    reason: str
    upstream: str
    folder: Path

    def covers(self, identity: str, subject: str, version: str) -> bool:
        """Say whether a finding is this one: by identity, library, and the library's version."""
        same = identity == self.identity and subject.partition(":")[0] == self.library
        return same and self.covers_version(version)

    def covers_version(self, version: str) -> bool:
        """Say whether a library's version, as its subject reports it, is one that the entry is about."""
        number = parse_version(version)
        return not len(self.version) if number is None else self.version.contains(number, prereleases=True)


@dataclass(frozen=True)
class Ledger:
    """A ledger that has been read and checked.

    Attributes
    ----------
    path : Path
        Its file.
    entries : dict of str to Entry
        By identity.
    """

    path: Path
    entries: Mapping[str, Entry]

    def known(self, finding: Mapping[str, Any]) -> str:
        """Return why a finding, in the form of `Finding.summary`, is known; an empty string if it is not listed."""
        entry = self.entries.get(finding["identity"])
        if entry is None or not entry.covers(finding["identity"], finding["subject"], finding["version"]):
            return ""
        return entry.upstream or entry.reason


def folders_of(ledger: Ledger | None) -> tuple[Path, ...]:
    """Return the folders of the findings that a ledger lists; none without a ledger."""
    return () if ledger is None else tuple(entry.folder for entry in ledger.entries.values())


def parse_version(text: str) -> Version | None:
    """Return the version in a subject's version text; of ``bare files, expected 0.4.3`` the one that is expected."""
    try:
        return Version(text.removeprefix("bare files, expected "))
    except InvalidVersion:
        return None


def read(path: Path) -> Ledger:
    """Read a ledger.

    Raises
    ------
    LedgerError
        If it can't be read, or any part of it can't be used.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LedgerError(f"ledger is {str(path)!r}, which can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LedgerError(f"{path} is not TOML: {error}") from error
    if unknown := data.keys() - {"finding"}:
        raise LedgerError(f"{path} has {', '.join(sorted(unknown))}; allowed: [[finding]] tables")
    tables = data.get("finding", [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise LedgerError(f"{path}: finding is {tables!r:.60}; allowed: [[finding]] tables")
    entries: dict[str, Entry] = {}
    for number, table in enumerate(tables, 1):
        entry = _entry(path, f"{path}, finding {number}", table)
        if entry.identity in entries:
            raise LedgerError(f"{path}, finding {number}: identity {entry.identity} is listed twice")
        entries[entry.identity] = entry
    return Ledger(path, entries)


def _entry(path: Path, where: str, table: dict[str, Any]) -> Entry:
    if unknown := table.keys() - {*REQUIRED, *OPTIONAL}:
        allowed = ", ".join([*REQUIRED, *OPTIONAL])
        raise LedgerError(f"{where}: unknown keys {', '.join(sorted(unknown))}; allowed: {allowed}")
    if missing := [name for name in REQUIRED if name not in table]:
        raise LedgerError(f"{where} lacks {', '.join(missing)}")
    date = table["date"]
    if type(date) is not datetime.date:
        raise LedgerError(f"{where}: date is {date!r}; allowed: a TOML date such as 2026-01-31")
    for name, value in table.items():
        if name != "date" and not isinstance(value, str):
            raise LedgerError(f"{where}: {name} is {value!r:.60}; allowed: a string")
    if not re.fullmatch(r"[0-9a-f]{10}", table["identity"]):
        raise LedgerError(f"{where}: identity is {table['identity']!r}; allowed: ten hexadecimal digits")
    if table["check"] not in CHECKS:
        raise LedgerError(f"{where}: check is {table['check']!r}; allowed: {', '.join(CHECKS)}")
    if empty := [name for name in ("library", "title") if not table[name].strip()]:
        raise LedgerError(f"{where}: {empty[0]} is empty; allowed: a text")
    if not table.get("reason", "").strip() and not table.get("upstream", "").strip():
        raise LedgerError(f"{where} has neither reason nor upstream; allowed: at least one of them")
    try:
        version = SpecifierSet(table["version"])
    except InvalidSpecifier:
        raise LedgerError(
            f"{where}: version is {table['version']!r}; allowed: a specifier such as '==0.4.3' or '>=0.4,<0.5', or ''"
        ) from None
    folder = path.parent / table.get("folder", table["identity"])
    for file in ("case.json", "finding.json"):
        if not (folder / file).is_file():
            raise LedgerError(f"{where}: folder is {str(folder)!r}, which has no {file}; allowed: a finding's folder")
    texts = {name: table.get(name, "") for name in ("identity", "library", "check", "title", "reason", "upstream")}
    return Entry(version=version, date=date, folder=folder, **texts)


def append(
    path: Path,
    folder: Path,
    *,
    reason: str,
    upstream: str,
    version: str | None,
    title: str | None,
    date: datetime.date,
) -> Entry:
    """Append an entry for a finding's folder, which is copied beside the ledger unless it is there already.

    Parameters
    ----------
    path : Path
        The ledger; made if missing.
    folder : Path
        A finding's folder.
    reason, upstream : str
        As in `Entry`.
    version : str, optional
        A specifier; default: the version that the finding was seen with.
    title : str, optional
        What happens, one line; default: the finding's own title.
    date : date
        Of the entry.

    Returns
    -------
    Entry
        What was added.

    Raises
    ------
    LedgerError
        If the folder is no finding's, the entry would not be valid, or its identity is listed already.
    """
    try:
        summary = json.loads((folder / "finding.json").read_text(encoding="utf-8"))
        identity, subject = str(summary["identity"]), str(summary["subject"])
        seen, check, named = str(summary["version"]), str(summary["check"]), str(summary["title"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"folder is {str(folder)!r}; allowed: a finding's folder ({error})") from error
    if path.exists() and identity in read(path).entries:
        raise LedgerError(f"{path} lists {identity} already")
    if version is None:
        number = parse_version(seen)
        version = f"=={number.public}" if number is not None else ""
    beside = path.parent.resolve()
    place = folder if folder.resolve().is_relative_to(beside) else path.parent / identity
    fields: dict[str, Any] = {
        "identity": identity,
        "library": subject.partition(":")[0],
        "version": version,
        "check": check,
        "title": named.removeprefix(f"{subject}: ") if title is None else title,
        "date": date,
        "reason": reason,
        "upstream": upstream,
        "folder": Path(os.path.relpath(place.resolve(), beside)).as_posix(),
    }
    if fields["folder"] == identity:
        del fields["folder"]
    fields = {name: value for name, value in fields.items() if value != "" or name == "version"}
    # Checked before anything is written: with the folder where it is now.
    _entry(path, "the new entry", fields | {"folder": str(folder.resolve())})
    if place != folder:
        _copy(folder, place)
    old = path.read_text(encoding="utf-8") if path.exists() else HEAD
    lines = [f"{name} = {_toml(value)}" for name, value in fields.items()]
    write_text(path, old.rstrip("\n") + "\n\n[[finding]]\n" + "\n".join(lines) + "\n")
    return read(path).entries[identity]


def _copy(folder: Path, place: Path) -> None:
    """Copy a folder so that it is there in whole or not at all."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        shutil.copytree(folder, beside)
        if place.exists():
            raise LedgerError(f"{place} exists already; allowed: no folder of that name beside the ledger")
        os.replace(beside, place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _toml(value: Any) -> str:
    """Return a string or a date as TOML; what JSON escapes, TOML reads, but for the DEL character."""
    if isinstance(value, datetime.date):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
