"""Example databases of nightly runs: chained, shared through a real Redis protocol, and never in a run's way."""

from __future__ import annotations

import datetime
import subprocess
import sys
import threading
import urllib.error
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from moeproof.strategies.case import Case, TensorSpec
from moeproof.verify.lanes.schema import Examples
from moeproof.verify.nightly.examples import ExamplesError, chain, load_profile, save_case, stored_cases

fakeredis = pytest.importorskip("fakeredis")


def case(experts: int = 5) -> Case:
    logits = TensorSpec("float32", (1, experts), rows=((0.5,) * experts,))
    return Case("fused_gate", {"topk": 1, "renormalize": False}, {"logits": logits})


@pytest.fixture
def redis() -> Iterator[str]:
    server = fakeredis.TcpFakeServer(("127.0.0.1", 0), server_type="redis")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"redis://127.0.0.1:{server.server_address[1]}/0"
    server.shutdown()
    server.server_close()


def test_machines_share_cases_through_redis(redis: str, tmp_path: Path) -> None:
    notes: list[str] = []
    here = chain(tmp_path / "here", Examples(redis=redis), notes.append)
    there = chain(tmp_path / "there", Examples(redis=redis), notes.append)
    save_case(here, case())
    assert list(stored_cases(there, "fused_gate")) == [case()]
    assert list(stored_cases(there, "moe_align_block_size")) == []
    alone = chain(tmp_path / "here", Examples(), notes.append)
    assert list(stored_cases(alone, "fused_gate")) == [case()]
    assert notes == []


def test_what_is_no_case_is_passed_over(tmp_path: Path) -> None:
    database = chain(tmp_path / "examples", Examples(), print)
    save_case(database, case())
    for junk in (b"\xff", b"[" * 10_000, b"{}", b"null"):
        database.save(b"moeproof case fused_gate", junk)
    assert list(stored_cases(database, "fused_gate")) == [case()]


def test_a_run_goes_on_without_a_redis_that_is_gone(tmp_path: Path) -> None:
    notes: list[str] = []
    database = chain(tmp_path / "examples", Examples(redis="redis://user:secret@127.0.0.1:1/0"), notes.append)
    save_case(database, case(3))
    save_case(database, case(4))
    assert len(list(stored_cases(database, "fused_gate"))) == 2
    (note,) = notes
    assert "redis://127.0.0.1:1/0 failed, the run goes on without it" in note
    assert "secret" not in note


def test_a_bad_redis_url_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExamplesError, match=r"redis is 'redis://127.0.0.1:port'"):
        chain(tmp_path / "examples", Examples(redis="redis://u:secret@127.0.0.1:port"), print)


def test_an_artifact_is_read_and_never_written(tmp_path: Path) -> None:
    save_case(chain(tmp_path / "night" / "examples", Examples(), print), case())
    folder = tmp_path / "mine" / "github-artifact"
    folder.mkdir(parents=True)
    # As Hypothesis keeps a download: a zip of the folder, named by its time with dots for colons.
    stamp = datetime.datetime.now(datetime.UTC).isoformat().replace(":", "_")
    with zipfile.ZipFile(folder / f"{stamp}.zip", "w") as archive:
        for path in (tmp_path / "night" / "examples").rglob("*"):
            archive.write(path, path.relative_to(tmp_path / "night" / "examples"))
    mine = chain(tmp_path / "mine" / "examples", Examples(github="owner/repository"), print)
    assert list(stored_cases(mine, "fused_gate")) == [case()]
    save_case(mine, case(7))
    assert len(list(folder.iterdir())) == 1
    assert len(list(stored_cases(mine, "fused_gate"))) == 2


def test_a_run_goes_on_without_an_artifact_that_can_not_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("hypothesis.database.urlopen", offline, raising=False)
    notes: list[str] = []
    database = chain(tmp_path / "examples", Examples(github="owner/repository"), notes.append)
    save_case(database, case())
    for _ in range(2):
        assert list(stored_cases(database, "fused_gate")) == [case()]
    (note,) = notes
    assert "the artifact of owner/repository failed, the run goes on without it" in note


def test_hypothesis_explores_and_remembers_where_ci_is_set(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from hypothesis import settings\n"
        "from moeproof.verify.nightly.examples import chain, load_profile\n"
        "from moeproof.verify.lanes.schema import Examples\n"
        "assert settings().derandomize and settings().database is None\n"
        "load_profile(chain(Path(sys.argv[1]), Examples(), print))\n"
        "print(settings.get_current_profile_name(), settings().derandomize, settings().database is not None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "db"],
        capture_output=True, text=True, check=False, env={"CI": "true", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.stdout.split() == ["nightly", "False", "True"], done.stderr


def test_a_failing_example_is_tried_first_the_next_time(tmp_path: Path) -> None:
    before = settings.get_current_profile_name()
    tried: list[int] = []

    def body(number: int) -> None:
        tried.append(number)
        assert number < 1000

    try:
        load_profile(chain(tmp_path / "db", Examples(), print))
        for phases in ((Phase.reuse, Phase.generate), (Phase.reuse,)):
            tried.clear()
            run = settings(phases=phases, max_examples=300)(given(st.integers(0, 10_000))(body))
            with pytest.raises(AssertionError):
                run()
    finally:
        settings.load_profile(before)
    assert len(tried) <= 3
    assert tried[0] >= 1000
