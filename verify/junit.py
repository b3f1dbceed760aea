"""JUnit XML of a run: a test case for each subject, its findings as failures."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from xml.etree import ElementTree

from .history.record import RunRecord, SubjectRecord

_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 can't hold, not even escaped."""


def render(run: RunRecord) -> str:
    """Return a run as JUnit XML.

    A subject that could not run is skipped, a fault of the harness is an error, and so is a run without an end.
    """
    errors = [note["text"] for note in run.notes if note["error"]]
    if run.ended is None:
        errors.append("the run has not ended: it is still going on, or was killed")
    suite = ElementTree.Element("testsuite", name=f"moeproof {run.job}")
    for subject in sorted(run.subjects.values(), key=lambda s: s.name):
        found = [f for f in run.findings.values() if f["subject"] == subject.name]
        suite.append(_case(subject, found))
    for text in errors:
        case = ElementTree.SubElement(suite, "testcase", classname="moeproof", name="harness", time="0")
        _fill(ElementTree.SubElement(case, "error"), text.splitlines()[-1] if text else "", text)
    counts = {
        "tests": len(suite),
        "failures": sum(case.find("failure") is not None for case in suite),
        "errors": len(errors),
        "skipped": sum(case.find("skipped") is not None for case in suite),
    }
    totals = {name: str(count) for name, count in counts.items()} | {"time": f"{run.seconds:.3f}"}
    suite.attrib |= totals | {
        "timestamp": datetime.fromtimestamp(run.started, UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "hostname": _plain(str(run.details.get("host", ""))),
    }
    suites = ElementTree.Element("testsuites", {"name": "moeproof", **totals})
    suites.append(suite)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _case(subject: SubjectRecord, findings: list[dict[str, object]]) -> ElementTree.Element:
    about = {"classname": subject.op or "moeproof", "name": _plain(subject.name), "time": f"{subject.seconds:.3f}"}
    case = ElementTree.Element("testcase", about)
    failing = [f for f in findings if not f.get("listed")]
    for number, finding in enumerate(failing, 1):
        # Some readers show a test case's first failure only: it tells that there are more.
        which = f"[{number}/{len(failing)}] " if len(failing) > 1 else ""
        parts = (finding["message"], f"finding {finding['identity']}, {finding['severity']}", finding.get("script", ""))
        failure = ElementTree.SubElement(case, "failure", type=_plain(str(finding["check"])))
        _fill(failure, f"{which}{finding['title']}", "\n\n".join(map(str, parts)))
    if subject.unavailable and not findings:
        after = f" after {subject.cases} cases" if subject.cases else ""
        _fill(ElementTree.SubElement(case, "skipped"), f"left out{after}: {subject.unavailable}", "")
    counts = ", ".join(f"{count} {check}" for check, count in subject.failures.items()) or "none"
    lines = [f"{subject.cases} cases, {subject.rows} rows judged on {subject.device or '-'}; failed checks: {counts}"]
    lines += [f"listed as known: {f['identity']} {f['title']}: {f['listed']}" for f in findings if f.get("listed")]
    ElementTree.SubElement(case, "system-out").text = _plain("\n".join(lines))
    return case


def _fill(element: ElementTree.Element, message: str, text: str) -> None:
    element.set("message", _plain(message))
    element.text = _plain(text)


def _plain(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
