"""The mutation operators: each turns a syntax node into texts that may stand in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .source import Source, same

Rewrite = Callable[[Any, Source], Iterator[str]]


@dataclass(frozen=True)
class Operator:
    """A kind of fault.

    Attributes
    ----------
    nodes : tuple of str
        Types of the syntax nodes that it applies to.
    meaning : str
        What it does, in a line.
    replacements : callable
        Yields the texts that replace a node; none where it doesn't apply.
    """

    nodes: tuple[str, ...]
    meaning: str
    replacements: Rewrite


OPERATORS: dict[str, Operator] = {}
"""Every operator by name. Where two give the same text, the one named first has it."""


def operator(meaning: str, *nodes: str) -> Callable[[Rewrite], Rewrite]:
    """Return a decorator that adds a function to `OPERATORS`, under its own name."""

    def add(function: Rewrite) -> Rewrite:
        OPERATORS[function.__name__.removeprefix("_")] = Operator(nodes, meaning, function)
        return function

    return add


def symbol(node: Any, source: Source) -> str:
    """Return a node's operator symbol, such as ``<``; empty if it has none."""
    child = node.child_by_field_name("operator")
    return source.text(child) if child is not None else ""


def field(node: Any, name: str, source: Source) -> str:
    """Return the text of a node's field; empty if it has none."""
    child = node.child_by_field_name(name)
    return source.text(child) if child is not None else ""


def binary(node: Any, source: Source, new: str) -> str:
    """Return a binary expression with another operator symbol."""
    return f"{field(node, 'left', source)} {new} {field(node, 'right', source)}"


def call_parts(node: Any, source: Source) -> tuple[str, list[str]]:
    """Return a call's function and arguments, as text."""
    arguments = node.child_by_field_name("arguments")
    texts = [source.text(c) for c in arguments.children if c.is_named and c.type != "comment"]
    return field(node, "function", source), texts


def call(function: str, arguments: list[str]) -> str:
    """Return the text of a call."""
    return f"{function}({', '.join(arguments)})"


def statement_call(node: Any, source: Source) -> tuple[str, list[str]]:
    """Return the function and arguments of a statement that is one call; empty if it is none."""
    inner = [c for c in node.children if c.is_named and c.type != "comment"]
    if node.type == "expression_statement" and len(inner) == 1 and inner[0].type == "call_expression":
        return call_parts(inner[0], source)
    return "", []


def bare(node: Any) -> Any:
    """Return what stands inside parentheses, however many there are."""
    while node is not None and node.type == "parenthesized_expression":
        node = next((c for c in node.children if c.is_named), None)
    return node


def starts_loop(node: Any) -> bool:
    """Return whether a node is the variable that a for loop starts with."""
    declaration = node.parent
    loop = declaration.parent if declaration is not None else None
    return (
        loop is not None and loop.type == "for_statement" and same(loop.child_by_field_name("initializer"), declaration)
    )


# Imported for their effect: they fill OPERATORS, in this order.
from . import operators_cuda, operators_flow, operators_types, operators_values  # noqa: E402, F401
