"""Checks GitHub Actions workflow files without a network: by GitHub's schema, and by rules that a schema can't hold.

    python ci/check_workflows.py [FILE or FOLDER]...    (default: ci/github)

The schema is the one that check-jsonschema ships. The rules: each expression names what exists, shell scripts parse,
no text that strangers can write gets into a script, files that are run exist, every job has a time limit, and
permissions are stated and never blanket. Exit status: 0 sound, 1 problems, 2 usage.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
STRING = re.compile(r"'(?:[^']|'')*'")
REFERENCE = re.compile(r"(?<![\w.\])-])([A-Za-z_][\w-]*)((?:\.[A-Za-z_*][\w-]*)*)(\s*\()?")
CONTEXTS = ("env", "github", "inputs", "job", "matrix", "needs", "runner", "secrets", "steps", "strategy", "vars")
FUNCTIONS = (
    "always", "cancelled", "contains", "endsWith", "failure", "format", "fromJSON", "hashFiles", "join", "startsWith",
    "success", "toJSON",
)  # fmt: skip
WORDS = ("true", "false", "null")
FOREIGN = re.compile(r"\b(?:github\.(?:event|head_ref)|inputs|secrets|matrix|env)\b")
"""What may hold text from elsewhere; in a script it has to come in through the environment."""
PINNED = re.compile(r"(?:\./|docker://)|[\w.-]+/[\w./-]+@(?:v\d+(?:\.\d+)*|[0-9a-f]{40})$")

Say = Callable[[str], None]


def main(arguments: list[str]) -> int:
    """Check the files and print every problem."""
    files = [file for argument in arguments or [str(ROOT / "ci" / "github")] for file in _files(Path(argument))]
    if not files:
        print(f"files are {arguments}; allowed: workflow files, or folders of them", file=sys.stderr)
        return 2
    problems = [problem for file in files for problem in check(file)]
    for problem in problems:
        print(problem)
    print(f"{len(files)} workflows, {len(problems)} problems")
    return 1 if problems else 0


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.glob("*.y*ml")) if path.is_dir() else [path] if path.is_file() else []


def check(file: Path) -> list[str]:
    """Return what is wrong with a workflow file, one line each."""
    problems = [f"{file}: {line}" for line in schema_problems(file)]
    if problems:  # the rules below take a workflow of the right shape for granted
        return problems
    workflow = load(file)
    found: list[str] = []
    check_permissions("the workflow", workflow.get("permissions"), found.append)
    for name, job in workflow["jobs"].items():
        said: list[str] = []
        check_job(job, workflow, said.append)
        found += [f"job {name}: {text}" for text in said]
    return [f"{file}: {text}" for text in found]


def load(file: Path) -> dict[str, Any]:
    """Parse a workflow; ``on`` stays a word, as in YAML 1.2."""
    from ruamel.yaml import YAML

    data: dict[str, Any] = YAML(typ="safe", pure=True).load(file.read_text(encoding="utf-8"))
    return data


def schema_problems(file: Path) -> list[str]:
    """Return what GitHub's schema says against a file."""
    options = ["--builtin-schema", "vendor.github-workflows", "-o", "json", "-v"]
    command = [sys.executable, "-m", "check_jsonschema", *options, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        result = json.loads(done.stdout)
    except ValueError:
        return [f"the schema check failed: {done.stderr.strip() or done.stdout.strip()}"]
    lines = [f"{error.get('path', '')}: {error['message']}" for error in result.get("parse_errors", [])]
    for error in result.get("errors", []):
        # Of alternatives, what each misses; the whole says no more than that none fits.
        lines += [f"{part['path']}: {part['message'][:300]}" for part in error.get("sub_errors") or [error]]
    return list(dict.fromkeys(lines)) or ([] if done.returncode == 0 else ["the schema check failed"])


def check_permissions(where: str, permissions: object, say: Say) -> None:
    """Say that permissions are blanket, or not stated, which may mean all."""
    if not isinstance(permissions, dict):
        say(f"permissions of {where} are {permissions!r}; allowed: a table that names each")


def check_job(job: Mapping[str, Any], workflow: Mapping[str, Any], say: Say) -> None:
    """Check one job."""
    if "timeout-minutes" not in job:
        say("timeout-minutes is missing; allowed: a limit, as GitHub's own is six hours")
    if "permissions" in job:
        check_permissions("the job", job["permissions"], say)
    steps = job.get("steps", [])
    names = {
        "matrix": matrix_keys(job),
        "needs": set(_list(job.get("needs"))),
        "steps": {step["id"] for step in steps if "id" in step},
        "env": {key for part in (workflow, job, *steps) for key in part.get("env", {})},
        "inputs": set(((workflow.get("on") or {}).get("workflow_dispatch") or {}).get("inputs", {}))
        if isinstance(workflow.get("on"), dict)
        else set(),
    }
    for needed in names["needs"] - set(workflow["jobs"]):
        say(f"needs {needed!r}; allowed: {', '.join(workflow['jobs'])}")
    for text in (*texts(job), *texts(workflow.get("env", {})), *texts(workflow.get("concurrency", ""))):
        for expression in EXPRESSION.findall(text):
            check_expression(expression, names, say)
    for step in steps:
        check_step(step, say)


def matrix_keys(job: Mapping[str, Any]) -> set[str]:
    """Return what a job's expressions may say after ``matrix.``."""
    matrix = job.get("strategy", {}).get("matrix", {})
    if not isinstance(matrix, dict):  # made by an expression
        return {"*"}
    keys = {key for key in matrix if key not in ("include", "exclude")}
    return keys | {key for entry in _list(matrix.get("include")) for key in entry}


def check_expression(expression: str, names: Mapping[str, set[str]], say: Say) -> None:
    """Check that an expression names contexts, functions and keys that exist."""
    for context, path, call in REFERENCE.findall(STRING.sub("''", expression)):
        if call:
            if context not in FUNCTIONS:
                say(f"expression {expression.strip()!r} calls {context}; allowed: {', '.join(FUNCTIONS)}")
        elif context in WORDS:
            continue
        elif context not in CONTEXTS:
            say(f"expression {expression.strip()!r} names {context!r}; allowed: {', '.join(CONTEXTS)}")
        elif context in names and "*" not in names[context] and path:
            key = path.split(".")[1]
            if key not in names[context]:
                have = ", ".join(sorted(names[context])) or "none"
                say(f"expression {expression.strip()!r} names {context}.{key}; allowed: {have}")


def check_step(step: Mapping[str, Any], say: Say) -> None:
    """Check one step: a pinned action, or a script that parses and runs files that are there."""
    if "uses" in step and not PINNED.match(step["uses"]):
        say(f"uses {step['uses']!r}; allowed: an action with a version, as in actions/checkout@v4")
    if "run" not in step:
        return
    script = step["run"]
    label = f"step {step.get('name', script.splitlines()[0])!r}"
    for expression in EXPRESSION.findall(script):
        if FOREIGN.search(expression):
            say(f"{label} has {expression.strip()!r} in its script; allowed: through env, or it is run as code")
    if step.get("shell", "bash").split()[0] not in ("bash", "sh"):
        return
    parsed = subprocess.run(
        ["bash", "-n"], input=EXPRESSION.sub("x", script), capture_output=True, text=True, check=False
    )
    if parsed.returncode:
        say(f"{label} is no shell script: {parsed.stderr.strip().splitlines()[0]}")
    for path in re.findall(r"(?<![\w./-])(ci/[\w./-]+)", script):
        file = ROOT / path
        if not file.is_file():
            say(f"{label} runs {path!r}; allowed: what exists")
        elif path.endswith(".sh") and not os.access(file, os.X_OK):
            say(f"{label} runs {path!r}, which is not executable")


def texts(value: object) -> Iterator[str]:
    """Yield every text below a value; a bare ``if`` is an expression too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, below in value.items():
            if key == "if" and isinstance(below, str) and "${{" not in below:
                yield f"${{{{ {below} }}}}"
            else:
                yield from texts(below)
    elif isinstance(value, list):
        for below in value:
            yield from texts(below)


def _list(value: object) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
