"""Renders a finding's standalone script and its page."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from moeproof.strategies.case import TensorSpec

from .contract import arguments, output_specs
from .oracle.append import expected_append
from .violation import CHECKS, SEVERITY

if TYPE_CHECKING:
    from .finding import Finding

RULES = {
    "fused_gate": {
        "selection": "The chosen experts are those with the highest scores, best first.",
        "tie_order": "Experts with equal scores are ordered by id, lower first.",
        "nan_policy": "A NaN score ranks below every other and its weight is 0; no output is NaN.",
        "ids_invalid": "Ids are distinct and in range; shared places hold E, E+1, ...; padded rows hold -1.",
        "weights": "A weight is the score of its expert (normalised and scaled as asked), within float32 rounding.",
    },
    "moe_align_block_size": {
        "align_layout": "Each id's index appears once, in a block of its expert; experts ascend; blocks are padded.",
    },
    "append_shared_experts": {
        "weights": "Routed weights are copied bit for bit; shared weights are cast once.",
        "ids_invalid": "Routed ids are copied; shared places hold E, E+1, ...; padded rows hold -1.",
    },
}
_LITERAL = 100
"""Line width of wrapped literals."""


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.globals["specs"] = lambda f: output_specs(f.case, f.subject)
    environment.globals["expected_bits"] = _expected_bits
    environment.filters["py"] = python_literal
    environment.filters["tensor"] = tensor_call
    return environment


def _expected_bits(finding: Finding) -> list[Any]:
    """Return the bits of the weights that append_shared_experts has to give."""
    tensors, _ = finding.case.build("cpu")
    return list(expected_append(arguments(finding.case, tensors))["weights"].tolist())


def rule(op: str, check: str) -> str:
    """Return the contract's rule that a check guards, in a sentence."""
    return RULES[op].get(check) or CHECKS[check].capitalize() + "."


def render_script(finding: Finding, expected: Mapping[str, Any], bounds: Mapping[str, Any] | None) -> str:
    """Return the text of ``repro.py``: it needs torch and the subject's own library only."""
    return _environment().get_template("repro.py.j2").render(
        f=finding,
        case=finding.case,
        check=finding.violation.check,
        rule=rule(finding.case.op, finding.violation.check),
        snippet=finding.subject.repro.strip() or _loader(finding.subject.source or finding.subject.name),
        expected=expected,
        bounds=bounds,
        device="cuda" if finding.device.startswith("cuda") else "cpu",
    )


def render_markdown(finding: Finding, expected: Mapping[str, Any]) -> str:
    """Return the text of ``finding.md``."""
    return _environment().get_template("finding.md.j2").render(
        f=finding,
        check=finding.violation.check,
        rule=rule(finding.case.op, finding.violation.check),
        severity=SEVERITY[finding.violation.check],
        expected=expected,
    )


def _loader(name: str) -> str:
    return "\n".join(
        [
            "from moeproof.verify.subject import find",
            "",
            f"run = find([{name!r}])[0].load()",
        ]
    )


def python_literal(value: Any) -> str:
    """Return JSON data as Python source; ``nan`` and ``inf`` are names that the script defines."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(python_literal(v) for v in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {python_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return value
    return repr(value)


def tensor_call(spec: TensorSpec) -> str:
    """Return the source of a call of the script's own `tensor`."""
    rows = python_literal(spec.rows) if spec.rows is not None else None
    if rows is None:
        from moeproof.strategies.case import literal

        rows = python_literal(literal(spec.contents("cpu")))
    parts = [rows, f"torch.{spec.dtype}", repr(tuple(spec.shape))]
    if spec.strides is not None:
        parts.append(f"strides={tuple(spec.strides)!r}")
    if spec.offset:
        parts.append(f"offset={spec.offset}")
    return f"tensor({', '.join(parts)})"
