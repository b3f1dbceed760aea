"""Faults of types: narrowed integers, casts left out, wrong element types."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .operators import call_parts, field, operator
from .source import Source, inside

_NARROWER = {
    "long long": "int",
    "unsigned long long": "unsigned",
    "unsigned short": "unsigned char",
    "double": "float",
}
_OTHER_CODE = {"FLOAT32": "BFLOAT16", "BFLOAT16": "FLOAT16", "FLOAT16": "BFLOAT16"}
_OTHER_ELEMENT = {
    "const int*": "const long long*",
    "const long long*": "const int*",
    "const float*": "const unsigned short*",
    "const unsigned short*": "const float*",
}
_OTHER_CONVERSION = {
    "bfloat_to_float": "half_to_float",
    "half_to_float": "bfloat_to_float",
    "__uint_as_float": "(float)",
    "__int_as_float": "(float)",
    "__float_as_int": "(int)",
    "__float_as_uint": "(unsigned)",
    "__float2int_rn": "__float2int_rz",
    "__float2half_rn": "__float2half_rz",
    "__float2bfloat16_rn": "__float2bfloat16_rz",
}


@operator("An integer has half as many bits.", "sized_type_specifier", "primitive_type")
def _narrowed(node: Any, source: Source) -> Iterator[str]:
    # Parameter structs are shared with the host, pointers with the caller.
    if inside(node, "field_declaration", "template_argument_list") or not inside(node, "function_definition"):
        return
    parent = node.parent
    declarator = parent.child_by_field_name("declarator")
    if declarator is not None and declarator.type == "init_declarator":
        declarator = declarator.child_by_field_name("declarator")
    if declarator is not None and declarator.type in ("pointer_declarator", "abstract_pointer_declarator"):
        return
    new = _NARROWER.get(" ".join(source.text(node).split()))
    if new is not None:
        yield new


@operator("A value keeps the type that it has.", "cast_expression", "call_expression")
def _cast_dropped(node: Any, source: Source) -> Iterator[str]:
    if node.type == "cast_expression":
        if "*" not in field(node, "type", source):
            yield f"({field(node, 'value', source)})"
    elif node.child_by_field_name("function").type == "template_function":
        function, arguments = call_parts(node, source)
        if function.startswith("static_cast<") and "*" not in function:
            yield f"({arguments[0]})"


@operator("Elements are taken for ones of another type.", "type_descriptor", "identifier")
def _wrong_dtype(node: Any, source: Source) -> Iterator[str]:
    text = source.text(node)
    other = _OTHER_ELEMENT.get(text) if node.type == "type_descriptor" else _OTHER_CODE.get(text)
    if other is not None:
        yield other


@operator("A value is converted where its bits are to stay, or by another format's rules.", "call_expression")
def _wrong_conversion(node: Any, source: Source) -> Iterator[str]:
    function, arguments = call_parts(node, source)
    other = _OTHER_CONVERSION.get(function)
    if other is not None:
        yield f"{other}({', '.join(arguments)})"
