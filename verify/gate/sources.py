"""Which files of a checkout an implementation is made of, as far as its sources tell."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from moeproof.verify.subject import Subject

MODULES = {
    "fused_gate": "fused_gate",
    "moe_align_block_size": "align_block_size",
    "append_shared_experts": "append_shared_experts",
}
"""Modules of moeproof's own kernels, by op."""
REFERENCES = {"numpy": "gold", "torch": "torch_ref", "numba": "numba_ref"}
"""Packages of the references, by family."""
_OF_OP = {"fused_gate": "gate", "moe_align_block_size": "align", "append_shared_experts": "append"}
CODE = (".cu", ".cuh", ".cpp", ".cc", ".c", ".h", ".hpp", ".inl", ".ptx")
"""Ends of the names of files that a Python file may load, and that include others."""
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)
_FOLLOWED = ("moeproof.kernels", "moeproof.references")
"""What is followed of moeproof itself: its harness judges kernels and is no part of them."""


class Sources:
    """The files of a checkout, and what names what.

    Parameters
    ----------
    root : Path
        Top folder of the checkout.
    changed : collection of str
        Files that have changed: one that was deleted is still named by others.
    """

    def __init__(self, root: Path, changed: Collection[str] = ()) -> None:
        self.root = root
        self.own = (root / "kernels" / "launcher.py").is_file() and (root / "src" / "moeproof").is_dir()
        self._changed = frozenset(changed)
        self._direct: dict[str, tuple[str, ...]] = {}

    def of(self, subject: Subject) -> dict[str, str]:
        """Return the files that a subject is made of, each with the one that names it; empty if none is here.

        Parameters
        ----------
        subject : Subject
            An own kernel, a reference, or one from a file of this checkout.
        """
        family = subject.name.partition(":")[0]
        if "own" in subject.tags:
            others = {f"kernels/{name}.py" for op, name in MODULES.items() if op != subject.op}
            # Not another op by way of the module that registers all of them.
            return self.reach([f"kernels/{MODULES[subject.op]}.py"], stop=others) if self.own else {}
        if "reference" in subject.tags:
            return self.reach([f"references/{REFERENCES[family]}/{_OF_OP[subject.op]}.py"]) if self.own else {}
        file = source_file(subject)
        name = None if file is None else self.name_of(file)
        return {} if name is None else self.reach([name])

    def reach(self, starts: Iterable[str], stop: Collection[str] = ()) -> dict[str, str]:
        """Return all files that some files name, directly or not, themselves included.

        Parameters
        ----------
        starts : iterable of str
            Files relative to the root.
        stop : collection of str
            Files that are left out, and not followed.

        Returns
        -------
        dict of str to str
            The file that names it, by file; empty for those that were asked for.
        """
        found = {name: "" for name in starts if self._there(name)}
        waiting = list(found)
        while waiting:
            at = waiting.pop(0)
            for name in self._names(at):
                if name not in found and name not in stop:
                    found[name] = at
                    waiting.append(name)
        return found

    def name_of(self, path: Path) -> str | None:
        """Return a file's name relative to the root, links followed; None if it is elsewhere."""
        try:
            return Path(os.path.realpath(path)).relative_to(self.root).as_posix()
        except ValueError:
            return None

    def _there(self, name: str) -> bool:
        return name in self._changed or (self.root / name).is_file()

    def _names(self, name: str) -> tuple[str, ...]:
        if name not in self._direct:
            try:
                text = (self.root / name).read_text(encoding="utf-8", errors="replace")
            except OSError:  # deleted
                text = ""
            named = self._of_python(name, text) if name.endswith(".py") else self._of_code(name, text)
            self._direct[name] = tuple(dict.fromkeys(named))
        return self._direct[name]

    def _of_code(self, name: str, text: str) -> Iterator[str]:
        for included in _INCLUDE.findall(text) if name.endswith(CODE) else ():
            yield from self._first([(self.root / name).parent / included, self.root / included])

    def _of_python(self, name: str, text: str) -> Iterator[str]:
        try:
            tree = ast.parse(text)
        except (SyntaxError, ValueError):
            return
        folder = (self.root / name).parent
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                yield from self._imported(folder, node.level, node.module or "", [a.name for a in node.names])
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    yield from self._imported(folder, 0, alias.name, [])
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(CODE):
                yield from self._first([folder / node.value, self.root / node.value])

    def _imported(self, folder: Path, level: int, module: str, names: list[str]) -> Iterator[str]:
        """Yield the files of an import: its modules, and the packages that they are in."""
        if module.split(".")[0] == "moeproof" and not f"{module}.".startswith(tuple(f"{m}." for m in _FOLLOWED)):
            return
        if level:
            above = folder
            for _ in range(level - 1):
                above = above.parent
            bases = [above]
        else:
            # Where a script, a test runner or an install would look.
            bases = [p for p in (folder, *folder.parents) if p.is_relative_to(self.root)]
            bases.append(self.root / "src")
        parts = module.split(".") if module else []
        for base in bases:
            place = base.joinpath(*parts)
            found = [*self._module(place)] if parts else []
            found += [file for name in names for file in self._module(place / name)]
            if found:
                packages = (base.joinpath(*parts[:n]) / "__init__.py" for n in range(1, len(parts)))
                yield from (file for package in packages for file in self._first([package]))
                yield from found
                return

    def _module(self, place: Path) -> Iterator[str]:
        yield from self._first([place.with_name(f"{place.name}.py"), place / "__init__.py"])

    def _first(self, places: Iterable[Path]) -> Iterator[str]:
        """Yield the first of some places that is a file of this checkout."""
        for place in places:
            try:
                name = self.name_of(place)
            except (OSError, ValueError):  # no path at all
                continue
            if name is not None and self._there(name):
                yield name
                return


def source_file(subject: Subject) -> Path | None:
    """Return the file that a subject comes from; None for a built-in one."""
    file, _, _ = subject.source.partition(".py:")
    return Path(f"{file}.py") if file else None


def matches(pattern: str, name: str) -> bool:
    """Say whether a path fits a pattern, of which ``**`` fits any folders, ``*`` and ``?`` no slash."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern)
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.fullmatch("".join(words.get(part, re.escape(part)) for part in parts), name) is not None
