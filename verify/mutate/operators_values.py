"""Faults of values: indices, literals, arithmetic, initial values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .operators import binary, call, call_parts, field, operator, starts_loop, symbol
from .source import Source, inside, same

_INTEGER = re.compile(r"^(0[xX][0-9a-fA-F]+|[0-9]+)([uUlL]*)$")
_FLOAT = re.compile(r"^[0-9.]+(?:[eE][+-]?\d+)?[fF]?$|^0[xX][0-9a-fA-F.]+[pP][+-]?\d+[fF]?$")
_ARITHMETIC = {"+": "-", "-": "+", "*": "/", "/": "*", "%": "/"}
_BITWISE = {"&": "|", "|": "&", "^": "&", "<<": ">>", ">>": "<<"}
_ACCUMULATING = ("+=", "-=", "*=", "/=", "&=", "|=", "^=")
_OPPOSITES = {
    "min": "max",
    "fminf": "fmaxf",
    "atomicMin": "atomicMax",
    "__reduce_min_sync": "__reduce_max_sync",
    "__reduce_and_sync": "__reduce_or_sync",
    "__any_sync": "__all_sync",
}
_OPPOSITES |= {b: a for a, b in _OPPOSITES.items()}
_INTRINSICS = {"__fadd_rn": "__fsub_rn", "__fsub_rn": "__fadd_rn", "__fmul_rn": "__fdiv_rn", "__fdiv_rn": "__fmul_rn"}
_SIMPLE = ("identifier", "number_literal", "field_expression", "call_expression")
GARBAGE = "0x2a5a5a5a"
"""What a register without an initial value holds; fixed, so that a verdict can be repeated."""


@operator("Min and max, all and any change places.", "call_expression")
def _min_max(node: Any, source: Source) -> Iterator[str]:
    function, arguments = call_parts(node, source)
    if function in _OPPOSITES:
        yield call(_OPPOSITES[function], arguments)


@operator(
    "An index is off by one: up where the text has an even number of letters, else down.", "subscript_argument_list"
)
def _index(node: Any, source: Source) -> Iterator[str]:
    text = source.text(node)[1:-1]
    simple = all(c.type in _SIMPLE for c in node.children if c.is_named)
    # Either direction finds the same missing checks; which one is fixed by the text, so that ids last.
    yield f"[{text if simple else f'({text})'} {'-' if len(text) % 2 else '+'} 1]"


@operator("An array is one element short.", "array_declarator")
def _array_size(node: Any, source: Source) -> Iterator[str]:
    if not inside(node, "field_declaration", "parameter_declaration"):
        size = node.child_by_field_name("size")
        if size is not None:
            yield f"{field(node, 'declarator', source)}[{source.text(size)} - 1]"


@operator("An integer constant is off by one: up where it is even, else down.", "number_literal")
def _literal(node: Any, source: Source) -> Iterator[str]:
    match = _INTEGER.match(source.text(node))
    if match is None or _counted_elsewhere(node):
        return
    value, suffix = int(match[1], 0), match[2]
    shown = hex if match[1][:2] in ("0x", "0X") else str
    yield f"{shown(value - 1 if value % 2 else value + 1)}{suffix}"


def _counted_elsewhere(node: Any) -> bool:
    """Return whether another operator changes this literal: indices, array sizes, ends of loops, masks."""
    parent = node.parent
    if parent.type in ("subscript_argument_list", "array_declarator"):
        return True
    if parent.type == "binary_expression" and parent.parent.type == "for_statement":
        return same(parent.child_by_field_name("right"), node)
    if parent.type == "init_declarator" and starts_loop(parent):
        return True
    # ~0u, the mask of a whole warp.
    return parent.type == "unary_expression" and parent.parent.type == "argument_list"


@operator("A floating-point constant is off by a sixteenth, or 1 instead of 0.", "number_literal")
def _constant(node: Any, source: Source) -> Iterator[str]:
    text = source.text(node)
    if _INTEGER.match(text) or not _FLOAT.match(text):
        return
    digits = text.rstrip("fF") if not text.lower().startswith("0x") else text
    zero = "x" not in digits.lower() and float(digits) == 0
    yield "1.f" if zero else f"({text} * 1.0625f)"


@operator("An arithmetic operator becomes its opposite.", "binary_expression")
def _arithmetic(node: Any, source: Source) -> Iterator[str]:
    new = _ARITHMETIC.get(symbol(node, source))
    if new is not None:
        yield f"({binary(node, source, new)})"


@operator("An explicitly rounded operation becomes its opposite.", "call_expression")
def _rounded_arithmetic(node: Any, source: Source) -> Iterator[str]:
    function, arguments = call_parts(node, source)
    if function in _INTRINSICS:
        yield call(_INTRINSICS[function], arguments)


@operator("A bitwise operator or a shift becomes its opposite.", "binary_expression")
def _bitwise(node: Any, source: Source) -> Iterator[str]:
    new = _BITWISE.get(symbol(node, source))
    if new is not None:
        yield f"({binary(node, source, new)})"


@operator("A shift goes one place too far.", "binary_expression", "assignment_expression")
def _shift(node: Any, source: Source) -> Iterator[str]:
    right = node.child_by_field_name("right")
    if symbol(node, source) in ("<<", ">>") and right.type != "number_literal":
        yield f"({field(node, 'left', source)} {symbol(node, source)} ({source.text(right)} + 1))"


@operator("A sign, a negation or a complement is left out.", "unary_expression")
def _unary_dropped(node: Any, source: Source) -> Iterator[str]:
    argument = node.child_by_field_name("argument")
    mask = node.parent.type == "argument_list" and source.text(node) == "~0u"
    if symbol(node, source) in ("-", "!", "~") and not mask:
        value = source.text(argument)
        yield f"static_cast<bool>({value})" if symbol(node, source) == "!" else f"({value})"


@operator("An accumulating assignment forgets what was there.", "assignment_expression")
def _accumulation(node: Any, source: Source) -> Iterator[str]:
    if symbol(node, source) in _ACCUMULATING and not _steps_loop(node):
        yield f"{field(node, 'left', source)} = {field(node, 'right', source)}"


@operator("A counter goes the other way.", "update_expression")
def _update(node: Any, source: Source) -> Iterator[str]:
    text = source.text(node)
    if not _steps_loop(node):
        yield text.replace("++", "--") if "++" in text else text.replace("--", "++")


def _steps_loop(node: Any) -> bool:
    """Return whether a node moves a for loop on: changed, the loop would only run into its time limit."""
    return node.parent.type == "for_statement" and same(node.parent.child_by_field_name("update"), node)


@operator("A variable is not given its initial value and holds garbage.", "init_declarator", "field_declaration")
def _initial_value(node: Any, source: Source) -> Iterator[str]:
    value = node.child_by_field_name("value") or node.child_by_field_name("default_value")
    if "*" in field(node, "declarator", source):
        return
    if starts_loop(node) or value is None or value.type not in ("number_literal", "false", "true", "identifier"):
        return
    holder = node if node.type == "field_declaration" else node.parent
    qualifiers = {source.text(c) for c in holder.children if c.type == "type_qualifier"}
    kind = field(holder, "type", source)
    if qualifiers & {"const", "constexpr"} or not kind.replace("unsigned", "int").startswith(("int", "long", "float")):
        return
    text = source.text(node)
    start, end = value.start_byte - node.start_byte, value.end_byte - node.start_byte
    raw = text.encode()
    yield (raw[:start] + GARBAGE.encode() + raw[end:]).decode()
