"""The command line where sqlalchemy and alembic are not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from moeproof.verify.history.errors import LIBRARIES, HistoryError, libraries_needed

BLOCKED = f"""
import sys

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {LIBRARIES}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Gone())
from moeproof.verify.cli import main
main()
"""


def moeproof(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-c", BLOCKED, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
    return done.returncode, " ".join(done.stdout.split())


def test_what_keeps_no_history_works(tmp_path: Path) -> None:
    code, text = moeproof("--help")
    assert (code, "fuzz" in text) == (0, True), text
    code, text = moeproof("subjects", "numpy", "--json")
    assert (code, "numpy:fused_gate" in text) == (0, True), text
    files = ("--junit", str(tmp_path / "junit.xml"), "--summary", str(tmp_path / "summary.md"))
    run = ("fuzz", "-s", "numpy:append_shared_experts", "--cases", "2", "--out", str(tmp_path / "out"))
    code, text = moeproof(*run, *files, "--history", "none")
    assert (code, "no findings" in text) == (0, True), text
    assert "numpy:append_shared_experts" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize("command", [("fuzz", "-s", "numpy", "--cases", "1"), ("history", "list"), ("report",)])
def test_a_history_says_what_to_install(command: tuple[str, ...], tmp_path: Path) -> None:
    code, text = moeproof(*command, "--out", str(tmp_path / "out"))
    assert code == 2
    assert "error: history is " in text
    assert "pip install sqlalchemy alembic" in text
    assert "Traceback" not in text


def test_a_password_is_not_repeated_and_other_modules_are_not_meant() -> None:
    message = "history is 'postgresql://…', which needs alembic"
    with pytest.raises(HistoryError, match=message) as caught, libraries_needed("postgresql://me:secret@host/runs"):
        raise ModuleNotFoundError("gone", name="alembic.command")
    assert "secret" not in str(caught.value)
    with pytest.raises(ModuleNotFoundError), libraries_needed("runs.db"):
        raise ModuleNotFoundError("gone", name="sqlite3")
