"""Talking to a process: whole lines, deadlines, hang-ups; its group ends with it."""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from moeproof.verify.channel import Channel, DeadError, end_group, start, tail

LONG = 60.0


@pytest.fixture
def pair() -> Iterator[tuple[Channel, socket.socket]]:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with theirs:
        yield channel, theirs
    channel.close()


def test_answers_are_lines_however_they_arrive(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(b'{"a": 1}\n{"b": "' + b"x" * 70_000)
    assert channel.receive(time.monotonic() + LONG) == {"a": 1}
    theirs.sendall(b'"}\n')
    assert channel.receive(time.monotonic() + LONG) == {"b": "x" * 70_000}
    channel.send('{"c": 2}', LONG)
    assert theirs.recv(100) == b'{"c": 2}\n'


def test_a_deadline_that_has_passed_is_a_timeout_and_loses_nothing(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.sendall(b'{"a"')
    with pytest.raises(TimeoutError):
        channel.receive(time.monotonic() - 1)
    theirs.sendall(b": 1}\n")
    assert channel.receive(time.monotonic() + LONG) == {"a": 1}


def test_a_hang_up_is_told_from_a_timeout(pair: tuple[Channel, socket.socket]) -> None:
    channel, theirs = pair
    theirs.close()
    with pytest.raises(DeadError):
        channel.receive(time.monotonic() + LONG)
    with pytest.raises(DeadError):
        channel.send("{}", LONG)
    channel.hang_up()  # of a process that is gone: no error


def test_a_process_imports_what_this_one_can_and_ends_with_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("word = 'found'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    reading, writing = os.pipe()  # held by both processes: its end comes when both are gone
    code = f"""
import only_here, os, time
print(only_here.word, os.environ["MORE"], flush=True)
os.fork()
os.write({writing}, b"x")
time.sleep(600)
"""
    with tempfile.TemporaryFile() as log:
        process = start([sys.executable, "-c", code], log, pass_fds=[writing], variables={"MORE": "more"})
        os.close(writing)
        assert [os.read(reading, 1) for _ in range(2)] == [b"x", b"x"]
        assert (tail(log), tail(log, 4)) == ("found more", "more")
        end_group(process)
        assert process.returncode == -9
    assert os.read(reading, 1) == b""
    os.close(reading)
