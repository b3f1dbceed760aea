"""Turns a snippet of Python into a subject's loader."""

from __future__ import annotations

from collections.abc import Callable

import torch

from moeproof.verify.subject import Call, Unavailable

from .locate import find


def loader(name: str, libraries: tuple[str, ...], snippet: str) -> Callable[[], Call]:
    """Return a loader that executes a snippet and returns the ``run`` that it defines.

    Parameters
    ----------
    name : str
        The subject's name; it stands for a file name in tracebacks.
    libraries : tuple of str
        Distributions that the snippet needs, keys of `LIBRARIES`.
    snippet : str
        Statements that define ``run(args, outputs)``, with torch and the libraries only.
    """

    def load() -> Call:
        for library in libraries:
            if missing := find(library).missing:
                raise Unavailable(f"{library}: {missing}")
        if not torch.cuda.is_available():
            raise Unavailable(f"{name} needs a CUDA device, and torch {torch.__version__} sees none")
        namespace: dict[str, object] = {"__name__": "moeproof_snippet"}
        try:
            exec(compile(snippet, f"<{name}>", "exec"), namespace)
        except (
            Exception
        ) as error:  # a missing symbol, another arch, a failed build: whatever a library raises
            found = ", ".join(f"{library} {find(library).version}" for library in libraries)
            raise Unavailable(
                f"{found} can't be loaded with torch {torch.__version__} on {torch.cuda.get_device_name()}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return namespace["run"]  # type: ignore[return-value]

    return load
