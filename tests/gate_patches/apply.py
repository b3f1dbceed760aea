"""Changes the kernels of a checkout as a pull request might: ``python apply.py NAME ROOT``.

A change is a TOML file beside this one, of regular expressions instead of lines: it applies to kernels that are worked
on. One that no longer applies is an error.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Return the changes there are."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def apply(name: str, root: Path) -> list[Path]:
    """Change the files below `root`; return those that have changed."""
    changed: list[Path] = []
    for part in tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))["replace"]:
        total = 0
        for path in sorted(root.glob(part["files"])):
            new, count = re.subn(part["old"], part["new"], path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            if count:
                path.write_text(new, encoding="utf-8")
                changed.append(path)
            total += count
        if total < part["least"]:
            raise SystemExit(
                f"{name}: {part['old']!r} is in {part['files']} {total} times; allowed: {part['least']} or more"
            )
    return list(dict.fromkeys(changed))


if __name__ == "__main__":
    for file in apply(sys.argv[1], Path(sys.argv[2])):
        print(file)
