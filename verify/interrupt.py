"""Ctrl-C that waits: for what is to be done whole, and for processes that have not begun yet."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let a signal to interrupt take effect at the end of the block only.

    A handler of Python's is put off, since a blocked signal is delivered to another thread of the process, and the
    main thread is interrupted all the same. Signals without such a handler do what they did. May be nested.
    """
    if threading.current_thread() is not threading.main_thread():  # none is handled here
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    handlers = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}

    def put_off(number: int, frame: FrameType | None) -> None:
        came.append((number, frame))

    try:
        for number in handlers:
            signal.signal(number, put_off)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            first, frame = came[0]
            handlers[signal.Signals(first)](first, frame)


@contextlib.contextmanager
def unreachable() -> Iterator[None]:
    """Start processes in the block that Ctrl-C does not reach before they call `listen`: not while they import."""
    resource_tracker.ensure_running()  # starting it, as the first spawned process does, would lift the block
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def listen() -> None:
    """Let through what `unreachable` keeps from this process; one that has come in the meantime takes effect now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
