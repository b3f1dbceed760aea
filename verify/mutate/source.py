"""CUDA C++ sources as syntax trees: which nodes are live code, and in which function they lie."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

SUFFIXES = (".cu", ".cuh")
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)".*$', re.MULTILINE)
# What is no code that runs: text, assembly of the GPU, hints to the compiler, compile-time assertions.
_DEAD = (
    "comment",
    "string_literal",
    "gnu_asm_expression",
    "static_assert_declaration",
    "launch_bounds",
    "preproc_call",
    "preproc_include",
    "preproc_def",
    "preproc_function_def",
    "preproc_directive",
    "template_parameter_list",
    "enumerator_list",
)
_MACRO = re.compile(rb"^[ \t]*#[ \t]*define[ \t]+(\w+)\(", re.MULTILINE)
# What the grammar doesn't know, or not everywhere, and what changes nothing that is mutated.
_HINT = re.compile(
    rb"\b(?:__align__|__cluster_dims__|__maxnreg__)\s*\([^()\n]*\)|\b__grid_constant__\b|^[ \t]*#[ \t]*pragma\b.*$",
    re.MULTILINE,
)
_CONDITIONAL = ("preproc_ifdef", "preproc_if", "preproc_elif", "preproc_elifdef", "preproc_else")


class SourceError(ValueError):
    """Sources that can't be parsed or found, or a missing parser; says which and why."""


def _parser() -> Any:
    try:
        import tree_sitter
        import tree_sitter_cuda
    except ImportError as error:
        raise SourceError(f"{error}; install moeproof[mutate]") from error
    return tree_sitter.Parser(tree_sitter.Language(tree_sitter_cuda.language()))


@dataclass(frozen=True)
class Source:
    """One source file.

    Attributes
    ----------
    name : str
        File name.
    data : bytes
        Its text in UTF-8: nodes count in bytes.
    """

    name: str
    data: bytes

    @cached_property
    def root(self) -> Any:
        """The syntax tree's root.

        Raises
        ------
        SourceError
            If the parser is not installed, or can't make sense of the file.
        """
        parser, masked = _parser(), bytearray(self.data)
        for match in _HINT.finditer(self.data):
            masked[match.start() : match.end()] = b" " * len(match[0])
        root = parser.parse(bytes(masked)).root_node
        # `a < b >> c` is taken for a template's arguments; `<<` binds alike, and nodes keep their places.
        while shifts := _misread_shifts(root):
            for at in shifts:
                masked[at : at + 2] = b"<<"
            root = parser.parse(bytes(masked)).root_node
        if root.has_error and _blank_macros(masked):
            root = parser.parse(bytes(masked)).root_node
        if root.has_error:
            wrong = next(n for n in _every(root) if n.type == "ERROR" or n.is_missing)
            line = wrong.start_point[0] + 1
            raise SourceError(f"{self.name}:{line} can't be parsed as CUDA C++: {self.text(wrong)[:60]!r}")
        return root

    def text(self, node: Any) -> str:
        """Return a node's source text."""
        return self.data[node.start_byte : node.end_byte].decode()

    def nodes(self) -> Iterator[Any]:
        """Yield the named nodes of live code, outer before inner, in the order of the text."""
        yield from self._live(self.root)

    def _live(self, node: Any) -> Iterator[Any]:
        if node.type in _DEAD:
            return
        if node.is_named:
            yield node
        for child in self.seen(node):
            yield from self._live(child)

    def seen(self, node: Any) -> list[Any]:
        """Return the children of a node that a host compiler sees: all, but for preprocessor conditionals.

        Only tests of one name are understood, and no name counts as defined: `__CUDA_ARCH__` is what kernels test.
        Where a test is not understood no branch is seen, since a mutant there might never be compiled.
        """
        if node.type not in _CONDITIONAL or node.type == "preproc_else":
            return list(node.children)
        kind = self.text(node.children[0]).replace(" ", "")
        rest = node.child_by_field_name("alternative")
        if kind == "#ifdef" and rest is not None:
            return [rest]
        if kind != "#ifndef":
            return []
        return [c for c in node.children if not same(c, rest) and not same(c, node.child_by_field_name("name"))]


