"""Reads what compute-sanitizer prints: reports, messages of its own, and the summary at its end."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

PREFIX = "========="
_REPORT = re.compile(
    r"(Invalid |Misaligned |Uninitialized |Barrier error|Host API memory access error|Malloc/Free |Program hit "
    r"|Leaked |Unused memory|Stack overflow|Potential |((Error|Warning|Info|Warn|ERROR|WARN|INFO)[:(].*"
    r"(Race reported|hazard detected)))"
)
_SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)")
_UNSEEN = re.compile(r"(\d+) errors? were (?:not printed|skipped)")
_FAULT = re.compile(r"(Error|Internal|Target application|Unable|Out of memory|Device not supported|Fatal)\b", re.I)
_LEVEL = re.compile(r"(Error|Warning|Warn|Info)\s*[:(]", re.I)
_LEVELS = {"e": "error", "w": "warning", "i": "info"}
_SIZE = re.compile(r" of size (\d+)(?: bytes)?")
_AT = re.compile(r"^\s+at (.+)$")
_RACE = re.compile(r"access at (.+)$")
_ADDRESS = re.compile(r" (?:at|on|to) .*?0x[0-9a-f]+.*$")
_OFFSET_LAST = re.compile(r"^(?P<function>.+?)\+0x[0-9a-f]+(?: in (?P<file>.+))?$")
_OFFSET_FIRST = re.compile(r"^0x[0-9a-f]+ in (?:(?P<file>\S+:\d+):)?(?P<function>.+)$")
_THREAD = re.compile(r"by thread (\([^)]*\)) in block (\([^)]*\))")
_NEAREST = re.compile(r"(?:(\d+) bytes (before|after)|(inside)) the nearest allocation at (0x[0-9a-f]+) of size (\d+)")


@dataclass(frozen=True)
class Report:
    """One report of a tool.

    Attributes
    ----------
    kind : str
        What went wrong, without sizes and places: ``Invalid __global__ write``.
    kernel : str
        Name of the kernel, without return type, template arguments and parameters; empty if none is named.
    place : str
        Source file and line, where the kernel has line information.
    size : int
        Bytes of the access; 0 if none is named.
    thread, block : str
        Coordinates as printed; empty if none are named.
    allocation : str
        The address of the nearest allocation; empty if none is named.
    level : str
        ``error``, ``warning`` or ``info``.
    text : str
        The whole report, without the prefix.
    """

    kind: str
    kernel: str
    place: str
    size: int
    thread: str
    block: str
    allocation: str
    level: str
    text: str

    @property
    def key(self) -> tuple[str, str]:
        """What tells one defect from another within one tool and subject."""
        return (self.kind, self.kernel)

    def describe(self, buffers: Mapping[str, str], count: int) -> str:
        """Return the report in a line or a few, with the names of the tensors that its addresses belong to.

        Parameters
        ----------
        buffers : mapping of str to str
            Names of tensors by the address of their allocation.
        count : int
            How many reports of this kind the run gave.
        """
        words = [self.kind]
        if self.size:
            words.append(f"of {self.size} bytes")
        if self.kernel:
            words.append(f"in {self.kernel}" + (f" ({self.place})" if self.place else ""))
        if self.thread:
            words.append(f"by thread {self.thread} in block {self.block}")
        text = " ".join(words)
        if found := _NEAREST.search(self.text):
            distance, side, _, address, size = found.groups()
            where = f"{distance} bytes {side}" if distance else "inside"
            name = buffers.get(address, "the nearest allocation")
            text += f", {where} {name} ({size} bytes)"
        return text + (f"; {count} reports" if count > 1 else "")


@dataclass
class Log:
    """What a log, or a part of one, holds.

    Attributes
    ----------
    reports : list of Report
        In the order printed.
    faults : list of str
        Messages that say that the tool itself, or the process, failed.
    summary : int or None
        The number of errors or hazards that the summary counts; None if there is no summary.
    unseen : int
        How many of these were not printed.
    """

    reports: list[Report] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    summary: int | None = None
    unseen: int = 0


def read_log(text: str) -> Log:
    """Read a log. Lines without the prefix are not the tool's and are passed over."""
    log = Log()
    for head, body in _records(text.splitlines()):
        if found := _SUMMARY.match(head):
            log.summary = int(found[1])
        elif found := _UNSEEN.match(head):
            log.unseen += int(found[1])
        elif _REPORT.match(head) or any(_THREAD.search(line) for line in body):
            log.reports.append(_report(head, body))
        elif _FAULT.match(head):
            log.faults.append("\n".join([head, *body]))
    return log


