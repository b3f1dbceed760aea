"""How subjects are declared, named and found."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from moeproof.strategies.domain import AlignDomain, GateDomain
from moeproof.verify import subject as module
from moeproof.verify.subject import (
    Subject,
    SubjectError,
    all_subjects,
    find,
    from_function,
    load_file,
    plugin_problems,
)

KERNEL = """
import torch
from moeproof.strategies.domain import GateDomain
from moeproof.verify.subject import Subject

one = Subject("mine:one", "fused_gate", lambda: print, GateDomain())
two = Subject("mine:two", "fused_gate", lambda: print, GateDomain())
again = two
"""


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    all_subjects()
    monkeypatch.setattr(module, "_REGISTRY", dict(module._REGISTRY))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    # A folder whose name holds ".py", and one that holds ".py:" too.
    path = tmp_path / "my.pyproj" / "old.py:new" / "kernels.py"
    path.parent.mkdir(parents=True)
    path.write_text(KERNEL, encoding="utf-8")
    return path


def names(*patterns: str) -> list[str]:
    return [s.name for s in find(patterns)]


def test_names_families_and_patterns() -> None:
    assert names("numpy:fused_gate") == ["numpy:fused_gate"]
    assert len(names("numpy")) == 3
    assert set(names("*:fused_gate")) >= {"numpy:fused_gate", "torch:fused_gate", "own:fused_gate"}
    assert names("numpy", "numpy:fused_gate", "nump*:fused_gate") == names("numpy")


def test_what_runs_by_its_name_only_is_in_no_family_and_fits_no_pattern() -> None:
    precise = "flashinfer:fused_gate@no_aux_tc_precise"
    assert precise in {s.name for s in all_subjects()}
    assert names(precise) == [precise]
    assert names("flashinfer") == names("flashinfer:*") == names("f*@no_aux*") == ["flashinfer:fused_gate@no_aux_tc"]
    assert precise not in names("*")


@pytest.mark.parametrize("pattern", ["nothing", "numpy:", "", "fused_gate", "kernel.pyx"])
def test_what_names_nothing_is_an_error_that_lists_what_there_is(pattern: str) -> None:
    with pytest.raises(SubjectError, match=r"allowed: .*numpy:fused_gate") as caught:
        find([pattern])
    assert repr(pattern) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("", ["mine:one", "mine:two"]),
        (":mine:two", ["mine:two"]),
        (":two", ["mine:two"]),
        (":mine", ["mine:one", "mine:two"]),
        (":mine:t*", ["mine:two"]),
    ],
)
def test_subjects_of_a_file(file: Path, name: str, found: list[str]) -> None:
    assert sorted(names(f"{file}{name}")) == found


def test_a_file_without_the_name_lists_its_own(file: Path) -> None:
    with pytest.raises(SubjectError, match=r"allowed: mine:one, mine:two") as caught:
        find([f"{file}:three"])
    assert "numpy" not in str(caught.value)


def test_a_file_s_subjects_know_where_a_child_finds_them(file: Path) -> None:
    subject = find([f"{file}:one"])[0]
    assert find([subject.source])[0].name == "mine:one"
    assert Path(subject.source.removesuffix(":mine:one")) == file


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "defines no Subject"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import pytest; pytest.skip('no GPU', allow_module_level=True)", "no GPU"),
        (
            "from moeproof.verify.subject import *; Subject('a', 'gate', None, None)",
            "op is 'gate'; allowed: fused_gate",
        ),
    ],
)
def test_a_file_that_can_not_be_used_says_why(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SubjectError, match=r"bad\.py") as caught:
        load_file(path)
    assert words in str(caught.value)


@pytest.mark.parametrize("path", ["no_such.py", "."])
def test_a_file_that_is_none(path: str) -> None:
    with pytest.raises(SubjectError, match="an existing Python file"):
        load_file(path)


@pytest.fixture
def _plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    good = Subject("plugin:gate", "fused_gate", lambda: print, GateDomain())  # type: ignore[arg-type,return-value]

    def broken() -> None:
        raise ImportError("libfoo.so is missing")

    entries = [
        SimpleNamespace(name="good", load=lambda: lambda: [good]),
        SimpleNamespace(name="broken", load=broken),
        SimpleNamespace(name="odd", load=lambda: 3),
    ]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)
    module._load_builtin.cache_clear()
    yield
    monkeypatch.undo()
    module._load_builtin.cache_clear()


@pytest.mark.usefixtures("_plugins")
def test_a_broken_package_is_reported_and_does_no_harm() -> None:
    problems = plugin_problems()
    assert problems[0] == "broken: ImportError: libfoo.so is missing"
    assert problems[1].startswith("odd: TypeError")
    assert names("plugin:gate") == ["plugin:gate"]
    assert "numpy:fused_gate" in [s.name for s in all_subjects()]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"op": "gate"}, "op is 'gate'"),
        ({"device": "tpu"}, "device is 'tpu'; allowed: cuda, cpu, any"),
        ({"order": "sorted"}, "order is 'sorted'"),
        ({"minus_one": "keep"}, "minus_one is 'keep'"),
        ({"domain": AlignDomain()}, "domain is a AlignDomain; allowed for fused_gate: GateDomain"),
    ],
)
def test_a_wrong_declaration_names_the_field(change: dict[str, object], words: str) -> None:
    fields: dict[str, object] = {"name": "a:b", "op": "fused_gate", "load": print, "domain": GateDomain()}
    with pytest.raises(SubjectError, match=words):
        Subject(**(fields | change))  # type: ignore[arg-type]


def test_a_function_may_return_its_outputs_or_fill_ours() -> None:
    def returns(logits: torch.Tensor, topk: int) -> tuple[torch.Tensor, torch.Tensor]:
        return logits[:, :topk], logits[:, :topk].int()

    def fills(logits: torch.Tensor, topk: int, out: tuple[torch.Tensor, torch.Tensor]) -> None:
        out[0].fill_(2.0)

    args = {"logits": torch.ones(2, 3), "topk": 1}
    made = from_function(returns, "fused_gate")()(args, {})
    assert made is not None
    assert made["weights"].tolist() == [[1.0], [1.0]]
    outputs = {"weights": torch.zeros(2, 1), "indices": torch.zeros(2, 1)}
    assert from_function(fills, "fused_gate", out=True)()(args, outputs) is None
    assert outputs["weights"].tolist() == [[2.0], [2.0]]


def test_a_subject_file_imports_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "neighbour_kernels.py").write_text("def gate(logits, **rest):\n    return logits, logits\n")
    file = tmp_path / "declares.py"
    file.write_text(
        "from moeproof.testing import subject\n"
        "from neighbour_kernels import gate\n"
        "mine = subject(gate, op='fused_gate', device='cpu')\n"
    )
    assert [s.name for s in load_file(file)] == ["declares:gate"]
