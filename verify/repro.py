"""Renders a finding's standalone script and its page."""

from __future__ import annotations

import ast
import functools
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from moeproof.strategies.case import BAIT, BAIT_FLOAT, GUARD_BYTES, TensorSpec, literal

from .contract import arguments, output_specs
from .literals import WIDTH, repeated, source, wrapped
from .metamorphic.batches import ROW_INPUTS
from .metamorphic.shown import Variant
from .oracle.append import expected_append
from .sanitize.tools import TOOLS
from .violation import CHECKS, PENDING, SANITIZERS, SEVERITY

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
VALUES = ("selection", "tie_order", "nan_policy", "ids_invalid", "weights", "align_layout")
"""Checks whose script compares results with the contract's."""
SECONDS = 60
"""How long a script waits for a call that may hang."""


@functools.cache
def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        loader=loader, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False
    )
    environment.filters["py"] = source
    environment.filters["wrap"] = wrapped
    return environment


def rule(op: str, check: str) -> str:
    """Return the contract's rule that a check guards, in a sentence."""
    if check == "cuda_error":
        return "Every launch succeeds, and no call leaves an error behind."
    return RULES[op].get(check) or CHECKS[check].capitalize() + "."


def render_script(
    finding: Finding,
    expected: Mapping[str, Any],
    bounds: Mapping[str, Any] | None,
    variants: Sequence[tuple[Variant, Mapping[str, Any]]] = (),
) -> str:
    """Return the text of ``repro.py``, which needs torch and the subject's own library only where that can be.

    Parameters
    ----------
    finding : Finding
        The finding.
    expected, bounds : mapping
        What `finding.expected` and `finding.bounds` return.
    variants : sequence of (Variant, mapping)
        The variants that its check tries, each with what the contract asks for.
    """
    case, check = finding.case, finding.violation.check
    imports, snippet = _split(finding.subject.repro) if finding.subject.repro.strip() else _loader(finding)
    kind = check
    if check in VALUES:
        kind = "shapes" if finding.violation.message.startswith("output ") else "values"
    elif check in ("hang", "cuda_error"):
        kind = "launch" if finding.violation.message.startswith(PENDING) else "ends"
    elif variants:
        kind = "variants"
    elif check == "perturbation":
        imports = [*imports, "from moeproof.verify.perturb import PERTURBATIONS"]
    tensors = {name: tensor_call(spec, name if kind == "input_modified" else "") for name, spec in case.tensors.items()}
    body = (
        _environment()
        .get_template("repro_sanitizer.py.j2" if check in SANITIZERS else "repro.py.j2")
        .render(
            f=finding,
            case=case,
            check=check,
            kind=kind,
            snippet=snippet,
            tensors=tensors,
            variants=[(_shown(finding, v), wanted) for v, wanted in variants],
            rows_of=[n for n, spec in case.tensors.items() if n in ROW_INPUTS and spec.shape],
            helper=any(call.startswith("tensor(") for call in tensors.values()),
            note=source(case.note),
            broadcast=any(_is_broadcast(spec) for spec in case.tensors.values()),
            specs=_specs(finding),
            expected=expected,
            ranks=finding.ranks,
            bounds=bounds if check in ("weights", "nan_policy") else None,
            bits=_expected_bits(finding) if case.op == "append_shared_experts" and check == "weights" else None,
            bait=(BAIT_FLOAT, next(iter(BAIT.values())), GUARD_BYTES),
            device="cuda" if finding.device.startswith("cuda") else "cpu",
            seconds=SECONDS,
            options=list(TOOLS[check].options) if check in SANITIZERS else [],
        )
    )
    head = (
        _environment()
        .get_template("repro_head.py.j2")
        .render(f=finding, rule=rule(case.op, check), seen=_seen(finding), imports=_imports(body, imports))
    )
    return head + body


def render_markdown(finding: Finding, expected: Mapping[str, Any]) -> str:
    """Return the text of ``finding.md``."""
    return (
        _environment()
        .get_template("finding.md.j2")
        .render(
            f=finding,
            check=finding.violation.check,
            rule=rule(finding.case.op, finding.violation.check),
            severity=SEVERITY[finding.violation.check],
            expected=expected,
        )
    )


