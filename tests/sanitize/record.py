"""Records what each tool prints of each planted kernel: ``python tests/sanitize/record.py FOLDER``, on a GPU.

Writes one file a tool, with a section for each kernel: a line with the tool's exit status and the seconds it took,
then the log. The parser's tests read them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify.sanitize import tools
from moeproof.verify.sanitize.driver import Sanitized
from sanitize.planted import FAULTS, SUBJECTS

CASE = Case(
    "append_shared_experts",
    {"num_experts": 8, "num_fused_shared_experts": 1},
    {
        # Three places a token and five tokens: no size is a multiple of four.
        "topk_ids": TensorSpec("int32", (5, 2), rows=((0, 1), (2, 3))),
        "topk_weights": TensorSpec("float32", (5, 2), rows=((0.25, 0.75),)),
        "shared_weights": TensorSpec("float32", (5, 1), rows=((1.0,),)),
    },
)


def record(program: Path, tool: tools.Tool, name: str) -> str:
    """Return the section of one kernel under one tool."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        command = tools.command(program, tool, log, [sys.executable, str(Path(__file__).resolve()), "call", name])
        begin = time.monotonic()
        done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
        seconds = time.monotonic() - begin
        text = log.read_text() if log.exists() else ""
    if done.stdout or done.stderr:
        print(f"{tool.name} {name}: {done.stdout}{done.stderr}", file=sys.stderr)
    return f"### {name} exit {done.returncode} seconds {seconds:.1f}\n{text}"


def _environment() -> dict[str, str]:

    return os.environ | tools.environment() | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def main() -> None:
    """Run one kernel where asked to, else record all."""
    if sys.argv[1:2] == ["call"]:
        (subject,) = (s for s in SUBJECTS if s.name.endswith(f"@{sys.argv[2]}"))
        print(Sanitized(subject).run(CASE))
        return
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    program = tools.locate()
    pairs = [(tool, name) for tool in tools.TOOLS.values() for name in FAULTS]
    with ThreadPoolExecutor(len(pairs)) as pool:
        sections = dict(zip(pairs, pool.map(lambda pair: record(program, *pair), pairs), strict=True))
    for tool in tools.TOOLS.values():
        (out / f"{tool.name}.txt").write_text("\n".join(sections[tool, name] for name in FAULTS))


if __name__ == "__main__":
    main()
