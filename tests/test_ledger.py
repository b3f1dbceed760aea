"""The ledger: what it holds, what it refuses, how a run treats what is listed, and how entries are kept true."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import pytest
from test_cli import RIGHT, TIE, moeproof

from moeproof.verify import corpus
from moeproof.verify.coordinator import Summary, tee
from moeproof.verify.coverage import Coverage
from moeproof.verify.events import Event
from moeproof.verify.finding import identity
from moeproof.verify.ledger import LedgerError, append, read
from moeproof.verify.ledger.entries import parse_version
from moeproof.verify.sanitize.lane import identity as sanitizer_identity
from moeproof.verify.subject import find
from moeproof.verify.violation import Violation

SHIPPED = Path(__file__).parents[1] / "docs" / "findings" / "ledger.toml"
IDENTITY = "0123456789"
ENTRY = {
    "identity": f'"{IDENTITY}"',
    "library": '"zoo"',
    "version": '">=1.2,<2"',
    "check": '"tie_order"',
    "title": '"ties"',
    "date": "2026-01-31",
    "reason": '"it is so"',
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finding of a tie."""
    out = tmp_path_factory.mktemp("out")
    code, text = moeproof("fuzz", "-s", TIE, "--cases", "25", "--seed", "3", "--out", out)
    assert code == 1, text
    (place,) = (out / "findings").iterdir()
    return place


def ledger(root: Path, /, **changes: str | None) -> Path:
    """Write a ledger with one entry, changed, and its finding's folder."""
    place = root / IDENTITY
    place.mkdir(exist_ok=True)
    for name in ("case.json", "finding.json"):
        (place / name).write_text("{}")
    fields = {name: value for name, value in (ENTRY | changes).items() if value is not None}
    path = root / "ledger.toml"
    path.write_text("[[finding]]\n" + "".join(f"{name} = {value}\n" for name, value in fields.items()))
    return path


def listed(path: Path, **changes: str) -> str:
    """Return what a ledger says of a finding."""
    finding = {"identity": IDENTITY, "subject": "zoo:gate", "version": "1.5", **changes}
    return read(path).known(finding)


def test_an_entry_is_about_its_identity_library_and_versions(tmp_path: Path) -> None:
    path = ledger(tmp_path)
    assert listed(path) == "it is so"
    assert listed(path, version="bare files, expected 1.5") == "it is so"
    assert listed(path, version="1.9rc1") == "it is so"
    assert listed(path, version="2.0") == ""
    assert listed(path, version="unknown (ImportError)") == ""
    assert listed(path, identity="9876543210") == ""
    assert listed(path, subject="other:gate") == ""
    assert listed(ledger(tmp_path, version='""'), version="") == "it is so"
    assert listed(ledger(tmp_path, upstream='"https://example.org/1"')) == "https://example.org/1"


def test_versions_are_read_from_what_adapters_report() -> None:
    texts = ("0.7.2.post1", "bare files, expected 0.4.3", "", "unknown version")
    assert [str(parse_version(text)) for text in texts] == ["0.7.2.post1", "0.4.3", "None", "None"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": '"red"'}, "finding 1: unknown keys colour; allowed: identity, library"),
        ({"check": None}, "finding 1 lacks check"),
        ({"check": '"speed"'}, "check is 'speed'; allowed: ids_invalid"),
        ({"identity": '"xyz"'}, "identity is 'xyz'; allowed: ten hexadecimal digits"),
        ({"identity": "123"}, "identity is 123; allowed: a string"),
        ({"version": '"0.4.3"'}, "version is '0.4.3'; allowed: a specifier"),
        ({"date": '"2026-01-31"'}, "date is '2026-01-31'; allowed: a TOML date"),
        ({"date": "2026-01-31T10:00:00"}, "allowed: a TOML date"),
        ({"library": '" "'}, "library is empty"),
        ({"reason": None}, "has neither reason nor upstream"),
        ({"folder": '"gone"'}, "which has no case.json; allowed: a finding's folder"),
        ({"identity": "= 3"}, "is not TOML"),
    ],
)
def test_a_bad_entry_is_refused_with_its_place_and_value(
    changes: dict[str, str | None], words: str, tmp_path: Path
) -> None:
    path = ledger(tmp_path, **changes)
    with pytest.raises(LedgerError) as refused:
        read(path)
    assert words in str(refused.value)
    assert str(path) in str(refused.value)


def test_duplicates_and_other_tables_are_refused(tmp_path: Path) -> None:
    path = ledger(tmp_path)
    entry = path.read_text()
    path.write_text(entry * 2)
    with pytest.raises(LedgerError, match=f"finding 2: identity {IDENTITY} is listed twice"):
        read(path)
    for text in ("colour = 1\n" + entry, "finding = 3\n"):
        path.write_text(text)
        with pytest.raises(LedgerError, match=r"allowed: \[\[finding\]\] tables"):
            read(path)
    with pytest.raises(LedgerError, match="can't be read: No such file"):
        read(tmp_path / "none.toml")