def _seen(finding: Finding) -> str:
    """Return the message's first line, fit for a docstring."""
    first = finding.violation.message.partition("\n")[0].replace("\\", "/").replace('"', "'")
    return textwrap.fill(f"Seen: {first}"[:600], WIDTH, subsequent_indent="    ")


def tensor_call(spec: TensorSpec, name: str = "") -> str:
    """Return the source of a tensor, a call of the script's own `tensor`; on several lines where it is long."""
    dtype = f"torch.{spec.dtype}"
    if not math.prod(spec.shape):
        return f"torch.empty({tuple(spec.shape)!r}, dtype={dtype}, device=DEVICE)"
    rows = spec.rows if spec.rows is not None else literal(spec.contents("cpu"))
    if _is_broadcast(spec):
        rows = rows[:1]
    values = source(rows[0]) if not spec.shape else repeated(rows, spec.shape[0])
    parts = [dtype, *([f'"{name}"'] if name else [])]
    if spec.strides is not None:
        parts.append(f"strides={tuple(spec.strides)!r}")
    if spec.offset:
        parts.append(f"offset={spec.offset}")
    line = f"tensor({values}, {', '.join(parts)})"
    if len(line) <= 76:
        return line
    return f"tensor(\n            {wrapped(values, 12)},\n            {', '.join(parts)},\n        )"


def _is_broadcast(spec: TensorSpec) -> bool:
    return spec.strides is not None and len(spec.shape) == 2 and spec.strides[0] == 0


def _shown(finding: Finding, variant: Variant) -> dict[str, Any]:
    """Return what the template needs of a variant."""
    return {
        "what": variant.what,
        "batch": variant.batch,
        "tensors": {n: tensor_call(spec) for n, spec in variant.changed(finding.case).items()},
        "specs": output_specs(variant.case, finding.subject),
    }


def _specs(finding: Finding) -> dict[str, Any]:
    """Return the outputs' shapes and dtypes; none where a case that must be refused has no sound ones."""
    try:
        specs = output_specs(finding.case, finding.subject)
    except (ValueError, TypeError, LookupError, ArithmeticError):
        return {}
    return {n: s for n, s in specs.items() if all(size >= 0 for size in s[0])}


def _expected_bits(finding: Finding) -> list[Any]:
    """Return the bits of the weights that append_shared_experts has to give."""
    tensors, _ = finding.case.build("cpu")
    return list(expected_append(arguments(finding.case, tensors))["weights"].tolist())


def _loader(finding: Finding) -> tuple[list[str], str]:
    """Return imports and statements that load a subject without a snippet: from its file, or by name."""
    name = finding.subject.source or finding.subject.name
    where = "the file that declares it" if finding.subject.source else "moeproof, which it is part of"
    return [
        "from moeproof.verify.subject import find"
    ], f'# The subject comes from {where}.\nrun = find(["{name}"])[0].load()'


def _split(snippet: str) -> tuple[list[str], str]:
    """Return the imports at the start of a snippet, and the rest of it."""
    lines = snippet.strip().splitlines()
    imports, rest = [], len(lines)
    for node in ast.parse(snippet.strip()).body:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            rest = node.lineno - 1
            rest = min([rest, *(d.lineno - 1 for d in getattr(node, "decorator_list", []))])
            break
        imports.append(ast.unparse(node))
    while rest and lines[rest - 1].lstrip().startswith("#"):
        rest -= 1
    return imports, "\n".join(lines[rest:]).strip()


def _imports(body: str, further: list[str]) -> str:
    """Return the import block that a script's body needs."""
    needed = {"import torch", *further}
    used = {node.id for node in ast.walk(ast.parse(body)) if isinstance(node, ast.Name)}
    needed |= {f"import {module}" for module in ("math", "os", "shutil", "subprocess", "sys") if module in used}
    if names := sorted(used & {"inf", "nan"}):
        needed.add(f"from math import {', '.join(names)}")
    local = {line for line in needed if line.startswith("from moeproof")}
    foreign = {line for line in needed if re.match(r"(import|from) (torch|numpy|triton|cuda)", line)}
    groups = [needed - local - foreign, foreign, local]
    return "\n\n".join("\n".join(sorted(g, key=_sort_key)) for g in groups if g)


def _sort_key(line: str) -> tuple[bool, str]:
    return line.startswith("from"), line
