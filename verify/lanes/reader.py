"""Reads a lanes file and checks all of it; every problem is named with its table, key, value and what is allowed."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .schema import EXAMPLES_KEYS, FILE_KEYS, LANE_KEYS, THRESHOLD_KEYS, Examples, Key, Lane, Lanes

_TABLES = ("defaults", "examples", "lane")


class LanesError(ValueError):
    """A lanes file that can't be used; one line for each problem."""


def load_lanes(path: Path) -> Lanes:
    """Read a lanes file.

    Paths in it (of corpus folders, the ledger, test files and ``FILE.py`` subjects) are relative to its own folder.

    Raises
    ------
    LanesError
        If it can't be read or anything in it is wrong; names every problem.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LanesError(f"lanes is {str(path)!r}: {error.strerror}; allowed: a readable TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LanesError(f"{path}: {error}; allowed: a TOML file") from error
    return _Reader(path).read(data)


def pick(lanes: Lanes, names: Collection[str]) -> tuple[Lane, ...]:
    """Return the lanes of these names, in the file's order; all if no name is given.

    Raises
    ------
    LanesError
        If there is none of a name.
    """
    known = [lane.name for lane in lanes.lanes]
    for name in names:
        if name not in known:
            raise LanesError(f"lane is {name!r}; allowed by {lanes.path}: {', '.join(known)}")
    return tuple(lane for lane in lanes.lanes if not names or lane.name in names)


class _Reader:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path.resolve().parent
        self.problems: list[str] = []

    def read(self, data: dict[str, Any]) -> Lanes:
        self._known("the file", data, (*FILE_KEYS, *_TABLES))
        top = self._values("the file", {k: v for k, v in data.items() if k in FILE_KEYS}, FILE_KEYS)
        shared = self._table(data, "examples")
        self._known("[examples]", shared, EXAMPLES_KEYS)
        examples = self._values("[examples]", shared, EXAMPLES_KEYS)
        defaults = self._lane_values("[defaults]", self._table(data, "defaults"))
        tables = self._table(data, "lane")
        if not tables and not self.problems:
            self._say("the file", "has no lane; allowed: at least one table [lane.NAME]")
        lanes = [self._lane(name, table, defaults) for name, table in tables.items()]
        corpus = tuple(self._place("the file", "corpus", text) for text in top.get("corpus", ()))
        ledger = self._place("the file", "ledger", top["ledger"]) if "ledger" in top else None
        if self.problems:
            raise LanesError("\n".join(self.problems))
        return Lanes(self.path, tuple(lane for lane in lanes if lane), corpus, ledger, Examples(**examples))

    def _lane(self, name: str, table: object, defaults: Mapping[str, Any]) -> Lane | None:
        where = f"lane {name!r}"
        if not isinstance(table, dict):
            self._say(where, f"is {table!r}; allowed: a table [lane.{name}]")
            return None
        values = {**defaults, **self._lane_values(where, table)}
        if "subjects" not in table and "subjects" not in defaults:
            self._say(where, f"subjects is missing; allowed: {LANE_KEYS['subjects'].allowed}")
        if ("tests" in values.get("checks", ())) != bool(values.get("tests")):
            self._say(where, "tests and the check 'tests' go together; allowed: both or neither")
        # What fails its test is in `problems`: this lane is never used then.
        return Lane(name, **{"subjects": (), **values})

    def _lane_values(self, where: str, table: dict[str, Any]) -> dict[str, Any]:
        """Return the fields of `Lane` that a table sets."""
        self._known(where, table, (*LANE_KEYS, "thresholds"))
        values = self._values(where, table, LANE_KEYS)
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        if "tests" in values:
            values["tests"] = tuple(str(self._place(where, "tests", text)) for text in values["tests"])
        if "paths" in values:
            values["paths"] = tuple(os.path.normpath(self.folder / text) for text in values["paths"])
        if "subjects" in values:
            values["subjects"] = tuple(self._subject(text) for text in values["subjects"])
        thresholds = table.get("thresholds", {})
        if not isinstance(thresholds, dict):
            self._say(where, f"thresholds is {thresholds!r}; allowed: a table of {', '.join(THRESHOLD_KEYS)}")
            return values
        self._known(f"{where}, thresholds", thresholds, THRESHOLD_KEYS)
        return values | self._values(f"{where}, thresholds", thresholds, THRESHOLD_KEYS)

    def _table(self, data: dict[str, Any], name: str) -> dict[str, Any]:
        table = data.get(name, {})
        if isinstance(table, dict):
            return table
        self._say("the file", f"{name} is {table!r}; allowed: a table")
        return {}

    def _known(self, where: str, table: Mapping[str, Any], allowed: Collection[str]) -> None:
        for key in table:
            if key not in allowed:
                near = difflib.get_close_matches(key, allowed, n=1)
                hint = f" (did you mean {near[0]!r}?)" if near else ""
                self._say(where, f"key {key!r} is not known{hint}; allowed: {', '.join(allowed)}")

    def _values(self, where: str, table: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
        """Return the known values that pass their key's test."""
        for key, value in table.items():
            if key in keys and not keys[key].good(value):
                self._say(where, f"{key} is {value!r}; allowed: {keys[key].allowed}")
        return {key: value for key, value in table.items() if key in keys and keys[key].good(value)}

    def _place(self, where: str, key: str, text: str) -> Path:
        path = self.folder / text
        if not path.exists():
            self._say(where, f"{key} names {text!r}; allowed: what exists, relative to {self.folder}")
        return path

    def _subject(self, text: str) -> str:
        return str(self.folder / text) if ".py" in text else text

    def _say(self, where: str, text: str) -> None:
        self.problems.append(f"{self.path}: {where}: {text}")
