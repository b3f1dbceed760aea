"""The lanes file: what it may hold, and that each mistake in it is named with its place, value and what is allowed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner
from zoo.entry import FRONT_DOOR

from moeproof.verify.cli import app
from moeproof.verify.lanes.reader import LanesError, load_lanes, pick
from moeproof.verify.lanes.resolve import subjects_of
from moeproof.verify.lanes.schema import CHECKS, EXAMPLES_KEYS, FILE_KEYS, LANE_KEYS, THRESHOLD_KEYS

ROOT = Path(__file__).resolve().parents[1]
GOOD = f"""
corpus = ["kept"]

[defaults]
weight = 2
slice_seconds = 5

[examples]
redis = "redis://examples.local/0"
github = "owner/repository"

[lane.own]
subjects = ["numpy"]
ops = ["fused_gate"]
presets = ["any", "kimi-k2"]
cases = 300
weight = 0.5

[lane.own.thresholds]
speed_percent = 3

[lane.zoo]
subjects = ["{FRONT_DOOR}:zoo:right-gate", "near.py"]
tests = ["near.py"]
checks = ["fuzz", "tests"]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "lanes.toml"
    path.write_text(text, encoding="utf-8")
    (folder / "kept").mkdir(exist_ok=True)
    (folder / "near.py").touch()
    return path


def test_a_file_is_read_whole(tmp_path: Path) -> None:
    lanes = load_lanes(written(tmp_path, GOOD))
    own, zoo = lanes.lanes
    assert (own.weight, own.slice_seconds, own.cases, own.speed_percent) == (0.5, 5, 300, 3)
    assert (zoo.weight, zoo.slice_seconds, zoo.cases, zoo.speed_percent) == (2, 5, None, 5)
    assert lanes.corpus == (tmp_path / "kept",)
    assert (lanes.examples.redis, lanes.examples.github) == ("redis://examples.local/0", "owner/repository")
    # Paths are the file's, whatever folder the command runs in.
    assert zoo.tests == (str(tmp_path / "near.py"),)
    assert zoo.subjects == (f"{FRONT_DOOR}:zoo:right-gate", str(tmp_path / "near.py"))
    assert [lane.name for lane in pick(lanes, ["zoo"])] == ["zoo"]
    assert [s.name for s in subjects_of(lanes, own)] == ["numpy:fused_gate"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lane = 3", "the file: lane is 3; allowed: a table"),
        ("", "the file: has no lane; allowed: at least one table [lane.NAME]"),
        ("[lane.a\n", "allowed: a TOML file"),
        ("ledgr = 'x'\n[lane.a]\nsubjects=['own']", "key 'ledgr' is not known (did you mean 'ledger'?)"),
        ("ledger = 'no.toml'\n[lane.a]\nsubjects=['own']", "ledger names 'no.toml'; allowed: what exists"),
        ("corpus = 'kept'\n[lane.a]\nsubjects=['own']", "corpus is 'kept'; allowed: a list of folders"),
        ("[lane.a]\nweight = 1", "lane 'a': subjects is missing"),
        ("[lane.a]\nsubjects = []", "lane 'a': subjects is []; allowed: a list of subject names"),
        ("[lane.a]\nsubjects=['own']\nwieght=1", "lane 'a': key 'wieght' is not known (did you mean 'weight'?)"),
        ("[lane.a]\nsubjects=['own']\nweight=0", "lane 'a': weight is 0; allowed: a number from 0.001 to 1000"),
        ("[lane.a]\nsubjects=['own']\nweight=true", "lane 'a': weight is True"),
        ("[lane.a]\nsubjects=['own']\ncases=1.5", "lane 'a': cases is 1.5; allowed: a whole number"),
        ("[lane.a]\nsubjects=['own']\nseconds=nan", "lane 'a': seconds is nan"),
        ("[lane.a]\nsubjects=['own']\nops=['gate']", "lane 'a': ops is ['gate']; allowed: a list of fused_gate"),
        ("[lane.a]\nsubjects=['own']\npresets=['gpt-0']", "presets is ['gpt-0']; allowed: a list of any, kimi-vl"),
        ("[lane.a]\nsubjects=['own']\nchecks=['fuz']", "checks is ['fuz']; allowed: a list of corpus, fuzz"),
        ("[lane.a]\nsubjects=['own']\ntests=['near.py']", "tests and the check 'tests' go together"),
        ("[lane.a]\nsubjects=['own']\nthresholds={speed=1}", "lane 'a', thresholds: key 'speed' is not known"),
        ("[lane.a]\nsubjects=['own']\nthresholds=1", "lane 'a': thresholds is 1; allowed: a table"),
        ("[defaults]\nweight=-1\n[lane.a]\nsubjects=['own']", "[defaults]: weight is -1"),
        ("[examples]\nredis='http://x'\n[lane.a]\nsubjects=['own']", "[examples]: redis is 'http://x'"),
        ("[examples]\ngithub='owner'\n[lane.a]\nsubjects=['own']", "github is 'owner'; allowed: OWNER/REPOSITORY"),
    ],
)
def test_each_mistake_is_named(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(LanesError) as caught:
        load_lanes(written(tmp_path, text))
    (line,) = str(caught.value).splitlines()  # one mistake, one line
    assert line.startswith(str(tmp_path / "lanes.toml"))
    assert words in line


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(LanesError) as caught:
        load_lanes(written(tmp_path, "[lane.a]\nsubjects=[]\nweight=0\n[lane.b]\nsubjects=['own']\ncases=0"))
    assert len(str(caught.value).splitlines()) == 3


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LanesError, match=r"No such file.*allowed: a readable TOML file"):
        load_lanes(tmp_path / "no.toml")
    lanes = load_lanes(
        written(tmp_path, "[lane.a]\nsubjects=['nothing']\n[lane.b]\nsubjects=['own']\nops=['fused_gate']")
    )
    with pytest.raises(LanesError, match=r"lane is 'c'; allowed by .*: a, b"):
        pick(lanes, ["c"])
    with pytest.raises(LanesError, match="lane 'a': subjects: subject is 'nothing'; allowed: "):
        subjects_of(lanes, lanes.lanes[0])


