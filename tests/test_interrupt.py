"""A signal that comes while a thing is done whole takes effect after it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from zoo.entry import FRONT_DOOR

from moeproof.verify import corpus
from moeproof.verify.campaign import Campaign
from moeproof.verify.config import Config
from moeproof.verify.events import Event
from moeproof.verify.finding import Finding
from moeproof.verify.interrupt import SIGNALS, held


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_put_off_to_the_end_of_the_block(number: signal.Signals) -> None:
    done = []

    @held()
    def inner() -> None:
        os.kill(os.getpid(), number)
        time.sleep(0.01)
        done.append("inner")

    @held()
    def outer() -> None:
        inner()
        done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        outer()
    assert done == ["inner", "outer"]
    assert all(signal.getsignal(each) is signal.default_int_handler for each in SIGNALS)


def test_a_signal_that_another_thread_gets_is_put_off_too() -> None:
    """What blocking the signal in this thread alone would not do."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    done = []

    @held()
    def inner() -> None:
        assert thread.ident is not None
        signal.pthread_kill(thread.ident, signal.SIGINT)
        time.sleep(0.05)
        done.append("inner")

    try:
        with pytest.raises(KeyboardInterrupt):
            inner()
    finally:
        stop.set()
        thread.join()
    assert done == ["inner"]


def test_an_error_inside_comes_out_and_handlers_are_back() -> None:
    with pytest.raises(ZeroDivisionError), held():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_is_ignored_stays_so_and_other_threads_hold_nothing() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    seen = []

    def elsewhere() -> None:
        with held():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_a_finding_that_is_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes right after a finding's files are there, before its event: the summary must not say none."""
    write = Finding.write

    def interrupted(self: Finding, folder: Path) -> Path:
        place = write(self, folder)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return place

    monkeypatch.setattr(Finding, "write", interrupted)
    monkeypatch.setattr(corpus, "SHIPPED", tmp_path / "none")
    settings: dict[str, Any] = {"cases": 40, "seed": 3, "isolate": False, "max_elements": 1024}
    config = Config(subjects=(f"{FRONT_DOOR}:zoo:gate-tie-higher-id",), out=tmp_path, **settings)
    events: list[Event] = []
    with pytest.raises(KeyboardInterrupt):
        Campaign(config, events.append).run()
    written = {place.parent.name for place in (tmp_path / "findings").glob("*/finding.json")}
    reported = {event.data["identity"] for event in events if event.kind == "finding"}
    assert len(written) == 1
    assert reported == written
