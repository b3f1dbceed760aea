"""The child process: whatever a suspect does to it becomes an outcome, and the next case runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moeproof.strategies.case import Case, TensorSpec
from moeproof.strategies.domain import GateDomain
from moeproof.verify.channel import describe_exit
from moeproof.verify.child import Child, HarnessError, Isolated, NoMemoryError
from moeproof.verify.execute import Outcome
from moeproof.verify.subject import Subject, Unavailable, load_file

PATIENCE = 120.0
"""How long to wait for what is sure to come."""
SUSPECT = """
import os, pathlib, signal, subprocess, sys, time
import torch
from moeproof.strategies.domain import GateDomain
from moeproof.verify.building import building
from moeproof.verify.subject import Subject

def call(args, outputs):
    what = args["logits"].shape[0]
    if what == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == 4:
        os._exit(0)
    if what == 5:
        print("about to hang", flush=True)
        time.sleep(600)
    if what == 6:
        print("last words")
        sys.stderr.write("and an error\\n")
        os._exit(9)
    if what == 7:
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path(__file__).with_name("helper.pid").write_text(str(helper.pid))
        time.sleep(600)
    if what == 8:
        print("noise on stdout", flush=True)
    if what in (11, 12):
        with building("its kernels"), building("their headers"):
            time.sleep(1.0)
        time.sleep(600 * (what == 12))
    if what == 9:
        raise ValueError("a bad argument")
    if what == 10:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    outputs["weights"].fill_(1.0)
    outputs["indices"].zero_()

def dies():
    os._exit(5)

def path(case):
    return {}["no such path"]