def test_a_run_fails_on_what_is_not_listed_only(tmp_path: Path) -> None:
    known = {"identity": IDENTITY, "subject": "zoo:gate", "version": "1.5"}
    other = known | {"identity": "abcdefabcd"}
    for findings, code in (((known,), 0), ((known, other), 1)):
        summary, seen = Summary(subjects={"zoo:gate": Coverage()}), []
        sink = tee(summary, [seen.append], read(ledger(tmp_path)))
        for kind, finding in zip(("known", "finding"), findings, strict=False):
            sink(Event(kind, finding))
        assert summary.exit_code() == code
        assert [e.data["listed"] for e in seen] == ["it is so", ""][: len(findings)]


def test_a_finding_is_added_then_fails_no_run_and_is_there(found: Path, tmp_path: Path) -> None:
    path = tmp_path / "docs" / "ledger.toml"
    code, text = moeproof("ledger", "add", found, "--ledger", path, "--reason", 'ties "happen"', "--title", "x \\ y")
    assert code == 0, text
    (entry,) = read(path).entries.values()
    assert (entry.identity, entry.check, entry.reason, entry.title) == (
        found.name,
        "tie_order",
        'ties "happen"',
        "x \\ y",
    )
    assert entry.folder == path.parent / found.name
    assert sorted(p.name for p in entry.folder.iterdir()) == sorted(p.name for p in found.iterdir())
    assert moeproof("ledger", "add", found, "--ledger", path, "--reason", "again")[0] == 2
    arguments = ("fuzz", "-s", TIE, "--cases", "25", "--seed", "3", "--out", tmp_path / "out", "--ledger", path)
    code, text = moeproof(*arguments)
    assert code == 0, text
    assert 'ties "happen"' in text
    assert "tie_order (listed)" in text
    code, text = moeproof("ledger", "check", path)
    assert code == 0, text
    assert f"there {found.name}" in text


def test_an_entry_that_no_longer_happens_fails_the_check(found: Path, tmp_path: Path) -> None:
    """The finding's subject is replaced by a right one; its identity, which bears the subject's name, with it."""
    place = tmp_path / "finding"
    shutil.copytree(found, place)
    summary = json.loads((place / "finding.json").read_text())
    (right,) = find([RIGHT])
    case = corpus.read_case(place / "case.json")
    summary["identity"] = identity(right, case, Violation("tie_order", ""), refusal=False)
    summary |= {"subject": right.name, "source": right.source}
    (place / "finding.json").write_text(json.dumps(summary))
    path = tmp_path / "ledger.toml"
    append(path, place, reason="r", upstream="", version=None, title=None, date=datetime.date(2026, 1, 31))
    assert 'folder = "finding"' in path.read_text()
    code, text = moeproof("ledger", "check", path)
    assert code == 1, text
    assert f"GONE {summary['identity']}" in text
    assert "zoo:right-gate passes tie_order in 1 runs: remove the entry" in text
    # The same entry for another version of the library can't be checked here.
    path.write_text(path.read_text().replace('version = ""', 'version = "==1"'))
    code, text = moeproof("ledger", "check", path)
    assert code == 2, text
    assert "unknown version, which no longer has it, is not ==1" in text
    # An identity that no run would report hides nothing.
    for file in (path, place / "finding.json"):
        file.write_text(file.read_text().replace(summary["identity"], IDENTITY))
    code, text = moeproof("ledger", "check", path)
    assert code == 2, text
    assert f"a run would report it as {summary['identity']}" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["check", "/no/such.toml"], "ledger is '/no/such.toml', which can't be read"),
        (
            ["add", "/no/such", "-l", "/tmp/l.toml", "--reason", "r"],
            "folder is '/no/such'; allowed: a finding's folder",
        ),
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str], words: str) -> None:
    code, text = moeproof("ledger", *arguments)
    assert code == 2
    assert words in text


def test_an_entry_that_would_be_refused_is_not_written(found: Path, tmp_path: Path) -> None:
    path = tmp_path / "ledger.toml"
    for changes in (["--reason", ""], ["--reason", "r", "--version", "1.0"]):
        code, text = moeproof("ledger", "add", found, "-l", path, *changes)
        assert code == 2
        assert "allowed: " in text
        assert list(tmp_path.iterdir()) == []
    code, text = moeproof("fuzz", "-s", TIE, "--cases", "1", "--out", tmp_path, "--ledger", path)
    assert (code, "which can't be read" in text) == (2, True)


def test_the_shipped_ledger_lists_each_folder_under_the_identity_that_a_run_gives() -> None:
    shipped = read(SHIPPED)
    folders = {p.name for p in SHIPPED.parent.iterdir() if p.is_dir()}
    assert set(shipped.entries) == folders
    for entry in shipped.entries.values():
        summary = json.loads((entry.folder / "finding.json").read_text())
        case = corpus.read_case(entry.folder / "case.json")
        (subject,) = find([summary["subject"]])
        if entry.check in ("memcheck", "racecheck", "initcheck", "synccheck"):
            continue
        now = identity(subject, case, Violation(entry.check, ""), refusal=summary["outside_domain"])
        assert now == entry.identity
        assert shipped.known(summary)


def test_identities_of_sanitizer_findings_tell_tools_kernels_and_kinds_apart() -> None:
    (subject,) = find([RIGHT])
    made = {
        sanitizer_identity(subject, tool, (kind, kernel))
        for tool in ("memcheck", "initcheck")
        for kind in ("Invalid read", "Invalid write")
        for kernel in ("a", "b")
    }
    assert len(made) == 8
