"""A throw-away PostgreSQL server on a Unix socket, from the binaries that the machine has."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

try:
    import psycopg
except ImportError:
    psycopg = None  # type: ignore[assignment]

PLACES = "/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin"
ACCOUNTS = "postgres", "nobody"
"""Who may run the server where the tests run as root, whom it refuses."""
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "max_connections": "30",
    "shared_buffers": "16MB",
}
ROLE = "tester"


class Missing(Exception):
    """No server can run here; says why."""


class Postgres:
    """A server, started at once.

    Raises
    ------
    Missing
        There is no driver, there are no binaries, or no account to run them under.
    """

    def __init__(self) -> None:
        if psycopg is None:
            raise Missing("needs psycopg (pip install 'moeproof[postgres]')")
        self._bin = _binaries()
        self._user = _account()
        self.folder = Path(tempfile.mkdtemp(prefix="moeproof-pg-", dir="/tmp"))  # a socket's path must be short
        if self._user is not None:
            shutil.chown(self.folder, *self._user)
        self._run("initdb", "-D", str(self.folder / "data"), "-U", ROLE, "-A", "trust", "-N", "-E", "UTF8")
        self._process: subprocess.Popen[bytes] | None = None
        self._databases = 0
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = [part for name, value in SETTINGS.items() for part in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [str(self._bin / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder), *options],
            stdout=subprocess.DEVNULL,
            stderr=(self.folder / "log").open("ab"),
            **self._as_user(),  # type: ignore[call-overload]
        )
        end = time.monotonic() + 30
        while True:
            try:
                self._connect("postgres").close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(0.05)

    def stop(self) -> None:
        """End the server as a crash would: at once, with its connections."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    def database(self) -> str:
        """Make an empty database and return its URL."""
        self._databases += 1
        name = f"history{self._databases}"
        with self._connect("postgres") as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return f"postgresql://{ROLE}@/{name}?host={self.folder}"

    def close(self) -> None:
        """End the server and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _connect(self, database: str) -> Any:
        return psycopg.connect(host=str(self.folder), user=ROLE, dbname=database, autocommit=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            capture_output=True,
            text=True,
            **self._as_user(),  # type: ignore[call-overload]
        )
        if done.returncode:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise Missing(f"{program} failed: {done.stderr.strip()[-300:]}")

    def _as_user(self) -> dict[str, object]:
        env = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
        if self._user is None:
            return {"env": env, "cwd": "/"}
        return {"env": env, "cwd": "/", "user": self._user[0], "group": self._user[1], "extra_groups": []}


def _binaries() -> Path:
    found = shutil.which("postgres")
    # A link on PATH leads to the folder that holds initdb and the server's files too.
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted((p for pattern in PLACES for p in Path("/").glob(pattern[1:])), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise Missing("no PostgreSQL server here (apt-get install postgresql)")


def _account() -> tuple[int, int] | None:
    if os.geteuid() != 0:
        return None
    for name in ACCOUNTS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise Missing(f"PostgreSQL refuses to run as root, and there is no account {' or '.join(ACCOUNTS)}")
