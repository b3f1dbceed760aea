"""Findings: a failed check on a reduced case, as a folder that a person can read, run and keep."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from moeproof import __version__
from moeproof.references import gold
from moeproof.strategies.case import Case, literal, plain
from moeproof.strategies.domain_check import why_outside

from .child import Executor
from .contract import arguments, gate_rules
from .extras import of_check
from .files import write_text
from .metamorphic.shown import Variant, variants
from .oracle.align import AlignRules, expected_align
from .oracle.gate import GateParams, gold_groups, gold_ids, score_rows, weight_bounds
from .rank_bounds import rank_bounds
from .reduce.cost import OPTIONAL, PLAIN
from .reduce.engine import Reduced, reduce_case
from .reduce.probe import wrong_argument
from .repro import render_markdown, render_script
from .subject import Subject, Unavailable
from .violation import CHECKS, SANITIZERS, SEVERITY, VARIANCES, Violation

CUT_SHORT = "reduction cut short"
"""Stands for the traits of a case that was not reduced to the end."""
SIZES = {"no": 0, "few": 8, "some": 128, "many": sys.maxsize}
"""Words for sizes, each with the largest it is used for."""


@dataclass(frozen=True)
class Finding:
    """A defect that a run has shown.

    Attributes
    ----------
    identity : str
        Ten hexadecimal digits; the same defect has the same one in every run.
    subject : Subject
        The implementation.
    version : str
        Its library's version, empty if unknown.
    case : Case
        The reduced case.
    violation : Violation
        How it fails.
    refusal : bool
        The case is outside the claimed domain.
    failed, runs : int
        In how many of how many runs the reduced case fails.
    tries, seconds : float
        What reduction cost.
    complete : bool
        Reduction ended because nothing smaller fails.
    device : str
        Where it was seen.
    actual : dict
        The outputs of one run as JSON data, or what went wrong under ``error``.
    """

    identity: str
    subject: Subject
    version: str
    case: Case
    violation: Violation
    refusal: bool
    failed: int
    runs: int
    tries: int
    seconds: float
    complete: bool
    device: str
    actual: Mapping[str, Any]

    @property
    def title(self) -> str:
        """One line: the subject, what breaks, and on what input."""
        return f"{self.subject.name}: {self.violation.meaning} ({describe(self.case)})"

    def summary(self) -> dict[str, Any]:
        """Return the finding as JSON data, without its case."""
        return {
            "identity": self.identity,
            "subject": self.subject.name,
            "source": self.subject.source,
            "version": self.version,
            "op": self.case.op,
            "check": self.violation.check,
            "severity": SEVERITY[self.violation.check],
            "title": self.title,
            "message": self.violation.message,
            "extras": list(self.violation.extras),
            "outside_domain": self.refusal,
            "failed": self.failed,
            "runs": self.runs,
            "tries": self.tries,
            "seconds": round(self.seconds, 3),
            "complete": self.complete,
            "device": self.device,
            "moeproof": __version__,
        }

    def write(self, folder: Path) -> Path:
        """Write ``case.json``, ``finding.json``, ``repro.py`` and ``finding.md`` into ``folder/IDENTITY``."""
        place = folder / self.identity
        judged = not self.refusal and self.violation.check not in SANITIZERS
        wanted = expected(self.case, self.subject) if judged else {}
        tried = [(v, expected(v.case, self.subject)) for v in self._variants()]
        shown = self._by_itself([v for v, _ in tried])
        if shown is not self:
            script = render_script(shown, expected(shown.case, self.subject), bounds(shown.case, self.subject))
        else:
            script = render_script(self, wanted, bounds(self.case, self.subject) if judged else None, tried)
        write_text(place / "case.json", self.case.dumps())
        write_text(place / "repro.py", script)
        write_text(place / "finding.md", render_markdown(self, wanted))
        # Last, so that a folder that has it is whole.
        write_text(place / "finding.json", json.dumps(self.summary(), indent=2) + "\n")
        return place

    @property
    def ranks(self) -> dict[str, Any] | None:
        """What its script needs to judge ids, where comparing them is not enough."""
        return None if self.refusal else rank_bounds(self.case, self.subject, self.violation.check, self.actual)

    def _variants(self) -> list[Variant]:
        """Return the variants of the case among which is the one that fails; none if the case fails itself."""
        names = self.violation.extras or of_check(self.violation.check)
        if self.violation.check not in VARIANCES:
            return []
        device = "cuda" if self.device.startswith("cuda") else "cpu"
        return [v for name in names for v in variants(name, self.case, self.subject, device)]

    def _by_itself(self, tried: list[Variant]) -> Finding:
        """Return the finding of a variant that breaks the contract itself, as the message says; else this finding."""
        for variant in tried if self.case.op == "fused_gate" else ():
            check, _, text = self.violation.message.removeprefix(f"{variant.what}: ").partition(": ")
            if self.violation.message.startswith(f"{variant.what}: ") and check in CHECKS:
                return replace(self, case=variant.case, violation=replace(self.violation, check=check, message=text))
        return self


def make_finding(
    subject: Subject, reduced: Reduced, *, refusal: bool, device: str, actual: Mapping[str, Any]
) -> Finding:
    """Return the finding of a reduced case."""
    case = reduced.case
    if refusal:
        case = replace(case, note=why_outside(case, subject.domain) or case.note)
    return Finding(
        identity(subject, case, reduced.violation, refusal=refusal, complete=reduced.complete),
        subject,
        version_of(subject),
        case,
        reduced.violation,
        refusal,
        reduced.failed,
        reduced.runs,
        reduced.tries,
        reduced.seconds,
        reduced.complete,
        device,
        actual,
    )


def version_of(subject: Subject) -> str:
    """Return the version of a subject's library, empty if it has none."""
    try:
        return subject.version() if subject.version is not None else ""
    except Exception as error:  # a library's own version lookup may fail
        return f"unknown ({type(error).__name__})"


