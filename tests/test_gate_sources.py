"""What a change touches."""

from __future__ import annotations

import itertools
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from gate_kit.repository import edit, forget, team
from gate_patches.apply import apply, names
from simt import needs_compiler

from moeproof.kernels import gate_plan
from moeproof.kernels.compiler import CompileError, compile_cubin, nvrtc_version
from moeproof.verify.child import Inline
from moeproof.verify.corpus import SHIPPED, read_case
from moeproof.verify.gate.git import Checkout
from moeproof.verify.gate.selection import SelectionError, smoke, stand_in, touched
from moeproof.verify.gate.sources import MODULES, Sources, matches
from moeproof.verify.lanes.reader import load_lanes
from moeproof.verify.lanes.schema import Lane, Lanes
from moeproof.verify.simt.subjects import own
from moeproof.verify.subject import all_subjects, find, load_file

ROOT = Path(__file__).resolve().parents[1]
SOURCES = Sources(ROOT)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    forget()


def change(root: Path, *changed: str) -> Checkout:
    return Checkout(root, "main", "b" * 40, "a" * 40, True, changed)


@pytest.mark.parametrize(
    ("file", "ops"),
    [
        ("kernels/fused_gate.cu", {"fused_gate"}),
        ("kernels/score.cuh", {"fused_gate"}),  # by way of other headers
        ("kernels/validate.py", set(MODULES)),
        ("kernels/gate_plan.py", {"fused_gate"}),
        ("kernels/align_plan.py", {"moe_align_block_size"}),
        ("kernels/append_kernel.py", {"append_shared_experts"}),
        ("kernels/launcher.py", set(MODULES)),
        ("kernels/ops.py", set(MODULES)),
        ("kernels/fused_gate.py", {"fused_gate"}),  # not all ops, though one module registers them
        ("kernels/prebuild.py", set()),
        ("verify/oracle/gate.py", set()),
        ("docs/contracts.md", set()),
    ],
)
def test_own_kernels_by_what_they_are_made_of(file: str, ops: set[str]) -> None:
    assert {op for op in MODULES if file in SOURCES.of(find([f"own:{op}"])[0])} == ops


def test_references_by_their_own_files() -> None:
    gate, align = find(["numpy:fused_gate"])[0], find(["numpy:moe_align_block_size"])[0]
    assert "references/gold/gate.py" in SOURCES.of(gate)
    assert "references/gold/gate.py" not in SOURCES.of(align)
    assert not any(name.startswith("kernels/") for name in SOURCES.of(gate))
    assert SOURCES.of(find(["vllm"])[0]) == {}


def test_sources_of_files(tmp_path: Path) -> None:
    files = {
        "tests/mine.py": "import helper\nfrom pkg import a\nSOURCE = '../src/gate.cu'\n",
        "tests/helper.py": "import os, torch\n",
        "pkg/__init__.py": "",
        "pkg/a.py": "from .b import c\nfrom . import *\n",
        "pkg/b.py": "import not.there\n",
        "src/gate.cu": '#include <cuda.h>\n  #  include "deep/common.cuh"\n// #include "remark.cuh"\n',
        "src/deep/common.cuh": '#include "gone.cuh"\n#include "../gate.cu"\n#include "/etc/passwd"\n',
        "pkg/unused.py": "",
        "src/broken.py": "def (:",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    sources = Sources(tmp_path.resolve(), {"src/deep/gone.cuh", "src/broken.py"})
    found = sources.reach(["tests/mine.py"])
    assert set(found) == set(files) - {"pkg/unused.py", "src/broken.py"} | {"src/deep/gone.cuh"}
    # A header that was deleted is still named.
    assert found["src/deep/gone.cuh"] == "src/deep/common.cuh"
    assert set(sources.reach(["tests/mine.py"], stop={"src/gate.cu"})) & {"src/gate.cu", "src/deep/gone.cuh"} == set()
    assert sources.reach(["src/broken.py"]) == {"src/broken.py": ""}


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("a/*.cu", "a/b.cu", True),
        ("a/*.cu", "a/b/c.cu", False),
        ("a/**/*.cu", "a/b/c.cu", True),
        ("a/**/*.cu", "a/c.cu", True),
        ("a/**", "a/b/c", True),
        ("a.cu", "axcu", False),
        ("[a].cu", "[a].cu", True),
        ("a?.cu", "ab.cu", True),
    ],
)
def test_patterns(pattern: str, name: str, fits: bool) -> None:
    assert matches(pattern, name) == fits


def test_a_lane_is_touched_by_its_subjects_parts_and_by_its_paths(tmp_path: Path) -> None:
    root = team(tmp_path / "team").resolve()
    lanes = load_lanes(root / "lanes.toml")

    def of(*changed: str) -> list[dict[str, str]]:
        return [t.files for t in touched(change(root, *changed), lanes, lanes.lanes, cuda=False)]

    assert of("ranking.py", "notes.md") == [{"ranking.py": "routing.py"}]
    assert of("routing.py") == [{"routing.py": ""}]
    for name in ("tables/experts.json", "tables/deep/gone.json"):  # by the lane's paths, deleted ones too
        assert of(name) == [{name: ""}]
    assert of("notes.md", "lanes.toml") == []


