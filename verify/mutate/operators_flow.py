"""Faults of control flow: comparisons, conditions, loops, statements left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .operators import bare, binary, field, operator, starts_loop, symbol
from .source import Source, same

_BOUNDARY = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
_SIMPLE = ("identifier", "number_literal", "field_expression")
_ORDER = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}


@operator("Equal keys are ordered the other way round.", "binary_expression")
def _tie_break(node: Any, source: Source) -> Iterator[str]:
    if symbol(node, source) != "&&":
        return
    left, right = bare(node.child_by_field_name("left")), bare(node.child_by_field_name("right"))
    if left.type == right.type == "binary_expression" and symbol(left, source) == "==":
        new = _ORDER.get(symbol(right, source))
        if new is not None:
            yield f"{field(node, 'left', source)} && {binary(right, source, new)}"


@operator("A comparison gains or loses equality; == and != change places.", "binary_expression")
def _relational(node: Any, source: Source) -> Iterator[str]:
    new = _BOUNDARY.get(symbol(node, source))
    # A loop's bound has operators of its own.
    if new is not None and not _ends_loop(node):
        yield binary(node, source, new)


@operator("&& and || change places.", "binary_expression")
def _logical(node: Any, source: Source) -> Iterator[str]:
    new = {"&&": "||", "||": "&&"}.get(symbol(node, source))
    if new is not None:
        yield f"({field(node, 'left', source)}) {new} ({field(node, 'right', source)})"


@operator("One half of a condition is left out.", "binary_expression")
def _guard_dropped(node: Any, source: Source) -> Iterator[str]:
    if symbol(node, source) in ("&&", "||"):
        yield field(node, "left", source)
        yield field(node, "right", source)


@operator(
    "The branches of a condition change places; not where `relational` does the same.",
    "condition_clause",
    "conditional_expression",
)
def _condition_negated(node: Any, source: Source) -> Iterator[str]:
    tested = node.child_by_field_name("condition") if node.type == "conditional_expression" else _value(node)
    if tested is None or symbol(bare(tested), source) in ("==", "!="):
        return
    if node.type == "conditional_expression":
        condition, yes, no = (field(node, n, source) for n in ("condition", "consequence", "alternative"))
        yield f"{condition} ? {no} : {yes}"
    else:
        yield f"(!({source.text(tested)}))"


@operator("What is for some elements only is done for all.", "condition_clause")
def _mask_dropped(node: Any, source: Source) -> Iterator[str]:
    parent = node.parent
    if parent.type == "if_statement" and parent.child_by_field_name("alternative") is None and _value(node) is not None:
        yield "(true)"


def _value(clause: Any) -> Any:
    """Return the value of an if's or while's condition; None where it declares a variable."""
    return clause.child_by_field_name("value")


@operator("A loop never runs.", "for_statement", "while_statement")
def _loop_removed(node: Any, source: Source) -> Iterator[str]:
    yield ";"


@operator("A loop ends one element early.", "binary_expression")
def _last_skipped(node: Any, source: Source) -> Iterator[str]:
    yield from _bound(node, source, "-")


@operator("A loop runs one element too far.", "binary_expression")
def _one_too_many(node: Any, source: Source) -> Iterator[str]:
    yield from _bound(node, source, "+")


def _ends_loop(node: Any) -> bool:
    return node.parent.type == "for_statement" and same(node.parent.child_by_field_name("condition"), node)


def _bound(node: Any, source: Source, sign: str) -> Iterator[str]:
    if not _ends_loop(node):
        return
    comparison = symbol(node, source)
    if comparison in _BOUNDARY:
        # A loop that counts down ends early with a higher bound.
        down = comparison.startswith(">")
        sign = {"-": "+", "+": "-"}[sign] if down else sign
        right = node.child_by_field_name("right")
        bound = source.text(right) if right.type in _SIMPLE else f"({source.text(right)})"
        yield f"{field(node, 'left', source)} {comparison} {bound} {sign} 1"


@operator("A loop starts one element late.", "init_declarator")
def _first_skipped(node: Any, source: Source) -> Iterator[str]:
    if starts_loop(node):
        update = field(node.parent.parent, "update", source)
        sign = "-" if "--" in update or "-=" in update else "+"
        yield f"{field(node, 'declarator', source)} = {field(node, 'value', source)} {sign} 1"


@operator(
    "A statement is left out.", "expression_statement", "break_statement", "continue_statement", "return_statement"
)
def _statement_removed(node: Any, source: Source) -> Iterator[str]:
    returns = node.type == "return_statement" and any(c.is_named for c in node.children)
    if not returns and source.text(node) != ";":
        yield ";"
