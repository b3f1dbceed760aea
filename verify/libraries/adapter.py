"""Turns a snippet of Python into a subject's loader."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from moeproof.strategies.case import Case
from moeproof.strategies.domain import Domain
from moeproof.verify.subject import Call, Subject, Unavailable

from .locate import find, version

CONTIGUOUS = ("contiguous", "offset")
"""Layouts that an operator claims which takes data pointers and reads no strides."""

PACKAGE = '''\
import importlib.util
import os
import pathlib

import torch


def package(name):
    """Return the folder of a package: among bare files if it is there, else as installed."""
    folder = os.environ.get("MOEPROOF_LIBRARIES")
    if folder and pathlib.Path(folder, name).is_dir():
        return pathlib.Path(folder, name)
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ImportError(f"{name} is not installed, nor in the folder that MOEPROOF_LIBRARIES names")
    return pathlib.Path(spec.origin).parent


'''
"""Starts every snippet: finds a library's folder."""


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
        namespace: dict[str, object] = {"__name__": "snippet"}
        try:
            exec(compile(snippet, f"<{name}>", "exec"), namespace)
        except Exception as error:  # a missing symbol, another architecture, a failed build
            found = ", ".join(f"{library} {find(library).version}" for library in libraries)
            raise Unavailable(
                f"{found} can't be loaded with torch {torch.__version__} on {torch.cuda.get_device_name()}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return namespace["run"]  # type: ignore[return-value]

    return load


def subject(
    name: str,
    libraries: tuple[str, ...],
    snippet: str,
    domain: Domain,
    path: Callable[[Case], str] | None = None,
    **declared: Any,
) -> Subject:
    """Return a subject that runs a snippet.

    Parameters
    ----------
    name : str
        ``family:op`` or ``family:op@variant``.
    libraries : tuple of str
        Distributions that the snippet needs; the first one is the family's own.
    snippet : str
        Statements that define ``run(args, outputs)``.
    domain : Domain
        What the library claims.
    path : callable, optional
        Names the dispatch path of a case.
    **declared
        Further fields of `Subject`.
    """
    return Subject(
        name=name,
        op=name.partition(":")[2].partition("@")[0],
        load=loader(name, libraries, snippet),
        domain=domain,
        device="cuda",
        capturable=True,  # serving engines call all of them inside CUDA graphs
        path=path,
        repro=snippet,
        version=partial(version, libraries[0]),
        tags=("library",),
        **declared,
    )


def gate_shape(case: Case) -> tuple[int, int, int, int, int]:
    """Return T, E, k, G and g of a `fused_gate` case."""
    tokens, experts = case.tensors["logits"].shape
    params = case.params
    groups, kept = int(params.get("num_expert_group", 1)), int(params.get("topk_group", 1))
    return tokens, experts, int(params["topk"]), groups, kept
