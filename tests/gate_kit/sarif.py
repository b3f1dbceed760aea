"""The rules of SARIF 2.1.0 (OASIS standard, and its JSON schema) that a report of the gate can break."""

from __future__ import annotations

import re
from typing import Any

LEVELS = {"none", "note", "warning", "error"}
KEYS = {
    "sarif": {"$schema", "version", "runs"},
    "run": {"tool", "automationDetails", "columnKind", "originalUriBaseIds", "invocations", "results"},
    "driver": {"name", "version", "semanticVersion", "rules"},
    "rule": {"id", "name", "shortDescription", "defaultConfiguration"},
    "result": {"ruleId", "ruleIndex", "level", "message", "locations", "partialFingerprints"},
    "invocation": {"executionSuccessful", "exitCode", "toolExecutionNotifications"},
}
"""Properties that the schema allows there (it allows no others), of those that the gate writes."""
URI = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})+")


def problems(report: dict[str, Any]) -> list[str]:
    """Return what is wrong with a report."""
    found: list[str] = []

    def check(good: object, text: str) -> None:
        if not good:
            found.append(text)

    def known(kind: str, value: dict[str, Any]) -> None:
        check(set(value) <= KEYS[kind], f"{kind} has {sorted(set(value) - KEYS[kind])}")

    def message(value: dict[str, Any], where: str) -> None:
        check(isinstance(value.get("text"), str) and value["text"], f"{where} has no text")

    known("sarif", report)
    check(report["version"] == "2.1.0", "version")
    check(re.match(r"https://.*sarif.*2\.1\.0.*\.json$", report["$schema"]), "$schema")
    for run in report["runs"]:
        known("run", run)
        driver = run["tool"]["driver"]
        known("driver", driver)
        check(driver["name"], "driver.name")
        check(re.fullmatch(r"\d+\.\d+\.\d+([-+].*)?", driver["semanticVersion"]), "driver.semanticVersion")
        rules = driver["rules"]
        ids = [rule["id"] for rule in rules]
        check(len(set(ids)) == len(ids), "rules have equal ids")
        for rule in rules:
            known("rule", rule)
            message(rule["shortDescription"], "shortDescription")
            check(rule["defaultConfiguration"]["level"] in LEVELS, "rule level")
        check(run["columnKind"] in ("utf16CodeUnits", "unicodeCodePoints"), "columnKind")
        for name, base in run["originalUriBaseIds"].items():
            check("uri" not in base or base["uri"].endswith("/"), f"uri of {name}")
        for invocation in run["invocations"]:
            known("invocation", invocation)
            check(isinstance(invocation["executionSuccessful"], bool), "executionSuccessful")
            check(isinstance(invocation["exitCode"], int), "exitCode")
            for notification in invocation["toolExecutionNotifications"]:
                message(notification["message"], "notification")
                check(notification["level"] in LEVELS, "notification level")
        for result in run["results"]:
            known("result", result)
            check(ids[result["ruleIndex"]] == result["ruleId"], "ruleIndex is another rule's")
            check(result["level"] in LEVELS, "result level")
            message(result["message"], "result")
            prints = result["partialFingerprints"]
            check(all(isinstance(v, str) for v in prints.values()), "partialFingerprints")
            for location in result.get("locations", ()):
                place = location["physicalLocation"]
                artifact = place["artifactLocation"]
                check(URI.fullmatch(artifact["uri"]) and not artifact["uri"].startswith("/"), "artifact uri")
                check(artifact["uriBaseId"] in run["originalUriBaseIds"], "uriBaseId")
                check(place["region"]["startLine"] >= 1, "startLine")
    return found