def artefacts(place: Path) -> dict[str, str]:
    """Return a written finding's script and case as text, by name; a report needs no folder beside it then."""
    files = {"script": "repro.py", "case": "case.json"}
    return {name: (place / f).read_text(encoding="utf-8") for name, f in files.items() if (place / f).exists()}


def reduce_to_finding(
    executor: Executor, case: Case, violation: Violation, *, refusal: bool, seconds: float = 20.0
) -> Finding:
    """Reduce a failing case, run what is left once more for the report, and return the finding."""
    reduced = reduce_case(executor, case, violation, seconds=seconds, refusal=refusal)
    try:
        actual = executor.outputs(reduced.case)
    except Unavailable as error:  # the failure stands, whatever it has done to the process
        actual = {"error": str(error)}
    return make_finding(executor.subject, reduced, refusal=refusal, device=executor.device, actual=actual)


def identity(subject: Subject, case: Case, violation: Violation, *, refusal: bool, complete: bool = True) -> str:
    """Return what tells one defect from another: subject, check, and what reduction could not make plain.

    What a reduction that was cut short has left tells nothing: all such cases of a subject and check share a name.
    """
    if refusal:  # only the argument that is wrong counts
        found = {wrong_argument(case, subject.domain)}
    else:
        found = features(case) if complete else {CUT_SHORT}
    traits = [subject.name, violation.check, *sorted(found)]
    return hashlib.sha256("\n".join(traits).encode()).hexdigest()[:10]


def features(case: Case) -> set[str]:
    """Return what sets a reduced case apart: flags, dtypes, layouts, special values, and the order of its sizes."""
    found = {f"{n}={case.params[n]}" for n, v in PLAIN.items() if _odd(case, n, v)}
    found |= {name for name in OPTIONAL if name in case.tensors}
    for name, spec in case.tensors.items():
        if spec.dtype not in ("float32", "int32"):
            found.add(f"{name}:{spec.dtype}")
        if spec.offset:
            found.add(f"{name}:misaligned")
        if spec.strides is not None:
            found.add(f"{name}:strided")
        found |= {f"{name}:{kind}" for kind in _special(spec.rows)}
    rows, columns = case.main.shape
    found.add(f"rows~{_magnitude(rows)}")
    sizes = {"E": case.params.get("num_experts", columns), "k": case.params.get("topk", columns)}
    if case.params.get("num_expert_group", 1) != 1:
        sizes["groups"] = case.params["num_expert_group"]
    found |= {f"{n}~{_magnitude(int(v))}" for n, v in sizes.items()}
    return found


