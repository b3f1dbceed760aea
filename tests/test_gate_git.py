"""What the gate takes for the change, and for the base's files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gate_kit.repository import ENVIRONMENT, commit, edit, git, team

from moeproof.verify.gate.git import PREFIX, GitError, checkout


@pytest.fixture(autouse=True)
def _git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return team(tmp_path / "team")


def test_a_change_is_what_differs_from_where_the_branches_parted(repository: Path) -> None:
    edit(repository / "work.py", "3000", "3001")
    commit(repository, "a change")
    git(repository, "checkout", "--quiet", "main")
    edit(repository / "ranking.py", "lowest", "Lowest")
    commit(repository, "the base goes on")
    git(repository, "checkout", "--quiet", "change")
    found = checkout("main", repository / "tables")  # any folder of the checkout
    assert found.root == repository.resolve()
    assert found.base == git(repository, "merge-base", "main", "change") != git(repository, "rev-parse", "main")
    assert found.changed == ("work.py",)
    assert not found.dirty
    assert checkout("HEAD", repository).changed == ()


def test_uncommitted_changes_are_gated(repository: Path) -> None:
    edit(repository / "work.py", "3000", "3001")  # not staged
    edit(repository / "routing.py", "Route", "route")
    git(repository, "add", "routing.py")
    (repository / "ranking.py").unlink()
    (repository / "with spaces é.cu").write_text("new", encoding="utf-8")
    (repository / "__pycache__").mkdir(exist_ok=True)
    (repository / "__pycache__" / "ignored.pyc").touch()
    found = checkout("main", repository)
    assert found.dirty
    assert found.changed == ("ranking.py", "routing.py", "with spaces é.cu", "work.py")
    assert found.first_line("work.py") == 3
    assert found.first_line("ranking.py") == found.first_line("with spaces é.cu") == 1


def test_a_moved_file_is_two_changes(repository: Path) -> None:
    git(repository, "mv", "work.py", "labour.py")
    commit(repository, "moved")
    assert checkout("main", repository).changed == ("labour.py", "work.py")


def test_the_base_is_laid_out_beside_the_repository(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "link.py").symlink_to("work.py")
    (repository / ".gitattributes").write_text("ranking.py export-ignore\n", encoding="utf-8")
    base = commit(repository, "more")
    edit(repository / "work.py", "3000", "3001")
    git(repository, "add", "work.py")
    before = git(repository, "status", "--porcelain")
    # As in a hook, where these name the files of the commit under way.
    monkeypatch.setenv("GIT_INDEX_FILE", str(repository / ".git" / "index"))
    found = checkout(base, repository)
    with found.base_files() as tree:
        assert (tree / "work.py").read_text(encoding="utf-8").endswith("SPIN_US = 3000\n")
        assert (tree / "link.py").is_symlink()
        assert (tree / "ranking.py").exists()  # which `git archive` would leave out
        assert not tree.is_relative_to(repository)
    monkeypatch.delenv("GIT_INDEX_FILE")
    assert not tree.exists()
    assert git(repository, "status", "--porcelain") == before
    assert git(repository, "worktree", "list").count("\n") == 0


def test_what_a_killed_run_left_is_removed_and_what_another_uses_is_not(repository: Path, tmp_path: Path) -> None:
    left = tmp_path / "tmp" / f"{PREFIX}left"
    (left / "base").mkdir(parents=True)
    (left / "lock").touch()
    found = checkout("main", repository)
    with found.base_files() as one, found.base_files() as other:
        assert not left.exists()
        assert one.exists()
        assert other.exists()
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(
    ("revision", "words"),
    [
        ("nothing", "base is 'nothing', which is no commit here; allowed: a revision of "),
        ("--help", "base is '--help', which is no commit here"),
        ("orphan", "base is 'orphan', which has no commit in common with HEAD"),
    ],
)
def test_a_revision_that_is_no_base_is_named(repository: Path, revision: str, words: str) -> None:
    git(repository, "checkout", "--quiet", "--orphan", "orphan")
    commit(repository, "another start")
    git(repository, "checkout", "--quiet", "change")
    with pytest.raises(GitError) as caught:
        checkout(revision, repository)
    assert words in str(caught.value)


def test_a_shallow_clone_is_told_what_to_fetch(repository: Path, tmp_path: Path) -> None:
    edit(repository / "work.py", "3000", "3001")
    commit(repository, "a change")
    start = git(repository, "rev-parse", "main")
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{repository}", "clone")
    for revision in (start, "main"):
        with pytest.raises(GitError, match=r"this clone is shallow: .*fetch-depth: 0"):
            checkout(revision, tmp_path / "clone")
    git(tmp_path / "clone", "fetch", "--quiet", "--unshallow", "origin", "main:refs/remotes/origin/main")
    # A branch that only the remote has is found by its plain name too.
    assert checkout("main", tmp_path / "clone").changed == ("work.py",)


def test_no_checkout_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(GitError, match=r"not a git repository.*allowed: a git checkout"):
        checkout("main", tmp_path)
    git(tmp_path, "init", "--quiet")
    with pytest.raises(GitError, match="has no commit yet"):
        checkout("main", tmp_path)
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(GitError, match="allowed: git on PATH"):
        checkout("main", tmp_path)