DOMAIN = GateDomain(experts=range(1, 2), topk=range(1, 2))
kernel = Subject("suspect:kernel", "fused_gate", lambda: call, DOMAIN, device="cpu")
other = Subject("suspect:other", "fused_gate", lambda: call, DOMAIN, device="cpu")
dead = Subject("suspect:dead", "fused_gate", dies, DOMAIN, device="cpu")
broken = Subject("suspect:broken", "fused_gate", lambda: 1 / 0, DOMAIN, device="cpu")
faulty = Subject("suspect:faulty", "fused_gate", lambda: call, DOMAIN, device="cpu", path=path)
"""


def case(tokens: int) -> Case:
    logits = TensorSpec("float32", (tokens, 1), rows=((0.0,),))
    return Case("fused_gate", {"topk": 1, "renormalize": True}, {"logits": logits})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suspect") / "suspect.py"
    path.write_text(SUSPECT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def suspects(file: Path) -> dict[str, Subject]:
    return {s.name.partition(":")[2]: s for s in load_file(file)}


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    with Child(seconds=PATIENCE, inflight=tmp_path_factory.mktemp("flight") / "0.json") as child:
        yield child


def hung(executor: Isolated, begun: Callable[[], bool]) -> Outcome:
    """Return the outcome of a case that hangs, once it has got as far as to do so."""
    executor.child.seconds = 0.5
    try:
        end = time.monotonic() + PATIENCE
        while not begun() and time.monotonic() < end:
            time.sleep(0.02)
        return executor.end()
    finally:
        executor.child.seconds = PATIENCE


@pytest.mark.parametrize(
    ("tokens", "check", "words"),
    [
        (2, "cuda_error", "killed by SIGSEGV"),
        (4, "cuda_error", "exit status 0"),
        (5, "hang", "no result within 0.5 s"),
        (6, "cuda_error", "last words"),
    ],
)
def test_a_death_is_an_outcome_and_the_next_case_runs(
    child: Child, suspects: dict[str, Subject], tokens: int, check: str, words: str
) -> None:
    executor = Isolated(suspects["kernel"], child)
    starts = child.starts
    executor.begin(case(tokens))
    outcome = hung(executor, lambda: True) if check == "hang" else executor.end()
    assert outcome.checks == (check,)
    assert outcome.fatal
    assert words in outcome.violations[0].message
    assert child.inflight is not None
    assert not child.inflight.exists()
    assert executor.run(case(1)).violations == ()
    assert child.starts == starts + 1


def test_the_watchdog_waits_for_what_is_compiled_and_no_longer(child: Child, suspects: dict[str, Subject]) -> None:
    executor = Isolated(suspects["kernel"], child)
    executor.run(case(1))
    told: list[tuple[str, float | None]] = []
    child.on_build = lambda what, seconds: told.append((what, seconds))
    child.seconds = 0.7
    try:
        assert executor.run(case(11)).violations == ()
        assert {what for what, _ in told} == {"its kernels"}
        assert told[0][1] is None
        assert 1.0 <= (told[1][1] or 0.0) < PATIENCE
        assert executor.run(case(12)).checks == ("hang",)
    finally:
        child.seconds = PATIENCE


def test_what_runs_well_needs_no_restart(child: Child, suspects: dict[str, Subject]) -> None:
    executor, other = (Isolated(suspects[n], child) for n in ("kernel", "other"))
    executor.run(case(1))
    starts = child.starts
    assert executor.run(case(8)).violations == ()
    assert other.run(case(1)).violations == ()
    assert executor.run(case(9)).checks == ("domain",)
    assert executor.outputs(case(1)) == {"weights": [[1.0]], "indices": [[0]]}
    assert "a bad argument" in executor.outputs(case(9))["error"]
    assert child.starts == starts


def test_a_fault_of_the_harness_is_no_outcome(child: Child, suspects: dict[str, Subject]) -> None:
    executor = Isolated(suspects["faulty"], child)
    with pytest.raises(HarnessError, match="no such path"):
        executor.run(case(1))


def test_a_shortage_of_memory_is_no_outcome(child: Child, suspects: dict[str, Subject]) -> None:
    executor = Isolated(suspects["kernel"], child)
    with pytest.raises(NoMemoryError, match="Tried to allocate"):
        executor.run(case(10))
    assert executor.run(case(1)).violations == ()


def test_subjects_that_can_not_be_loaded_say_why(child: Child, suspects: dict[str, Subject]) -> None:
    with pytest.raises(Unavailable, match="ZeroDivisionError"):
        child.load(suspects["broken"])
    with pytest.raises(Unavailable, match=r"died loading it.*exit status 5"):
        child.load(suspects["dead"])
    missing = Subject("none:such", "fused_gate", lambda: None, GateDomain(), source="/no/such.py:x")  # type: ignore[arg-type,return-value]
    with pytest.raises(Unavailable, match="existing Python file"):
        child.load(missing)
    assert Isolated(suspects["kernel"], child).run(case(1)).violations == ()


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _gone(pid: int) -> bool:
    end = time.monotonic() + PATIENCE
    while _alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not _alive(pid)


def test_the_whole_process_group_is_killed(child: Child, suspects: dict[str, Subject], file: Path) -> None:
    executor, helper = Isolated(suspects["kernel"], child), file.with_name("helper.pid")
    executor.begin(case(7))
    assert hung(executor, lambda: helper.exists() and helper.read_text() != "").checks == ("hang",)
    assert _gone(int(helper.read_text()))


def test_the_case_is_on_disk_while_it_runs_and_stays_there_after_ctrl_c(
    suspects: dict[str, Subject], tmp_path: Path
) -> None:
    flight = tmp_path / "inflight" / "0.json"
    with Child(seconds=PATIENCE, inflight=flight) as child:
        executor = Isolated(suspects["kernel"], child)
        executor.begin(case(5))

        def interrupted() -> None:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            executor.end()

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        request = json.loads(flight.read_text())
        assert Case.from_json(request["case"]) == case(5)
        assert request["subject"] == suspects["kernel"].source
        # The next answer is that of the next case.
        assert executor.run(case(1)).violations == ()
        assert not flight.exists()


def test_a_child_dies_with_a_killed_parent(file: Path) -> None:
    script = f"""
import sys
from moeproof.strategies.case import Case
from moeproof.verify.child import Child, Isolated
from moeproof.verify.subject import find
child = Child(seconds=600)
executor = Isolated(find([{str(file) + ":suspect:kernel"!r}])[0], child)
print(child.pid, flush=True)
executor.run(Case.loads(sys.stdin.read()))
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin is not None
    assert parent.stdout is not None
    parent.stdin.write(case(5).dumps())
    parent.stdin.close()
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    assert _alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert _gone(pid)


def test_exit_statuses_are_put_into_words() -> None:
    assert describe_exit(-9) == "killed by SIGKILL"
    assert describe_exit(-250) == "killed by signal 250"
    assert describe_exit(3) == "exit status 3"