def _records(lines: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each unindented line with the indented ones below it, prefixes removed."""
    head, body = "", []
    for line in lines:
        if not line.startswith(PREFIX):
            continue
        content = line.removeprefix(PREFIX).removeprefix(" ").rstrip()
        if content.startswith(" "):
            body.append(content)
            continue
        if head:
            yield head, body
        head, body = content, []
    if head:
        yield head, body


def _report(head: str, body: list[str]) -> Report:
    size = _SIZE.search(head)
    level = _LEVEL.match(head)
    race = _RACE.search(head) if "Race reported" in head else None
    places = [race[1]] if race else [m[1] for line in body if (m := _AT.match(line))]
    frames = [line.partition("Device Frame:")[2].strip() for line in body if "Device Frame:" in line]
    # The innermost frame may be a function that was inlined; the outermost one is the kernel.
    _, place = _function(places[0]) if places else ("", "")
    name, outer = _function(frames[-1]) if frames else _function(places[0]) if places else ("", "")
    thread = next((m for line in body if (m := _THREAD.search(line))), None)
    nearest = next((m for line in body if (m := _NEAREST.search(line))), None)
    return Report(
        kind=_race(head, body) if race else _kind(head, body),
        kernel=base_name(name),
        place=place or outer,
        size=int(size[1]) if size else 0,
        thread=thread[1] if thread else "",
        block=thread[2] if thread else "",
        allocation=nearest[4] if nearest else "",
        level=_LEVELS[level[1][0].lower()] if level else "error",
        text="\n".join([head, *body]),
    )


def _kind(head: str, body: list[str]) -> str:
    """Return the kind of a report: its head without what varies from thread to thread."""
    kind = _ADDRESS.sub("", _SIZE.sub("", head)).removesuffix(".")
    # Some threads of one barrier diverge in their warp, others in their block.
    kind = re.sub(r" in (?:warp|block)$", "", kind)
    return f"{kind}, misaligned" if any("misaligned" in line for line in body) else kind


def _race(head: str, body: list[str]) -> str:
    """Return the kind of a race: the accesses that take part, whatever their number and order."""
    found = re.findall(r"(Read|Write|Atomic)\w* access", "\n".join([head, *body]))
    return f"Race between {' and '.join(sorted(set(found), reverse=True))}"


def _function(place: str) -> tuple[str, str]:
    """Return the function that a place names, and its file and line."""
    place = re.sub(r" \[\d+ hazards?\]$", "", place)
    found = _OFFSET_LAST.match(place) or _OFFSET_FIRST.match(place)
    if found is None:
        return place.removesuffix(" in"), ""
    file = found["file"] or ""
    return found["function"], file.rpartition("/")[2]


def base_name(signature: str) -> str:
    """Return a function's name without return type, template arguments, parameters and namespaces' anonymity."""
    text = signature.replace("(anonymous namespace)", "anonymous").replace("<unnamed>", "anonymous")
    depth, kept = 0, []
    for character in text:
        if character == "<":
            depth += 1
        elif character == ">" and depth:
            depth -= 1
        elif not depth:
            kept.append(character)
    words = "".join(kept).partition("(")[0].split()
    return words[-1] if words else ""
