"""Numbers, times and size classes as a reader wants them."""

from __future__ import annotations

import re
from datetime import UTC, datetime

OPS = ("fused_gate", "moe_align_block_size", "append_shared_experts")
SEVERITIES = ("critical", "high", "medium", "low")
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def short(number: float) -> str:
    """Return a count in at most five characters.

    Examples
    --------
    >>> [short(n) for n in (0, 999, 1234, 56789, 123456789)]
    ['0', '999', '1.23k', '56.8k', '123M']
    """
    for size, unit in _UNITS:
        if number >= size * 0.9995:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def microseconds(value: float | None) -> str:
    """Return a time in microseconds with three digits."""
    return "–" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Return a duration in the two largest units that it has."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s"
    minutes, left = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {left} s"
    return f"{minutes // 60} h {minutes % 60} min"


def moment(seconds: float) -> str:
    """Return a time of day in UTC; a page is read far from where it was written."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def brief_moment(seconds: float) -> str:
    """Return a time of day in UTC without its year, for an axis."""
    return moment(seconds)[5:]


def machine_moment(seconds: float) -> str:
    """Return a time as HTML's ``datetime`` attributes want it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def op_order(op: str) -> tuple[int, str]:
    """Return a key that sorts ops as the contracts list them, others after them."""
    return (OPS.index(op) if op in OPS else len(OPS), op)


def subject_order(name: str) -> tuple[bool, str]:
    """Return a key that sorts the own kernels first, others by name."""
    return (not name.startswith("own:"), name)


def severity_order(severity: str) -> int:
    """Return a key that sorts the worst first."""
    return SEVERITIES.index(severity) if severity in SEVERITIES else len(SEVERITIES)


def size_order(label: str) -> tuple[float, str]:
    """Return a key that sorts the classes of `strategies.labels.size_class` by size.

    Examples
    --------
    >>> sorted(["2^3+1", "2^3", "3", "2^3..2^4", "2^3-1"], key=size_order)
    ['3', '2^3-1', '2^3', '2^3+1', '2^3..2^4']
    """
    power = re.fullmatch(r"2\^(\d+)(\.\.2\^\d+|[+-]1)?", label)
    if power:
        # Between 2^n and 2^(n+1) lies 2^n+1, which is told apart, and the rest.
        step = {"-1": -1.0, "+1": 1.0}.get(power[2] or "", 1.4 if power[2] else 0.0)
        return (2.0 ** int(power[1]) + step, label)
    return (float(label), label) if re.fullmatch(r"-?\d+(\.\d+)?", label) else (float("inf"), label)


def pretty_size(label: str) -> str:
    """Return a size class with its powers worked out.

    Examples
    --------
    >>> [pretty_size(n) for n in ("3", "2^5+1", "2^5..2^6")]
    ['3', '33', '34–62']
    """
    between = re.fullmatch(r"2\^(\d+)\.\.2\^(\d+)", label)
    if between:
        low, high = 2 ** int(between[1]) + 2, 2 ** int(between[2]) - 2
        return str(low) if low >= high else f"{low}–{high}"
    power = re.fullmatch(r"2\^(\d+)([+-]1)?", label)
    return str(2 ** int(power[1]) + int(power[2] or 0)) if power else label