def test_a_subject_runs_once_and_has_a_stand_in_without_a_gpu() -> None:
    lanes = Lanes(ROOT / "ci" / "lanes.toml", (Lane("a", ("own:*",)), Lane("b", ("own:fused_gate", "own:*@simt"))))
    found = change(ROOT, "kernels/validate.py")
    runs = {t.subject.name: t.runs and t.runs.name for t in touched(found, lanes, lanes.lanes, cuda=False)}
    assert runs == {
        # Not as stand-ins besides: a lane names them itself.
        "own:fused_gate@simt": "own:fused_gate@simt",
        "own:moe_align_block_size@simt": "own:moe_align_block_size@simt",
        "own:fused_gate@delays": None,
        "own:moe_align_block_size@delays": None,
        "own:append_shared_experts": None,
    }
    (gate,) = find(["own:fused_gate"])
    assert stand_in(gate, cuda=True) is gate
    assert getattr(stand_in(gate, cuda=False), "name", None) == "own:fused_gate@simt"
    assert {s.op for s in smoke(all_subjects(), cuda=False)} == set(MODULES)
    assert all(s.device != "cuda" for s in smoke(all_subjects(), cuda=False))


def test_other_files_than_those_installed_are_refused(tmp_path: Path) -> None:
    for name in ("kernels", "src"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    lanes = Lanes(tmp_path / "lanes.toml", (Lane("own", ("own:fused_gate",)),))
    found = change(tmp_path.resolve(), "kernels/score.cuh")
    assert touched(found, lanes, lanes.lanes, cuda=False)  # the same text
    edit(tmp_path / "kernels" / "score.cuh", "\n", "\n\n")
    with pytest.raises(SelectionError, match=r"whose kernels/score.cuh is not that of .*allowed: the checkout's own"):
        touched(found, lanes, lanes.lanes, cuda=False)


# -- the base's modules ----------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from collections.abc import Iterator
from pathlib import Path
root, tree = map(Path, sys.argv[1:3])
sys.path[:0] = [str(root), str(root / "below")]
from moeproof.verify.gate.tree import graft, place, strays
graft(root, tree)
import pkg.part, alone, json
import moeproof.kernels.thing
print(pkg.part.WHERE, alone.WHERE, moeproof.kernels.thing.WHERE, strays(root, tree))
print(place(str(root / "x.py"), root, tree) == str(tree / "x.py"), place(json.__file__, root, tree) == json.__file__)
sys.path.append(str(root))  # as an editable install finds them, whatever is in the path
try:
    import new
except ModuleNotFoundError as error:
    print(error)
sys.modules["sneaked"] = type(sys)("sneaked")
sys.modules["sneaked"].__file__ = str(root / "new.py")
print(strays(root, tree))
"""


def test_modules_come_from_the_base(tmp_path: Path) -> None:
    trees = {name: (tmp_path / name).resolve() for name in ("here", "base")}
    for name, root in trees.items():
        for file in ("pkg/part.py", "below/alone.py", "kernels/thing.py"):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(f"WHERE = {name!r}\n", encoding="utf-8")  # pkg is a namespace package
        (root / "kernels" / "launcher.py").touch()
    (trees["here"] / "new.py").touch()
    command = [sys.executable, "-c", SCRIPT, str(trees["here"]), str(trees["base"])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[:2] == ["base base base []", "True True"]
    assert lines[2].endswith("is not in the base")
    assert lines[3] == "['new.py']"
    same = [*command[:3], str(trees["here"]), str(trees["here"])]
    assert subprocess.run(same, capture_output=True, text=True, check=True).stdout.startswith("here here here []")


# -- the changes that the gate is tried on ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_patches_apply_to_the_kernels_and_compile(name: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    changed = apply(name, tmp_path)
    names_of = [str(path.relative_to(tmp_path)) for path in changed]
    assert set(names_of) <= set(SOURCES.of(find(["own:fused_gate"])[0]))
    try:
        nvrtc_version()
    except CompileError as error:
        pytest.skip(str(error))
    plan = gate_plan.plan(1, 256)
    command = [sys.executable, "-c", "import sys, compiler; print(compiler.load_source(sys.argv[1]))", plan.file]
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path / "kernels").stdout
    code = compile_cubin(text, (plan.name,)).code
    reads = _reads_of_the_clock(code)  # the compiler may leave out what nobody uses
    assert (reads > 0) == (name == "slow_down"), f"{name}: the machine code reads the clock {reads} times"


def _reads_of_the_clock(code: bytes) -> int:
    """Count instructions that read the clock: of 128 bits, operation 0x805 of special register 0x50 (sm_90)."""
    words = struct.unpack(f"<{len(code) // 8}Q", code[: len(code) // 8 * 8])
    return sum(low & 0xFFF == 0x805 and high >> 8 & 0xFF == 0x50 for low, high in itertools.pairwise(words))


def test_a_patch_that_does_not_apply_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    with pytest.raises(SystemExit, match=r"slow_down: .* 0 times; allowed: 1 or more"):
        apply("slow_down", tmp_path)


@needs_compiler
@pytest.mark.parametrize(("name", "checks"), [("refactoring", []), ("tie_break", ["tie_order"])])
def test_the_planted_bug_is_found_and_the_refactoring_passes(name: str, checks: list[str], tmp_path: Path) -> None:
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    apply(name, tmp_path)
    subject = own("fused_gate", tmp_path / "kernels", name=f"own:fused_gate@{name}")
    case = read_case(SHIPPED / "fused_gate" / "tie-two.json")
    assert [v.check for v in Inline(subject).run(case).violations] == checks


def test_load_file_is_found_by_its_file(tmp_path: Path) -> None:
    root = team(tmp_path / "team").resolve()
    (subject,) = load_file(root / "routing.py")
    assert Sources(root).of(subject) == {"routing.py": "", "ranking.py": "routing.py", "work.py": "routing.py"}
