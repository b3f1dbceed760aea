"""The other end of a `channel.Channel`: answers requests, in the process that runs suspects.

A request names its subject, which is loaded when first named; one without a case only asks for that.
"""

from __future__ import annotations

import json
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from .subject import SubjectError, Unavailable


class Served(Protocol):
    """A subject that is ready to run."""

    @property
    def device_name(self) -> str:
        """Where it runs, in words."""
        ...


T = TypeVar("T", bound=Served)


def serve(
    connection: socket.socket, load: Callable[[str], T], answer: Callable[[T, dict[str, Any]], dict[str, Any]]
) -> None:
    """Answer requests until the parent hangs up; the process ends after an answer that is ``fatal``.

    Parameters
    ----------
    connection : socket
        To the parent.
    load : callable
        Returns the subject of a name, or raises why there is none.
    answer : callable
        Runs a request's case on a subject.
    """
    # Two files: writing to one that also reads would drop the requests that wait in its buffer.
    requests = connection.makefile("r", encoding="utf-8", newline="\n")
    answers = connection.makefile("w", encoding="utf-8", newline="\n")
    loaded: dict[str, T | str] = {}
    while line := requests.readline():
        request = json.loads(line)
        name = request["subject"]
        if name not in loaded:
            loaded[name] = _loaded(name, load)
        subject = loaded[name]
        if isinstance(subject, str):
            said: dict[str, Any] = {"unavailable": subject}
        elif "case" not in request:
            said = {"ready": subject.device_name}
        else:
            try:
                said = answer(subject, request)
            except MemoryError as error:
                said = {"no_memory": str(error)}
            except Exception:  # what the subject raises is in the answer: this is the harness's own
                said = {"fault": traceback.format_exc()}
        answers.write(json.dumps(said) + "\n")
        answers.flush()
        if said.get("fatal"):
            os._exit(3)


def _loaded(name: str, load: Callable[[str], T]) -> T | str:
    """Return a subject that is ready to run, or the reason why it is not."""
    try:
        return load(name)
    except (Unavailable, SubjectError) as error:
        return str(error)
    except Exception as error:  # a library may fail to load in any way
        return f"can't be loaded: {type(error).__name__}: {error}"
