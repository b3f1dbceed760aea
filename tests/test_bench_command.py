"""`moeproof bench` as a user runs it: a process of its own, files, exit codes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from moeproof.verify.bench.command import bench
from moeproof.verify.bench.plot import PlotError, plot
from moeproof.verify.bench.results import Results, ShapeResult
from moeproof.verify.bench.runner import NOT_RELEASED, Runner, default_subjects, family
from moeproof.verify.bench.session import Settings
from moeproof.verify.bench.shapes import Shape
from moeproof.verify.subject import find, load_file

app = typer.Typer()
app.command()(bench)

SUBJECTS = """
import os

from moeproof.strategies.domain import GateDomain
from moeproof.verify.subject import Subject, find

right = find(["torch:fused_gate"])[0].load()


def dies(args, outputs):
    if args["logits"].shape[0] > 1:
        os._exit(7)
    return right(args, outputs)


def wrong(args, outputs):
    made = right(args, outputs)
    return made | {"indices": made["indices"].flip(1)}


def subject(name, call, *tags):
    return Subject(f"{name}:fused_gate", "fused_gate", lambda: call, GateDomain(), device="cpu", tags=tags)


good, bad, mad = subject("good", right), subject("bad", dies), subject("mad", wrong, "own")
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "suspects.py"
    path.write_text(SUBJECTS, encoding="utf-8")
    return path


def invoke(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_a_subject_that_ends_the_process_is_left_out_and_the_rest_goes_on(file: Path):
    subjects = [s for s in load_file(file) if s.name != "mad:fused_gate"]
    shapes = [Shape("gate", tokens, 32) for tokens in (1, 2, 3)]
    with Runner(subjects, Settings("cpu", rounds=7)) as runner:
        results = runner.run(shapes, seconds=3)
    statuses = [{n.partition(":")[0]: m.status for n, m in s.subjects.items()} for s in results.shapes]
    assert statuses == [
        {"good": "right", "bad": "right"},
        {"good": "right", "bad": "failed"},
        {"good": "right", "bad": "excluded"},
    ]
    assert results.shapes[1].subjects["bad:fused_gate"].detail == "ended the process: exit status 7"
    assert results.shapes[2].subjects["bad:fused_gate"].detail.startswith("ended the process at gate E=32 T=2")
    assert results.environment["torch"]
    assert all(s.subjects["good:fused_gate"].eager for s in results.shapes)


def test_command_writes_what_it_measured_and_compares_with_an_older_run(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ("--device", "cpu", "--shape", "align:E=16,ids=8/64", "-s", "torch", "-s", "numpy", "--seconds", 2)
    first = invoke(*arguments, "--seed", 5, "--out", tmp_path / "one")
    assert first.exit_code == 0, first.output
    assert "2 shapes, 6 subjects, on cpu, seed 5" in first.output
    assert "no plots" in first.output
    text = (tmp_path / "one" / "bench.json").read_text(encoding="utf-8")
    results = Results.loads(text)
    assert results.environment["seed"] == 5
    assert [s.shape.size for s in results.shapes] == [8, 64]
    assert set(results.shapes[0].subjects) == {"torch:moe_align_block_size", "numpy:moe_align_block_size"}
    assert "## Summary" in (tmp_path / "one" / "bench.md").read_text(encoding="utf-8")
    again = invoke(*arguments, "--compare", tmp_path / "one" / "bench.json")
    assert again.exit_code == 0, again.output
    assert "New time over old, 4 times in both runs" in again.output
    assert not {"faster", "slower", "same"}.isdisjoint(again.output.split())


def test_a_wrong_own_result_is_exit_code_1(file: Path):
    done = invoke("--device", "cpu", "--shape", "gate:E=32,T=1", "-s", f"{file}:mad", "--seconds", 1)
    assert done.exit_code == 1, done.output
    assert "mad:fused_gate wrong" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "tpu"), "device is 'tpu'; allowed: cuda, cpu"),
        (("--device", "cpu", "--suite", "gates"), "suite is 'gates'; allowed: gate"),
        (("--device", "cpu", "--suite", "gate", "--shape", "gate:E=8,T=1"), "both --suite and --shape"),
        (("--device", "cpu", "--shape", "gate:T=1"), "shape is 'gate:T=1'; allowed"),
        (("--device", "cpu", "-s", "nobody"), "subject is 'nobody'; allowed"),
        (("--device", "cpu", "-s", "own:fused_gate"), "which runs on another device; allowed: one for cpu"),
        (("--device", "cpu", "-s", "torch:fused_gate", "--suite", "align"), "no shape is of an op of the subjects"),
        (("--device", "cpu", "--rounds", "0"), "rounds is 0"),
        (("--device", "cpu", "--compare", "/nowhere.json"), "compare is '/nowhere.json'"),
        (("--device", "cpu", "--out", "/proc/nowhere"), "out is '/proc/nowhere'"),
    ],
)
def test_misuse_is_named_with_what_is_allowed(arguments: tuple[str, ...], message: str):
    done = invoke(*arguments)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())


def test_suites_leave_out_what_is_too_large_for_a_cpu(monkeypatch):
    asked: list[Shape] = []
    monkeypatch.setattr(
        Runner, "measure", lambda self, shape, seconds: asked.append(shape) or ShapeResult(shape, 0, 0, 8, False)
    )
    done = invoke("--device", "cpu", "--suite", "gate", "-s", "torch")
    assert done.exit_code == 0, done.output
    assert "shapes are too large for a CPU and left out" in done.output
    assert {s.tokens for s in asked} == {1, 8, 64, 512}


def test_default_subjects_are_own_kernels_releases_and_the_reference():
    names = {s.name for s in default_subjects("cuda")}
    assert {"own:fused_gate", "torch:fused_gate", "vllm:fused_gate@grouped_topk"} <= names
    assert not names & set(NOT_RELEASED)
    assert not {n for n in names if n.startswith(("numpy", "numba"))}
    # An exclusion that names nothing would hide nothing.
    assert {s.name for s in find(NOT_RELEASED)} == set(NOT_RELEASED)
    assert {s.device for s in default_subjects("cpu")} <= {"cpu", "any"}
    assert [family(s) for s in find(["own:fused_gate", "torch:fused_gate", "vllm:moe_align_block_size"])] == [
        "own",
        "reference",
        "library",
    ]


def test_plots_show_each_series_with_the_floor(tmp_path: Path):
    pytest.importorskip("matplotlib")
    from test_bench_session import _results

    written = plot(_results(), tmp_path)
    assert sorted(p.name for p in written) == ["gate-e-64.png", "gate-e-64.svg"]
    drawing = (tmp_path / "gate-e-64.svg").read_text(encoding="utf-8")
    for label in ("own:fused_gate", "fast:fused_gate", "floor: the same bytes", "empty kernel", "Test GPU"):
        assert label in drawing
    assert "cheat" not in drawing
    assert "gone" not in drawing


def test_plots_need_matplotlib(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(PlotError, match=r"install moeproof\[bench\]"):
        plot(Results({"device": ""}, {}), tmp_path)


def test_the_command_line_has_the_command():
    from moeproof.verify.cli import app as whole

    assert "bench" in {command.name for command in whole.registered_commands}