def same(one: Any, two: Any) -> bool:
    """Return whether two nodes are the same place of the text: in this parser they have no identity of their own."""
    return one is not None and two is not None and (one.start_byte, one.end_byte) == (two.start_byte, two.end_byte)


def _every(node: Any) -> Iterator[Any]:
    yield node
    for child in node.children:
        yield from _every(child)


def _blank_macros(text: bytearray) -> bool:
    """Replace calls of macros that the file defines by blanks, such as attributes of a kernel; return if there are any.

    What a macro stands for is not known here, so nothing in it is mutated.
    """
    names = b"|".join(set(_MACRO.findall(bytes(text))))
    found = False
    if not names:
        return False
    for match in reversed(list(re.finditer(rb"^(?![ \t]*#).*?\b(?P<call>(?:" + names + rb")\()", text, re.MULTILINE))):
        start, end, depth = match.start("call"), match.end("call"), 1
        while depth and end < len(text):
            depth += {ord("("): 1, ord(")"): -1}.get(text[end], 0)
            end += 1
        text[start:end] = re.sub(rb"[^\n]", b" ", text[start:end])
        found = True
    return found


def _misread_shifts(root: Any) -> list[int]:
    """Return where a ``>>`` stands that the parser took for the end of a template's arguments and a ``>``."""
    found = []
    for node in _every(root):
        left = node.child_by_field_name("left") if node.type == "binary_expression" else None
        if left is not None and left.type == "template_function":
            sign = node.child_by_field_name("operator")
            if sign.type in (">", ">=") and sign.start_byte == left.end_byte:
                found.append(left.end_byte - 1)
    return found


def function_of(source: Source, node: Any) -> str:
    """Return the name of the function around a node, with its struct's; empty at file scope."""
    names = []
    while node is not None:
        if node.type == "function_definition":
            declarator = node.child_by_field_name("declarator")
            while declarator is not None and declarator.type != "function_declarator":
                declarator = declarator.child_by_field_name("declarator")
            inner = declarator.child_by_field_name("declarator") if declarator is not None else None
            names.append(source.text(inner) if inner is not None else "?")
        elif node.type in ("struct_specifier", "class_specifier") and names:
            name = node.child_by_field_name("name")
            names.append(source.text(name) if name is not None else "?")
        node = node.parent
    return "::".join(reversed(names))


def inside(node: Any, *kinds: str) -> bool:
    """Return whether a node lies inside one of these types."""
    node = node.parent
    while node is not None:
        if node.type in kinds:
            return True
        node = node.parent
    return False


def read(path: Path) -> Source:
    """Read a source file."""
    try:
        return Source(path.name, path.read_bytes())
    except OSError as error:
        raise SourceError(f"{path} can't be read: {error.strerror}") from error


def files_below(paths: list[Path]) -> list[Path]:
    """Return the CUDA sources that paths name: files, and those in folders.

    Raises
    ------
    SourceError
        If a path is neither, holds none, or if they lie in several folders.
    """
    found: dict[Path, None] = {}
    for path in paths:
        inner = sorted(p for p in path.glob("*.cu*") if p.suffix in SUFFIXES) if path.is_dir() else [path]
        if not inner or not all(p.is_file() and p.suffix in SUFFIXES for p in inner):
            raise SourceError(f"path is {str(path)!r}; allowed: a .cu or .cuh file, or a folder that holds some")
        found.update((p.resolve(), None) for p in inner)
    folders = {p.parent for p in found}
    if len(folders) > 1:
        raise SourceError(f"paths lie in {', '.join(sorted(map(str, folders)))}; allowed: one folder")
    return list(found)


def users_of(folder: Path) -> dict[str, set[str]]:
    """Return, for each source of a folder, the .cu files that contain it: itself, or through includes."""
    texts = {p.name: p.read_text(encoding="utf-8") for p in folder.glob("*.cu*") if p.suffix in SUFFIXES}
    users: dict[str, set[str]] = {name: set() for name in texts}
    for start in (n for n in texts if n.endswith(".cu")):
        reached, todo = set(), [start]
        while todo:
            name = todo.pop()
            if name in reached or name not in texts:
                continue
            reached.add(name)
            todo += INCLUDE.findall(texts[name])
        for name in reached:
            users[name].add(start)
    return users
