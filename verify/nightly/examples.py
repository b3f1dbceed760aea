"""Hypothesis example databases, chained: a local folder, a Redis that machines share, a GitHub artifact to read from.

Two things use them. Users' own Hypothesis tests, through the `nightly` profile, store choice sequences. Slices of
fuzzing store whole cases, by op: these stay readable when strategies or Hypothesis change, and what broke one subject
is tried on the others, on other workers and machines too.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis.database import (
    DirectoryBasedExampleDatabase,
    ExampleDatabase,
    GitHubArtifactDatabase,
    MultiplexedDatabase,
    ReadOnlyDatabase,
)
from hypothesis.errors import HypothesisWarning

from moeproof.strategies.case import Case, CaseError
from moeproof.verify.lanes.schema import Examples

from .layout import REDIS_VARIABLE

PROFILE = "nightly"
EXAMPLES = 20_000
SECONDS = 5.0
"""How long a shared Redis may take to answer."""


class ExamplesError(ValueError):
    """An example database that can't be used; names the setting."""


class Tolerant(ExampleDatabase):
    """Passes on to a remote database until it fails; then the run goes on without it.

    Parameters
    ----------
    remote : ExampleDatabase
        The database.
    name : str
        What to call it when it fails.
    note : callable
        Takes the one sentence that says so.
    """

    def __init__(self, remote: ExampleDatabase, name: str, note: Callable[[str], None]) -> None:
        super().__init__()
        self._remote: ExampleDatabase | None = remote
        self._name = name
        self._note = note

    def _try(self, method: str, *arguments: bytes) -> Any:
        if self._remote is None:
            return None
        try:
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always", HypothesisWarning)
                result = getattr(self._remote, method)(*arguments)
                result = list(result) if method == "fetch" else result
        except Exception as error:  # a network has many ways to fail, and none is this run's business
            self._give_up(f"{type(error).__name__}: {error}")
            return None
        if told:  # an artifact that can't be had is empty, with a warning
            self._give_up(str(told[0].message))
        return result

    def _give_up(self, reason: str) -> None:
        self._remote = None
        self._note(f"{self._name} failed, the run goes on without it: {reason}")

    def fetch(self, key: bytes) -> Iterable[bytes]:
        """Return what is stored under a key."""
        yield from self._try("fetch", key) or ()

    def save(self, key: bytes, value: bytes) -> None:
        """Store a value under a key."""
        self._try("save", key, value)

    def delete(self, key: bytes, value: bytes) -> None:
        """Forget a value."""
        self._try("delete", key, value)

    def move(self, src: bytes, dest: bytes, value: bytes) -> None:
        """Move a value to another key."""
        self._try("move", src, dest, value)


def chain(local: Path, shared: Examples, note: Callable[[str], None]) -> ExampleDatabase:
    """Return the databases of a run as one.

    Parameters
    ----------
    local : Path
        Folder of the run's own database.
    shared : Examples
        The shared ones.
    note : callable
        Is told when a shared one fails.

    Raises
    ------
    ExamplesError
        If a Redis is named and its client is not installed.
    """
    databases: list[ExampleDatabase] = [DirectoryBasedExampleDatabase(local)]
    if shared.redis:
        databases.append(Tolerant(_redis(shared.redis), f"the example database {_plain(shared.redis)}", note))
    if shared.github:
        owner, _, repository = shared.github.partition("/")
        artifact = GitHubArtifactDatabase(
            owner, repository, artifact_name=shared.artifact, path=local.parent / "github-artifact"
        )
        databases.append(ReadOnlyDatabase(Tolerant(artifact, f"the artifact of {shared.github}", note)))
    return MultiplexedDatabase(*databases)


def shared_of(plan: Mapping[str, Any]) -> Examples:
    """Return the shared databases that a run's plan names, and its Redis from the environment."""
    return Examples(**plan["examples"], redis=os.environ.get(REDIS_VARIABLE, ""))


def _redis(url: str) -> ExampleDatabase:
    try:
        from hypothesis.extra.redis import RedisExampleDatabase
        from redis import Redis
    except ImportError as error:
        raise ExamplesError(f"redis is {_plain(url)!r}; allowed with the redis package: pip install redis") from error
    try:
        client = Redis.from_url(url, socket_timeout=SECONDS, socket_connect_timeout=SECONDS)
    except ValueError as error:
        raise ExamplesError(f"redis is {_plain(url)!r}: {error}; allowed: a Redis URL") from error
    return RedisExampleDatabase(client)


def _plain(url: str) -> str:
    """Return a URL without its password."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def load_profile(database: ExampleDatabase) -> None:
    """Make `nightly` the Hypothesis profile: explore and remember, also where CI is set and Hypothesis does neither."""
    settings.register_profile(
        PROFILE, max_examples=EXAMPLES, deadline=None, derandomize=False, database=database, print_blob=True
    )
    settings.load_profile(PROFILE)


def _key(op: str) -> bytes:
    return f"moeproof case {op}".encode()


def save_case(database: ExampleDatabase, case: Case) -> None:
    """Store a case."""
    database.save(_key(case.op), case.dumps().encode())


def stored_cases(database: ExampleDatabase, op: str) -> Iterator[Case]:
    """Yield the stored cases of an op; what others stored and is no case is passed over."""
    for value in sorted(database.fetch(_key(op))):
        try:
            case = Case.loads(value.decode())
        except (CaseError, ValueError, TypeError, KeyError, RecursionError):
            continue
        if case.op == op:
            yield case
