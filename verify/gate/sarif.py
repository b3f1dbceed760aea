"""A gate's failures as SARIF 2.1.0, and as annotations of GitHub Actions, each at the change that it is about."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from moeproof import __version__
from moeproof.verify.violation import CHECKS

from .verdict import FAILED, Outcome, percent

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {"critical": "error", "high": "error", "medium": "error", "low": "warning"}
OTHER_RULES = {
    "speed": "a kernel is slower than that of the base",
    "not-run": "a check failed, or a kernel can't run",
}
MAX_ANNOTATION = 4000


@dataclass(frozen=True)
class Alert:
    """One thing to say about a file.

    Attributes
    ----------
    rule : str
        A check class, or a key of `OTHER_RULES`.
    level : str
        ``"error"`` or ``"warning"``.
    title, text : str
        One line, and all of it.
    file : str
        Relative to the checkout's top; empty if it is about no file.
    line : int
        From 1.
    identity : str
        The same in every run for the same thing.
    """

    rule: str
    level: str
    title: str
    text: str
    file: str
    line: int
    identity: str


def alerts(outcome: Outcome) -> list[Alert]:
    """Return what is wrong, each at the first changed line of a source of the kernel."""
    places: dict[str, str] = {}
    for t in outcome.touched:
        for subject in filter(None, (t.subject, t.runs)):
            places.setdefault(subject.name, t.place)
    lines = {file: outcome.checkout.first_line(file) for file in set(places.values())}

    def at(subject: str) -> tuple[str, int]:
        file = places.get(subject, "")
        return file, lines.get(file, 1)

    found = []
    for f in outcome.open:
        text = f"{f['title']}\n{f['message']}"
        found.append(Alert(f["check"], LEVELS[f["severity"]], f["title"], text, *at(f["subject"]), f["identity"]))
    for s in outcome.slower:
        title = f"{s.subject} is {percent(s.ratio)} slower at {s.shape}, {s.clock} clock"
        text = f"{title}: {s.ratio.candidate:.2f} µs a call, the base {s.ratio.baseline:.2f} µs"
        found.append(Alert("speed", "error", title, text, *at(s.subject), f"{s.subject} {s.shape} {s.clock}"))
    for c in outcome.checks:
        if c.status == FAILED and not c.told:
            title = f"{c.subject}: {c.name}: {c.detail.partition(chr(10))[0]}"
            found.append(
                Alert("not-run", "error", title, f"{title}\n{c.detail}", *at(c.subject), f"{c.subject} {c.name}")
            )
    return found


def sarif(outcome: Outcome) -> str:
    """Return SARIF 2.1.0 text: rules for what was found, a result for each alert, and how the run ended."""
    found = alerts(outcome)
    rules = list(dict.fromkeys(a.rule for a in found))
    meanings = {**CHECKS, **OTHER_RULES}
    driver = {
        "name": "moeproof",
        "version": __version__,
        "semanticVersion": __version__,
        "rules": [
            {
                "id": rule,
                "name": "".join(word.title() for word in rule.replace("-", "_").split("_")),
                "shortDescription": {"text": f"{meanings[rule][0].upper()}{meanings[rule][1:]}."},
                "defaultConfiguration": {"level": "error"},
            }
            for rule in rules
        ],
    }
    invocation: dict[str, Any] = {
        "executionSuccessful": outcome.verdict != "error",
        "exitCode": outcome.code,
        "toolExecutionNotifications": [{"level": "error", "message": {"text": text}} for text in outcome.doubts],
    }
    run = {
        "tool": {"driver": driver},
        "automationDetails": {"id": f"moeproof/gate/{outcome.device}/"},
        "columnKind": "unicodeCodePoints",
        "originalUriBaseIds": {"%SRCROOT%": {"description": {"text": "The top folder of the checkout."}}},
        "invocations": [invocation],
        "results": [_result(a, rules.index(a.rule)) for a in found],
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2) + "\n"


def _result(alert: Alert, rule: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "ruleId": alert.rule,
        "ruleIndex": rule,
        "level": alert.level,
        "message": {"text": alert.text},
        "partialFingerprints": {"moeproof/v1": alert.identity},
    }
    if alert.file:
        made["locations"] = [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(alert.file), "uriBaseId": "%SRCROOT%"},
                    "region": {"startLine": alert.line},
                }
            }
        ]
    return made


def workflow_commands(outcome: Outcome) -> list[str]:
    """Return workflow commands that make GitHub Actions show what is wrong beside the changed files."""
    commands = []
    for a in alerts(outcome):
        about = {"file": a.file, "line": str(a.line) if a.file else "", "title": f"moeproof {a.rule}"}
        fields = ",".join(f"{name}={_property(value)}" for name, value in about.items() if value)
        commands.append(f"::{a.level} {fields}::{_data(a.text[:MAX_ANNOTATION])}")
    if outcome.verdict == "error":
        commands.append(f"::error title=moeproof gate::{_data(outcome.headline)}")
    return commands


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
