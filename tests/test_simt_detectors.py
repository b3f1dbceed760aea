"""Each detector: planted faults are caught and named, right kernels are left alone, under every schedule."""

from __future__ import annotations

import pytest
import torch
from simt import FOLDER, PLANTED, SCHEDULES, Planted, needs_compiler

from moeproof.verify.simt import Program, Schedule, Session, SimtError, executor

pytestmark = [needs_compiler, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _short_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "LAUNCH_SECONDS", 0.3)


def test_there_are_enough() -> None:
    assert len(PLANTED) >= 50


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: p.name)
def test_wrong_kernel_is_caught(planted: Planted) -> None:
    faults = []
    for schedule in SCHEDULES if planted.kind != "timeout" else SCHEDULES[:2]:
        try:
            planted.run(True, schedule)
        except SimtError as error:
            faults.append(error.fault)
        else:
            assert not planted.always, f"not caught under {schedule}"
    assert faults
    for fault in faults:
        report = str(fault)
        assert fault.kind in planted.kind.split("|"), report
        assert not [text for text in planted.says if text not in report], report
        assert f"{planted.name}<true>" in report


@pytest.mark.parametrize("planted", PLANTED, ids=lambda p: p.name)
def test_right_kernel_is_left_alone(planted: Planted) -> None:
    for schedule in SCHEDULES:
        out = planted.run(False, schedule)
        if planted.result is not None:
            assert tuple(out) == planted.result


def _two_launches(file: str, first: str, second: str, schedule: Schedule, *, overlap: bool = False) -> list[int]:
    program = Program(FOLDER / file)
    data, out = torch.full((64,), -9, dtype=torch.int32), torch.full((64,), -9, dtype=torch.int32)
    with Session({}, {"data": data, "out": out}, schedule=schedule):
        program.launch(first, 2, 32, data, 64)
        program.launch(second, 2, 32, data, out, 64, overlap=overlap)
    return out.tolist()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_what_a_launch_leaves_unwritten_the_next_must_not_read(schedule: Schedule) -> None:
    assert _two_launches("unwritten.cu", "leave_scratch<false>", "read_scratch", schedule) == list(range(64))
    with pytest.raises(SimtError, match=r"uninitialised(.|\n)*reads data\[63\]"):
        _two_launches("unwritten.cu", "leave_scratch<true>", "read_scratch", schedule)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_launches_are_ordered_unless_they_overlap(schedule: Schedule) -> None:
    backwards = list(range(63, -1, -1))
    assert _two_launches("races.cu", "first_launch", "second_launch", schedule) == backwards
    assert _two_launches("clusters.cu", "produce", "consume<true>", schedule) == backwards
    assert _two_launches("clusters.cu", "produce", "consume<false>", schedule, overlap=True) == backwards
    with pytest.raises(SimtError, match=r"race(.|\n)*writes data\[\d+\] at clusters.cu(.|\n)*of an earlier launch"):
        _two_launches("clusters.cu", "produce", "consume<true>", schedule, overlap=True)


def test_a_first_launch_that_overlaps_waits_for_its_inputs() -> None:
    data, out = torch.arange(64, dtype=torch.int32), torch.empty(64, dtype=torch.int32)
    program = Program(FOLDER / "clusters.cu")
    with Session({"data": data}, {"out": out}):
        program.launch("consume<false>", 2, 32, data, out, 64, overlap=True)
    with (
        Session({"data": data}, {"out": out}),
        pytest.raises(SimtError, match=r"the launch before may still run(.|\n)*reads data\[63\]"),
    ):
        program.launch("consume<true>", 2, 32, data, out, 64, overlap=True)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_launch_that_starts_after_a_wait_has_what_was_waited_for(schedule: Schedule) -> None:
    program = Program(FOLDER / "clusters.cu")

    def read(relay: str, what: str) -> list[int]:
        """Let the last of some launches that overlap read, without waiting, what the host or one before has made."""
        given, out = torch.arange(64, dtype=torch.int32), torch.empty(64, dtype=torch.int32)
        made, relayed = torch.empty(64, dtype=torch.int32), torch.empty(64, dtype=torch.int32)
        outputs = {"made": made, "relayed": relayed, "out": out}
        with Session({"given": given}, outputs, schedule=schedule):
            if what == "made":
                program.launch("produce", 2, 32, made, 64)
            program.launch(relay, 2, 32, relayed, 64, overlap=True)
            source = {"given": given, **outputs}[what]
            program.launch("consume<true>", 2, 32, source, out, 64, overlap=True)
        return out.tolist()

    for relay in ("relay<false, false>", "relay<false, true>"):
        assert read(relay, "given") == read(relay, "made") == list(range(63, -1, -1))
        with pytest.raises(SimtError, match=r"race(.|\n)*reads relayed(.|\n)*of an earlier launch"):
            read(relay, "relayed")
    for relay in ("relay<true, false>", "relay<true, true>"):
        with pytest.raises(SimtError, match=r"the launch before may still run"):
            read(relay, "given")
        with pytest.raises(SimtError, match=r"race(.|\n)*made(.|\n)*of an earlier launch"):
            read(relay, "made")


def test_a_report_names_both_lines_and_threads() -> None:
    planted = next(p for p in PLANTED if p.name == "reused_too_early")
    lines = (FOLDER / "races.cu").read_text().splitlines()
    with pytest.raises(SimtError) as caught:
        planted.run(True, Schedule("round_robin"))
    fault = caught.value.fault
    assert fault.where.startswith("totals[")
    assert {party.does for party in fault.parties} == {"reads", "writes"}
    assert fault.parties[0].thread != fault.parties[1].thread
    for party in fault.parties:
        assert party.file.endswith("races.cu")
        assert ("totals[warp] =" if party.does == "writes" else "sum += totals") in lines[party.line - 1]


def test_a_schedule_replays_to_the_last_word() -> None:
    planted = next(p for p in PLANTED if p.name == "reused_too_early")
    for schedule in SCHEDULES:
        said = set()
        for _ in range(5):
            with pytest.raises(SimtError) as caught:
                planted.run(True, schedule)
            said.add(str(caught.value))
        assert len(said) == 1
