"""Has this process import a checkout's sources from another tree of the same layout.

Imported before anything else of moeproof: the harness is the same in every process, the kernels are the tree's.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Sequence
from pathlib import Path

KERNELS = "moeproof.kernels"


class TreeError(RuntimeError):
    """Modules can't be taken from the tree; says why."""


class TreeFinder(importlib.abc.MetaPathFinder):
    """Finds modules as the other finders do, and takes those of one tree from another.

    Parameters
    ----------
    root : Path
        The tree that Python would import from, whether by ``sys.path`` or by an editable install.
    tree : Path
        The tree to import from.
    """

    def __init__(self, root: Path, tree: Path) -> None:
        self._root = root
        self._tree = tree

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the spec of a module of the root, moved to the tree; None for all others."""
        if fullname.split(".")[0] == "moeproof":
            return None
        others = (f for f in sys.meta_path if f is not self and hasattr(f, "find_spec"))
        spec = next(filter(None, (f.find_spec(fullname, path, target) for f in others)), None)
        if spec is None:
            return None
        folders = spec.submodule_search_locations
        moved = None if folders is None else [place(f, self._root, self._tree) for f in folders]
        if not spec.has_location:  # built in, or a namespace package
            if moved is None or moved == list(folders or ()):
                return None
            spec.submodule_search_locations = moved
            return spec
        origin = str(spec.origin)
        if not in_tree(origin, self._root, self._tree):
            return None
        file = place(origin, self._root, self._tree)
        if not os.path.exists(file):
            raise ModuleNotFoundError(f"{fullname} ({origin}) is not in the base", name=fullname)
        return importlib.util.spec_from_file_location(fullname, file, submodule_search_locations=moved)


def in_tree(path: str, root: Path, tree: Path) -> bool:
    """Say whether a path is the checkout's own: below `root`, and of no environment nor of the other tree."""
    real = Path(os.path.realpath(path))
    elsewhere = (tree, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve())
    installed = "site-packages" in real.parts or "dist-packages" in real.parts
    return real.is_relative_to(root) and not installed and not any(real.is_relative_to(e) for e in elsewhere)


def place(path: str, root: Path, tree: Path) -> str:
    """Return the place in `tree` of a path of the checkout; a path of elsewhere as it is."""
    if not in_tree(path, root, tree):
        return path
    return str(tree / Path(os.path.realpath(path)).relative_to(root))


def graft(root: Path, tree: Path) -> None:
    """Import modules of `root` from `tree` from now on, and moeproof's own kernels from the tree if it has any.

    Parameters
    ----------
    root : Path
        Top folder of the checkout.
    tree : Path
        The same, or a folder with another revision's files.

    Raises
    ------
    TreeError
        If kernels have been imported already.
    """
    if KERNELS in sys.modules:
        raise TreeError(f"{KERNELS} has been imported; allowed: nothing of it before its tree is chosen")
    if tree != root:
        sys.meta_path.insert(0, TreeFinder(root, tree))
        # A script of the tree finds its neighbours there first; the harness stays what it is.
        sys.path[:] = [p if not p or (Path(p) / "moeproof").exists() else place(p, root, tree) for p in sys.path]
    kernels = tree / "kernels"
    if (kernels / "launcher.py").is_file():
        # A namespace package: nothing more has to be said than where its modules are.
        package = types.ModuleType(KERNELS)
        package.__path__ = [str(kernels)]
        package.__package__ = KERNELS
        package.__spec__ = importlib.machinery.ModuleSpec(KERNELS, None, is_package=True)
        sys.modules[KERNELS] = package
        import moeproof

        vars(moeproof)["kernels"] = package


def strays(root: Path, tree: Path) -> list[str]:
    """Return the checkout's files that modules came from though they were to come from another tree."""
    if tree == root:
        return []
    found = []
    main = sys.modules.get("__main__")  # under the name __mp_main__ too, once multiprocessing is imported
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and module is not main and name.split(".")[0] != "moeproof" and in_tree(file, root, tree):
            found.append(str(Path(os.path.realpath(file)).relative_to(root)))
    return found
