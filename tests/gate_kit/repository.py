"""Small git repositories of a team with a kernel of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from moeproof.verify.subject import _REGISTRY

TEAM = Path(__file__).parent / "team"
ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Someone",
    "GIT_AUTHOR_EMAIL": "someone@example.org",
    "GIT_COMMITTER_NAME": "Someone",
    "GIT_COMMITTER_EMAIL": "someone@example.org",
}


def git(folder: Path, *arguments: str) -> str:
    """Run git and return what it prints."""
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=os.environ | ENVIRONMENT, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(folder: Path, message: str) -> str:
    """Commit everything, and return the commit."""
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", message)
    return git(folder, "rev-parse", "HEAD")


def team(folder: Path) -> Path:
    """Return a repository with the team's files on its branch main, and a branch change checked out."""
    shutil.copytree(TEAM, folder, ignore=shutil.ignore_patterns("__pycache__"))
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / ".gitignore").write_text("__pycache__/\n.moeproof/\n", encoding="utf-8")
    commit(folder, "start")
    git(folder, "checkout", "--quiet", "-b", "change")
    return folder


def forget() -> None:
    """Undo what loading a team's subjects has left in this process."""
    for name in ("ranking", "work"):
        sys.modules.pop(name, None)
    for name in [n for n in _REGISTRY if n.startswith("routing:")]:
        del _REGISTRY[name]
    sys.path[:] = [p for p in sys.path if not (Path(p) / "routing.py").exists()]


def edit(file: Path, old: str, new: str) -> None:
    """Replace text that has to be there."""
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
