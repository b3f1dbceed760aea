"""`torch.library.opcheck` of an own op, in a process of its own: ``python -m moeproof.verify.gate.opcheck OP SEED``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

CASES = 6
ELEMENTS = 1 << 11
SECONDS = 240.0


def run(op: str, seed: int) -> str:
    """Check an op on a few generated cases; return what is wrong, empty if nothing is."""
    command = [sys.executable, "-m", "moeproof.verify.gate.opcheck", op, str(seed)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"no result within {SECONDS:.0f} s"
    return "" if done.returncode == 0 else (done.stdout.strip() or done.stderr.strip()[-1500:] or "it died")


def check(registered: Any, args: dict[str, Any]) -> None:
    """Run opcheck with arguments by name, placed as the op's schema has them; it raises if something is wrong."""
    import torch

    schema = registered._schema.arguments
    given = {a.name: args.get(a.name, a.default_value) for a in schema if a.name in args or a.has_default_value()}
    positional = tuple(given[a.name] for a in schema if not a.kwarg_only)
    torch.library.opcheck(registered, positional, {a.name: given[a.name] for a in schema if a.kwarg_only})


def main(arguments: Sequence[str]) -> int:
    """Check an op; print what is wrong."""
    import torch

    from moeproof.strategies.case import Case
    from moeproof.verify.contract import arguments as named
    from moeproof.verify.explore import derived, explore, inside
    from moeproof.verify.subject import find

    op, seed = arguments
    (subject,) = find([f"own:{op}"])
    subject.load()
    registered = getattr(torch.ops.moeproof, op).default
    cases: list[Case] = []
    explore(
        inside(op, subject.domain, max_elements=ELEMENTS),
        cases.append,
        start=derived(int(seed), "opcheck"),
        count=CASES,
    )
    for case in cases:
        try:
            check(registered, named(case, case.build("cuda")[0]))
        except Exception as error:  # opcheck's own type, or whatever the op raises
            print(f"{type(error).__name__}: {str(error).strip()[:1200]}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
