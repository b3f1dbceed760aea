"""The wheel holds every file that the program needs, and runs far from a checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("kernels", "references", "strategies", "verify")
BESIDE = ("pyproject.toml", "README.md", "LICENSE")


def built(tree: Path, place: Path) -> Path:
    """Build the wheel of a tree without a network, and return where it is unpacked."""
    place.mkdir()
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(place)!r})"
    done = subprocess.run([sys.executable, "-c", build], cwd=tree, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = place.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(place / "unpacked")
    return place / "unpacked"


def lacks(installed: Path, tree: Path) -> list[str]:
    """Return the files of the packages that an installation lacks, or has otherwise."""
    files = [p for folder in FOLDERS for p in (tree / folder).rglob("*") if p.is_file()]
    assert len(files) > 300
    names = [str(p.relative_to(tree)) for p in files]
    copies = [installed / "moeproof" / name for name in names]
    same = [c.is_file() and c.read_bytes() == p.read_bytes() for c, p in zip(copies, files, strict=True)]
    return [name for name, is_same in zip(names, same, strict=True) if not is_same]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the sources: a build leaves folders behind, from which the next one takes files."""
    tree = tmp_path_factory.mktemp("sources")
    for name in (*FOLDERS, "src"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignored)
    for name in BESIDE:
        shutil.copy(ROOT / name, tree)
    return tree


def test_the_wheel_lacks_no_file_and_runs_elsewhere(tree: Path, tmp_path: Path) -> None:
    installed = built(tree, tmp_path / "wheel")
    assert lacks(installed, tree) == []
    (tmp_path / "elsewhere").mkdir()
    variables = os.environ | {"PYTHONPATH": str(installed)}
    for arguments in (
        ["fuzz", "-s", "numpy:fused_gate", "--cases", "2", "--seed", "1"],
        ["mutate", str(installed / "moeproof" / "kernels"), "--list"],
        ["report"],
    ):
        command = [sys.executable, "-m", "moeproof.verify.cli", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path / "elsewhere", env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    command = [sys.executable, "-c", "import moeproof; print(moeproof.__file__)"]
    where = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True).stdout
    assert Path(where.strip()).is_relative_to(installed)


def test_a_file_of_a_new_kind_is_missed(tree: Path, tmp_path: Path) -> None:
    logo = tree / "verify" / "report" / "templates" / "logo.svg"
    logo.write_text("<svg/>", encoding="utf-8")
    try:
        assert lacks(built(tree, tmp_path / "wheel"), tree) == ["verify/report/templates/logo.svg"]
    finally:
        logo.unlink()