def _odd(case: Case, name: str, value: Any) -> bool:
    # Of groups their number counts, and only roughly, as of other sizes.
    sizes = ("num_expert_group", "topk_group", "routed_scaling_factor")
    return name in case.params and case.params[name] != value and name not in sizes


def _special(rows: Any) -> set[str]:
    if isinstance(rows, tuple):
        return set().union(*(_special(r) for r in rows)) if rows else set()
    if isinstance(rows, float) and not math.isfinite(rows):
        return {"nan" if math.isnan(rows) else "inf"}
    return {"-1"} if isinstance(rows, int) and rows < 0 else set()


def _magnitude(size: int) -> str:
    return next(name for name, most in SIZES.items() if size <= most)


def describe(case: Case) -> str:
    """Return a case's sizes and odd flags in a few words."""
    name = "logits" if case.op == "fused_gate" else "topk_ids"
    main = case.tensors[name]
    if len(main.shape) != 2:
        return f"{name} of shape {main.shape}, {main.dtype}"
    if case.op == "fused_gate":
        rows, experts = main.shape
        words = [
            f"T={rows}",
            f"E={experts}",
            f"k={case.params['topk']}",
            str(case.params.get("scoring", "sigmoid")),
        ]
        if case.params.get("num_expert_group", 1) != 1:
            words.append(f"{case.params['num_expert_group']} groups, {case.params['topk_group']} kept")
    else:
        rows, topk = main.shape
        words = [f"T={rows}", f"k={topk}", f"E={case.params['num_experts']}"]
        if case.op == "moe_align_block_size":
            words.append(f"block {case.params['block_size']}")
    words.append(main.dtype)
    words += [name for name in OPTIONAL if name in case.tensors]
    if main.strides is not None:
        words.append(f"strides {main.strides}")
    if main.offset:
        words.append(f"offset {main.offset}")
    return ", ".join(words)


def expected(case: Case, subject: Subject) -> dict[str, Any]:
    """Return what the contract asks for, as JSON data by output name; empty for a case that must be refused."""
    try:
        tensors, _ = case.build("cpu")
        args = arguments(case, tensors)
        if case.op == "fused_gate":
            results = dict(zip(("weights", "indices"), gold.fused_gate(**args), strict=True))
        elif case.op == "moe_align_block_size":
            results = expected_align(args, AlignRules(subject.order, subject.minus_one))
        else:
            results = dict(zip(("ids", "weights"), gold.append_shared_experts(**args), strict=True))
    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError):
        return {}
    return {name: plain(list(literal(value))) for name, value in results.items()}


def bounds(case: Case, subject: Subject) -> dict[str, Any] | None:
    """Return the lowest and highest weights that the contract allows at the expected ids, for fused_gate."""
    if case.op != "fused_gate":
        return None
    tensors, _ = case.build("cpu")
    args = arguments(case, tensors)
    given: dict[str, Any] = {k: v for k, v in case.params.items() if k in GateParams.__dataclass_fields__}
    params = GateParams(**given)
    try:
        rows = score_rows(args["logits"], args.get("bias"), params)
        kept = gold_groups(rows, params) if params.num_expert_group > 1 else None
        ids = gold_ids(rows, kept, params)
        low, high = weight_bounds(rows, kept, ids, params, gate_rules(subject))
    except (RuntimeError, ValueError, ZeroDivisionError):
        return None
    limit = args.get("num_token_non_padded")
    if limit is not None:
        padding = torch.arange(len(low))[:, None] >= limit.reshape(())
        low, high = torch.where(padding, 0.0, low), torch.where(padding, 0.0, high)
    return {"low": plain(low.tolist()), "high": plain(high.tolist())}
