"""Subjects: implementations under test, and the registry that finds them."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from moeproof.strategies.domain import AlignDomain, AppendDomain, Domain, GateDomain

Call = Callable[[dict[str, Any], dict[str, torch.Tensor]], Mapping[str, torch.Tensor] | None]

OUTPUTS = {
    "fused_gate": ("weights", "indices"),
    "moe_align_block_size": ("sorted_token_ids", "expert_ids", "num_tokens_post_pad"),
    "append_shared_experts": ("ids", "weights"),
}
"""Names of each op's outputs, in the order in which a function returns them."""
BY_NAME = "by name"
"""Tag of a subject that runs only where it is named: not with its family, nor by a pattern."""
_DOMAINS: dict[str, type[Domain]] = {
    "fused_gate": GateDomain,
    "moe_align_block_size": AlignDomain,
    "append_shared_experts": AppendDomain,
}


class SubjectError(ValueError):
    """A subject that is declared wrongly, or can't be found."""


class Unavailable(RuntimeError):
    """Raised by a subject's loader when this machine can't run it; says what is missing."""


@dataclass(frozen=True)
class Subject:
    """An implementation under test.

    Attributes
    ----------
    name : str
        ``family:op`` or ``family:op@variant``.
    op : str
        The op whose contract it is judged by.
    load : callable
        Returns the callable that runs a case; raises `Unavailable` where it can't run. Called once a process.
        The callable takes the case's arguments by name (tensors and params of docs/contracts.md) and the outputs
        carved by the harness by name; it fills those and returns None, or returns outputs of its own by name.
    domain : Domain
        The cases it claims to support.
    device : str
        ``"cuda"``, ``"cpu"`` or ``"any"``.
    order : str
        ``"stable"`` or ``"any"``: the order within an expert (`moe_align_block_size` only).
    minus_one : str
        ``"drop"`` or ``"sentinel_blocks"`` (`moe_align_block_size` only).
    bitwise : bool
        It promises bitwise repeatable results.
    capturable : bool
        It promises to work under CUDA-graph capture.
    batch_invariant : bool
        It promises that a row's result depends on no other row (`fused_gate` only).
    layout_invariant, dtype_invariant : bool
        It promises the same bits for the same logits wherever they lie in memory, or in whatever dtype they are
        (`fused_gate` only; the other ops leave no room).
    tie_order : str
        ``"lower_id"``, or ``"any"`` where the library documents that equal scores come in no specified order.
    weights_scaled : str
        ``"flag"``: the scale is applied as the contract says; ``"renormalized"``: only together with `renormalize`.
    unranked : str
        ``"score"``: as the contract says; ``"any"``: the library says nothing of the weight of an expert that nothing
        ranks, whose c is NaN or −inf or whose group is dropped, with `renormalize` of its row's weights, and nothing
        of the order of those with NaN: in a row that takes one, no tie is judged.
    refuses : bool
        It promises to raise on input outside its domain.
    path : callable, optional
        Names the dispatch path that a case takes, for coverage.
    repro : str
        Python statements for a standalone script: they define ``run(args, outputs)`` as `load` does, with no import
        of moeproof. Empty where no script can be made.
    source : str
        File and name for a child process to load the subject from (``FILE.py:NAME``), empty for built-in ones.
    version : callable, optional
        Returns the library's version.
    """

    name: str
    op: str
    load: Callable[[], Call]
    domain: Domain
    device: str = "any"
    order: str = "stable"
    minus_one: str = "drop"
    bitwise: bool = True
    capturable: bool = False
    batch_invariant: bool = True
    layout_invariant: bool = False
    dtype_invariant: bool = False
    tie_order: str = "lower_id"
    weights_scaled: str = "flag"
    unranked: str = "score"
    refuses: bool = False
    path: Callable[[Any], str] | None = None
    repro: str = ""
    source: str = ""
    version: Callable[[], str] | None = None
    tags: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        allowed = {
            "op": tuple(OUTPUTS),
            "device": ("cuda", "cpu", "any"),
            "order": ("stable", "any"),
            "minus_one": ("drop", "sentinel_blocks"),
            "tie_order": ("lower_id", "any"),
            "weights_scaled": ("flag", "renormalized"),
            "unranked": ("score", "any"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise SubjectError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(values)}")
        if not isinstance(self.domain, _DOMAINS[self.op]):
            raise SubjectError(
                f"domain is a {type(self.domain).__name__}; allowed for {self.op}: {_DOMAINS[self.op].__name__}"
            )


def from_function(function: Callable[..., Any], op: str, *, out: bool = False) -> Callable[[], Call]:
    """Return a loader for a function that takes the contract's arguments by name.

    Parameters
    ----------
    function : callable
        Takes the arguments of docs/contracts.md by name and returns the outputs in the contract's order.
    op : str
        The op.
    out : bool
        It also takes ``out=``, a tuple of outputs in the contract's order, and fills them.
    """
    names = OUTPUTS[op]

    def call(args: dict[str, Any], outputs: dict[str, torch.Tensor]) -> Mapping[str, torch.Tensor] | None:
        if out:
            function(**args, out=tuple(outputs[n] for n in names))
            return None
        return dict(zip(names, function(**args), strict=True))

    return lambda: call


_REGISTRY: dict[str, Subject] = {}


def register(subject: Subject) -> Subject:
    """Add a subject to this process's registry; a second one of the same name replaces the first."""
    _REGISTRY[subject.name] = subject
    return subject


@functools.cache
def _load_builtin() -> tuple[str, ...]:
    """Import the built-in subjects and those of other packages (entry points `moeproof.subjects`)."""
    problems = []
    importlib.import_module("moeproof.verify.builtin")
    for entry in importlib.metadata.entry_points(group="moeproof.subjects"):
        try:
            loaded = entry.load()
            for subject in loaded() if callable(loaded) else loaded:
                register(subject)
        except Exception as error:  # a third party's package must not take the harness down
            problems.append(f"{entry.name}: {type(error).__name__}: {error}")
    return tuple(problems)


def plugin_problems() -> tuple[str, ...]:
    """Return what went wrong while loading subjects of other packages, one line each."""
    return _load_builtin()


def load_file(path: str | Path) -> list[Subject]:
    """Import a Python file and return the subjects that it defines at its top level, registered.

    Raises
    ------
    SubjectError
        If the file can't be imported or defines none.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise SubjectError(f"subject file is {str(path)!r}; allowed: an existing Python file")
    name = f"moeproof_user_{file.stem}_{abs(hash(str(file))):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise SubjectError(f"subject file is {str(path)!r}; allowed: a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(file.parent) not in sys.path:
        # As for a script, and as pytest does: the file's neighbours can be imported.
        sys.path.insert(0, str(file.parent))
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a test module may raise pytest's Skipped, a script may exit
        del sys.modules[name]
        raise SubjectError(f"{file.name} can't be imported: {type(error).__name__}: {error}") from error
    found = [v for v in vars(module).values() if isinstance(v, Subject)]
    if not found:
        raise SubjectError(f"{file.name} defines no Subject at its top level")
    # A child process finds it by its source, which a plain Subject(...) does not know.
    return [register(s if s.source else replace(s, source=f"{file}:{s.name}")) for s in found]


def all_subjects() -> list[Subject]:
    """Return every registered subject, by name."""
    _load_builtin()
    return [_REGISTRY[name] for name in sorted(_REGISTRY)]


def find(patterns: Iterable[str]) -> list[Subject]:
    """Return the subjects that the patterns name.

    Parameters
    ----------
    patterns : iterable of str
        A name, a family (the part before the colon), a shell pattern, or ``FILE.py`` / ``FILE.py:NAME``. Subjects
        tagged `BY_NAME` are left out unless a pattern is their name.

    Raises
    ------
    SubjectError
        If a pattern names nothing.
    """
    chosen: dict[str, Subject] = {}
    for pattern in patterns:
        file = _split_file(pattern)
        known = all_subjects() if file is None else load_file(file[0])
        wanted = pattern if file is None else file[1]
        matches = [
            s
            for s in known
            if wanted == s.name
            or (file is not None and wanted == s.name.partition(":")[2])
            or (BY_NAME not in s.tags and (wanted == s.name.partition(":")[0] or fnmatchcase(s.name, wanted)))
        ]
        if not matches:
            names = ", ".join(s.name for s in known)
            more = ", a family, a pattern, or FILE.py:NAME" if file is None else ""
            raise SubjectError(f"subject is {pattern!r}; allowed: {names}{more}")
        chosen.update((s.name, s) for s in matches)
    return list(chosen.values())


def _split_file(pattern: str) -> tuple[str, str] | None:
    """Split ``FILE.py:NAME`` (NAME is ``*`` if not given); None if no file is meant."""
    splits = [(pattern[: m.end()], pattern[m.end() + 1 :] or "*") for m in re.finditer(r"\.py(?=:|$)", pattern)]
    existing = [split for split in splits if Path(split[0]).is_file()]
    return next(iter(existing or splits), None)
