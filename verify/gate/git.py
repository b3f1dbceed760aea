"""The checkout that is gated: what has changed since a revision, and that revision's files."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "moeproof-gate-"
_LOCK = "lock"
_HUNK = re.compile(r"^@@ -\S+ \+(\d+)", re.MULTILINE)
_PLAIN = ("-c", "core.quotepath=off", "-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false")


class GitError(ValueError):
    """A revision or a checkout that can't be used; names it and what is allowed."""


@dataclass(frozen=True)
class Checkout:
    """A checkout and what has changed in it.

    Attributes
    ----------
    root : Path
        Its top folder.
    asked : str
        The revision as it was given.
    base : str
        Commit to compare with: where HEAD and that revision parted.
    head : str
        Commit of HEAD.
    dirty : bool
        Files differ from HEAD, or are new: they are what is gated.
    changed : tuple of str
        Files that differ from the base, new and deleted ones included, relative to `root`.
    """

    root: Path
    asked: str
    base: str
    head: str
    dirty: bool
    changed: tuple[str, ...]

    def first_line(self, file: str) -> int:
        """Return the first changed line of a file; 1 for a new or a deleted one."""
        try:
            text = _git(self.root, *_PLAIN, "diff", "--no-ext-diff", "--no-color", "-U0", self.base, "--", file)
        except GitError:
            return 1
        found = _HUNK.search(text)
        return max(1, int(found[1])) if found else 1

    @contextlib.contextmanager
    def base_files(self) -> Iterator[Path]:
        """Give a temporary folder that holds the base's files.

        Nothing is written into the repository, as `git worktree` would: a killed run leaves a temporary folder
        behind, which the next one removes. Filters (LFS) apply, submodules are left out.
        """
        _sweep()
        folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        try:
            with (folder / _LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                tree = folder / "base"
                tree.mkdir()
                index = {"GIT_INDEX_FILE": str(folder / "index")}
                _git(self.root, "read-tree", self.base, env=index)
                _git(self.root, "checkout-index", "--all", "--force", f"--prefix={tree}{os.sep}", env=index)
                yield tree
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def checkout(revision: str, folder: Path) -> Checkout:
    """Find the checkout that a folder is in, and what has changed in it since a revision.

    Parameters
    ----------
    revision : str
        What a pull request is to be merged into.
    folder : Path
        Any folder of the checkout.

    Raises
    ------
    GitError
        If the folder is in no checkout, or the revision is not there.
    """
    root = Path(_git(folder, "rev-parse", "--show-toplevel").rstrip("\n")).resolve()
    head = _git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}", fallback="").strip()
    if not head:
        raise GitError(f"{root} has no commit yet; allowed: a checkout of one")
    known = "" if revision.startswith("-") else _commit(root, revision)
    if not known:
        raise GitError(f"base is {revision!r}, which is no commit here; allowed: a revision of {root}{_shallow(root)}")
    base = _git(root, "merge-base", known, head, fallback="").strip()
    if not base:
        text = f"base is {revision!r}, which has no commit in common with HEAD; allowed: a revision it grew from"
        raise GitError(text + _shallow(root))
    against_base = _names(root, *_PLAIN, "diff", "--no-ext-diff", "--no-renames", "--name-only", "-z", base, "--")
    against_head = _names(root, *_PLAIN, "diff", "--no-ext-diff", "--no-renames", "--name-only", "-z", "HEAD", "--")
    new = _names(root, "ls-files", "--others", "--exclude-standard", "-z")
    return Checkout(root, revision, base, head, bool(against_head | new), tuple(sorted(against_base | new)))


def _commit(root: Path, revision: str) -> str:
    """Return the commit that a revision names, of a branch that only the remote has too; empty if there is none."""
    names = (revision, f"origin/{revision}")
    found = (_git(root, "rev-parse", "--verify", "--quiet", f"{n}^{{commit}}", fallback="").strip() for n in names)
    return next(filter(None, found), "")


def _shallow(root: Path) -> str:
    if _git(root, "rev-parse", "--is-shallow-repository", fallback="").strip() != "true":
        return " (fetch it first)"
    return "; this clone is shallow: fetch its history (git fetch --unshallow, or fetch-depth: 0 of actions/checkout)"


def _names(root: Path, *arguments: str) -> set[str]:
    return set(filter(None, _git(root, *arguments).split("\0")))


def _git(folder: Path, *arguments: str, fallback: str | None = None, env: dict[str, str] | None = None) -> str:
    """Run git in a folder and return what it prints; if it fails, the fallback where there is one."""
    # A hook's own index and folder are not those of the files that are gated.
    kept = {
        n: v for n, v in os.environ.items() if n not in ("GIT_INDEX_FILE", "GIT_DIR", "GIT_WORK_TREE", "GIT_PREFIX")
    }
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, check=False, env=kept | (env or {})
        )
    except OSError as error:
        raise GitError(f"git can't be run: {error}; allowed: git on PATH") from error
    if done.returncode:
        if fallback is not None:
            return fallback
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise GitError(f"git {arguments[0]} in {folder}: {said[-1] if said else 'failed'}; allowed: a git checkout")
    return done.stdout.decode(errors="surrogateescape")


def _sweep() -> None:
    """Remove the folders of runs that were killed: nobody holds their lock."""
    for folder in _folders():
        with contextlib.suppress(OSError), (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def _folders() -> Iterable[Path]:
    return [p for p in Path(tempfile.gettempdir()).glob(f"{PREFIX}*") if p.is_dir()]