def test_the_command_lists_lanes_and_their_subjects(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD.replace(', "near.py"]', "]"))
    result = CliRunner().invoke(app, ["lanes", str(path), "--json"])
    assert result.exit_code == 0, result.output
    own, zoo = json.loads(result.output)["lanes"]
    assert (own["name"], own["subjects"], own["weight"]) == ("own", ["numpy:fused_gate"], 0.5)
    assert zoo["subjects"] == ["zoo:right-gate"]
    assert "numpy:fused_gate" in CliRunner().invoke(app, ["lanes", str(path)]).output


def test_the_command_ends_with_2_on_a_bad_file(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["lanes", str(written(tmp_path, "[lane.a]\nsubjects=['nothing']"))])
    assert result.exit_code == 2
    assert "lane 'a': subjects: subject is 'nothing'" in " ".join(result.output.split())


def test_the_lanes_that_ship_are_sound() -> None:
    lanes = load_lanes(ROOT / "ci" / "lanes.toml")
    assert {"own", "libraries", "references"} <= {lane.name for lane in lanes.lanes}
    assert all(subjects_of(lanes, lane) for lane in lanes.lanes)


def named_in_page(heading: str) -> list[str]:
    """Return the names in the first column of a table of docs/nightly.md, by the heading of that column."""
    page = (ROOT / "docs" / "nightly.md").read_text(encoding="utf-8")
    table = page.partition(f"| {heading} |")[2].partition("\n\n")[0]
    return [name for row in table.splitlines()[2:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])]


def test_the_page_names_every_key_of_the_schema_and_no_other() -> None:
    lane = [*LANE_KEYS, *(f"thresholds.{key}" for key in THRESHOLD_KEYS)]
    file = [*FILE_KEYS, *(f"examples.{key}" for key in EXAMPLES_KEYS), "defaults"]
    for heading, keys in {"key of a lane": lane, "key of the file": file, "check": [*CHECKS]}.items():
        assert sorted(named_in_page(heading)) == sorted(keys), heading
