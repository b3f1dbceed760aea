"""Sources that hold many mutants at once, each behind a switch, and leave a mark in every branch that they take.

One build serves thousands of mutants, and a run of it without any tells which cases reach which of them. What a switch
can't hold, because it changes a type or a constant, is compiled on its own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .flags import MARKS, PROLOGUE
from .mutant import Mutant
from .operators import symbol
from .source import SUFFIXES, Source, inside, read

_BODIES = ("if_statement", "for_statement", "while_statement", "do_statement", "else_clause")
_FIXED = (
    "array_declarator",
    "template_argument_list",
    "launch_bounds",
    "optional_parameter_declaration",
    "static_assert_declaration",
    "gnu_asm_expression",
    "preproc_call",
    "preproc_def",
    "preproc_function_def",
    "preproc_include",
)
_VALUES = (
    "binary_expression",
    "conditional_expression",
    "call_expression",
    "assignment_expression",
    "update_expression",
    "unary_expression",
    "number_literal",
    "identifier",
)
_STATEMENTS = (
    "expression_statement",
    "for_statement",
    "while_statement",
    "break_statement",
    "continue_statement",
    "return_statement",
)
_TRUTHS = ("&&", "||", "!", "<", ">", "<=", ">=", "==", "!=")
_RETYPING = ("cast_dropped", "narrowed", "array_size")
"""Operators whose effect is a type: both sides of a switch would get the same one."""


@dataclass(frozen=True)
class Region:
    """A stretch of code that is entered as a whole.

    Attributes
    ----------
    file : str
        Its file.
    start, end : int
        Its bytes.
    mark : int
        Number of its mark.
    """

    file: str
    start: int
    end: int
    mark: int


@dataclass
class Instrumented:
    """What was written.

    Attributes
    ----------
    regions : list of Region
        The branches.
    numbers : dict of str to int
        The switch of each mutant that has one, by its id.
    lines : dict of (str, int) to list of str
        Ids of the mutants whose switches stand in a line of a file.
    """

    regions: list[Region] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)
    lines: dict[tuple[str, int], list[str]] = field(default_factory=dict)


class _Renderer:
    """Renders one file."""

    def __init__(self, source: Source, mutants: Iterable[Mutant], made: Instrumented) -> None:
        self.source = source
        self.made = made
        self.waiting: dict[tuple[int, int], list[Mutant]] = defaultdict(list)
        for mutant in mutants:
            if mutant.operator not in _RETYPING:
                self.waiting[mutant.start, mutant.end].append(mutant)

    def render(self, node: Any) -> str:
        """Return a node's text with marks and switches in it."""
        source, place = self.source, (node.start_byte, node.end_byte)
        if _constant(source, node):
            return source.text(node)
        seen = {(c.start_byte, c.end_byte) for c in source.seen(node)}
        kind = _kind(source, node)
        mark = self._mark(node) if kind else 0
        mutants = self.waiting.pop(place, []) if _switched(source, node) else []
        at, parts = node.start_byte, []
        for child in node.children:
            shown = (child.start_byte, child.end_byte) in seen
            parts += [source.data[at : child.start_byte].decode(), (self.render if shown else source.text)(child)]
            at = child.end_byte
            if kind == "block" and child.type == "{":
                parts.append(f" moeproof_reach({mark});")
        text = "".join(parts) + source.data[at : node.end_byte].decode()
        text = self._switch(node, text, mutants)
        if kind == "statement":
            return f"{{ moeproof_reach({mark}); {text} }}"
        return f"(moeproof_reach({mark}), {text})" if kind == "value" else text

    def _mark(self, node: Any) -> int:
        mark = len(self.made.regions)
        if mark >= MARKS:
            raise ValueError(f"sources hold more than {MARKS} branches")
        self.made.regions.append(Region(self.source.name, node.start_byte, node.end_byte, mark))
        return mark

    def _switch(self, node: Any, text: str, mutants: list[Mutant]) -> str:
        """Return a node's text, with mutants of the node itself to choose from."""
        if not mutants:
            return text
        tests = []
        for mutant in mutants:
            number = self.made.numbers[mutant.id] = len(self.made.numbers) + 1
            tests.append((f"moeproof_is({number})", mutant.text))
        if node.type in _STATEMENTS:
            return "{ " + "".join(f"if ({test}) {{ {new} }} else " for test, new in tests) + f"{{ {text} }} }}"
        if node.type == "init_declarator":
            # `j = 0` becomes `j = (… ? (1) : (0))`.
            name, _, value = text.partition(" = ")
            return f"{name} = {_choice([(t, new.partition(' = ')[2]) for t, new in tests], value)}"
        if node.type == "subscript_argument_list":
            return f"[{_choice([(t, new[1:-1]) for t, new in tests], text[1:-1])}]"
        if node.type == "condition_clause" or symbol(node, self.source) in _TRUTHS:
            # A pointer is as good a condition as a bool, but is no other side for one.
            return _choice([(t, f"static_cast<bool>({new})") for t, new in tests], f"static_cast<bool>({text})")
        return _choice(tests, text)


