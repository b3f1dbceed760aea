"""A gate's outcome as JUnit XML, and as Markdown for a job's page or a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from moeproof.verify.report.markdown import code, plain

from .rule import FASTER, SLOWER
from .verdict import BROKEN, FAILED, SKIPPED, Check, Outcome, signed

MOST = 20
"""Findings, files and comparisons that are shown: a job's page holds a megabyte."""
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 can't hold, not even escaped."""
_MARKS = {FAILED: "**failed**", BROKEN: "**error**", SKIPPED: "not run"}


def junit(outcome: Outcome) -> str:
    """Return JUnit XML: a test case for each check of each subject, and one for the verdict."""
    suite = ElementTree.Element("testsuite", name="moeproof gate")
    for check in outcome.checks:
        about = {"classname": _xml(check.subject), "name": _xml(check.name), "time": "0"}
        case = ElementTree.SubElement(suite, "testcase", about)
        if check.status in (FAILED, BROKEN, SKIPPED):
            tag = {FAILED: "failure", BROKEN: "error", SKIPPED: "skipped"}[check.status]
            part = ElementTree.SubElement(case, tag, {"message": _xml(_first(outcome, check))})
            if tag != "skipped":
                part.set("type", _xml(check.name))
                part.text = _xml(_all(outcome, check))
    case = ElementTree.SubElement(suite, "testcase", classname="moeproof gate", name="verdict", time="0")
    if outcome.verdict != "pass":
        tag = "failure" if outcome.verdict == "fail" else "error"
        part = ElementTree.SubElement(case, tag, {"message": _xml(outcome.headline), "type": "verdict"})
        part.text = _xml("\n".join([*outcome.failures, *outcome.doubts]))
    totals = {
        "tests": str(len(suite)),
        "failures": str(sum(c.find("failure") is not None for c in suite)),
        "errors": str(sum(c.find("error") is not None for c in suite)),
        "skipped": str(sum(c.find("skipped") is not None for c in suite)),
        "time": f"{outcome.seconds:.3f}",
    }
    suite.attrib |= totals
    suites = ElementTree.Element("testsuites", {"name": "moeproof", **totals})
    suites.append(suite)
    ElementTree.indent(suites)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suites, encoding="unicode") + "\n"


def _first(outcome: Outcome, check: Check) -> str:
    found = _findings(outcome, check)
    return str(found[0]["title"]) if check.status == FAILED and found else check.detail.partition("\n")[0]


def _all(outcome: Outcome, check: Check) -> str:
    parts = [check.detail]
    for finding in _findings(outcome, check):
        parts += [f"{finding['check']}: {finding['title']}", str(finding["message"]), str(finding.get("script", ""))]
    if check.name == "speed":
        parts += [
            f"{s.shape}, {s.clock} clock: {signed(s.ratio)}" for s in outcome.slower if s.subject == check.subject
        ]
    return "\n\n".join(filter(None, parts))


def _findings(outcome: Outcome, check: Check) -> list[dict[str, object]]:
    """Return the findings that a failed check is about: all of its subject, under the first check that has any."""
    if not check.told or check.name == "speed":
        return []
    return [f for f in outcome.open if f["subject"] == check.subject]


def _xml(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)


def markdown(outcome: Outcome) -> str:
    """Return the verdict, its reasons, and what they rest on."""
    made = outcome.checkout
    out = [f"## moeproof gate: {plain(outcome.headline)}", ""]
    dirty = " with uncommitted changes" if made.dirty else ""
    out += [
        f"{code(made.head[:12])}{dirty} against {code(made.base[:12])} ({plain(made.asked)}), on {outcome.device}, "
        f"seed {outcome.seed}, {outcome.seconds:.0f} s.",
        "",
    ]
    out += [f"- {plain(reason)}" for reason in (*outcome.failures, *outcome.doubts)[:MOST]]
    out += [""] if outcome.failures or outcome.doubts else []
    if outcome.touched:
        out += ["| touched | by | tested as |", "| --- | --- | --- |"]
        for t in outcome.touched:
            runs = "not on this machine" if t.runs is None else "" if t.runs is t.subject else code(t.runs.name)
            out.append(f"| {code(t.subject.name)} | {plain(t.why)} | {runs} |")
    else:
        count = len(made.changed)
        files = f"{count} file{'' if count == 1 else 's'}" if count else "nothing"
        out.append(f"The change touches no kernel of the lanes ({files} changed). Only the harness itself was tried.")
    out.append("")
    if outcome.checks:
        out += ["| subject | check | result |", "| --- | --- | --- |"]
        for check in outcome.checks:
            text = ": ".join(filter(None, (_MARKS.get(check.status, "passed"), plain(check.detail))))
            out.append(f"| {code(check.subject)} | {plain(check.name)} | {text} |")
        out.append("")
    out += _speed(outcome)
    for finding in outcome.open[:MOST]:
        out += [f"#### {plain(finding['severity'])} {code(finding['check'])}: {plain(finding['title'])}", ""]
        out += [_fenced(str(finding["message"]), "text"), ""]
        if script := finding.get("script"):
            out += ["<details><summary>Script that shows it</summary>", "", _fenced(str(script), "python"), ""]
            out += ["</details>", ""]
    listed = [f for f in outcome.findings.values() if f.get("listed")]
    out += [f"- listed as known: {code(f['identity'])} {plain(f['title'])}: {plain(f['listed'])}" for f in listed]
    out += [f"- {plain(note)}" for note in outcome.notes[:MOST]]
    return "\n".join(out).rstrip() + "\n"


def _speed(outcome: Outcome) -> list[str]:
    if not outcome.speeds:
        return []
    order = sorted(outcome.speeds, key=lambda s: (s.change != SLOWER, s.change != FASTER))
    head = ["subject", "shape", "clock", "base, µs", "change, µs", "difference (99% interval)", "noise", ""]
    out = [_row(head), _row(["---", "---", "---", "---:", "---:", "---", "---", "---"])]
    for s in order[: 3 * MOST]:
        r = s.ratio
        noise = f"{100 * (r.noise.low - 1):+.1f} to {100 * (r.noise.high - 1):+.1f}%"
        times = (f"{r.baseline:.2f}", f"{r.candidate:.2f}")
        word = f"**{s.change}**" if s.change == SLOWER else s.change
        out.append(_row([code(s.subject), plain(s.shape), s.clock, *times, signed(r), noise, word]))
    return [*out, ""]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _fenced(text: str, language: str) -> str:
    """Return a code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, max((len(run) for run in re.findall(r"`+", text)), default=0) + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