def _choice(tests: list[tuple[str, str]], otherwise: str) -> str:
    return "(" + "".join(f"{test} ? ({new}) : " for test, new in tests) + f"({otherwise}))"


def _constant(source: Source, node: Any) -> bool:
    """Return whether a node has to stay as it is: constants, and what a host compiler never sees."""
    if node.type in _FIXED:
        return True
    if node.type == "condition_clause":
        return any(c.type == "constexpr" for c in node.parent.children)
    qualifiers = [source.text(c) for c in node.children if c.type == "type_qualifier"]
    return node.type in ("declaration", "function_definition", "field_declaration") and "constexpr" in qualifiers


def _switched(source: Source, node: Any) -> bool:
    """Return whether a node's mutants can stand behind a switch."""
    if not inside(node, "function_definition"):
        return False
    if node.type == "init_declarator":
        return source.text(node).partition(" = ")[0] == source.text(node.child_by_field_name("declarator"))
    return node.type in (*_VALUES, *_STATEMENTS, "condition_clause", "subscript_argument_list")


def _kind(source: Source, node: Any) -> str:
    """Return how a node is marked: as a ``block``, a ``statement``, a ``value``, or not at all."""
    parent = node.parent
    if parent is None:
        return ""
    if node.type == "compound_statement":
        return "" if parent.type == "switch_statement" else "block"
    if parent.type in _BODIES and node.type.endswith("_statement"):
        return "statement"
    if not inside(node, "function_definition") or not node.is_named or node.type == "initializer_list":
        return ""
    if parent.type == "conditional_expression":
        condition = parent.child_by_field_name("condition")
        return "" if node.start_byte == condition.start_byte else "value"
    if parent.type == "binary_expression":
        sign = parent.child_by_field_name("operator")
        return "value" if sign.type in ("&&", "||") and node.start_byte > sign.start_byte else ""
    return ""


def instrument(folder: Path, target: Path, mutants: Iterable[Mutant] = ()) -> Instrumented:
    """Write a folder's sources to another one, with marks, and with switches for some mutants.

    Raises
    ------
    ValueError
        If there are more branches than marks.
    """
    target.mkdir(parents=True, exist_ok=True)
    by_file: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in mutants:
        by_file[mutant.file].append(mutant)
    made = Instrumented()
    for path in sorted(p for p in folder.glob("*.cu*") if p.suffix in SUFFIXES):
        source = read(path)
        before = len(made.numbers)
        data, root = source.data, source.root
        text = _Renderer(source, by_file[path.name], made).render(root)
        text = data[: root.start_byte].decode() + text + data[root.end_byte :].decode()
        (target / path.name).write_text(PROLOGUE + text, encoding="utf-8")
        _find_lines(path.name, text, [i for i in made.numbers if made.numbers[i] > before], made)
    return made


def _find_lines(file: str, text: str, ids: list[str], made: Instrumented) -> None:
    names = {f"moeproof_is({made.numbers[i]})": i for i in ids}
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.split("moeproof_is(")[1:]
        found = [names[f"moeproof_is({p.partition(')')[0]})"] for p in parts if not p.startswith("int")]
        if found:
            made.lines[file, number] = found


def innermost(regions: list[Region], file: str, start: int, end: int) -> int | None:
    """Return the mark of the smallest region around some bytes of a file; None if there is none."""
    around = [r for r in regions if r.file == file and r.start <= start and end <= r.end]
    return min(around, key=lambda r: r.end - r.start).mark if around else None
