"""Cases as data: what is written reads back, and what is hostile is refused before anything is allocated."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from moeproof.strategies.case import BAIT_FLOAT, GUARD_BYTES, MAX_BYTES, Case, CaseError, TensorSpec
from moeproof.verify.corpus import MAX_FILE, MAX_SIZE, read_case

NORMAL = {
    "kind": "scores",
    "seed": 1,
    "blocks": [{"pattern": "normal", "center": 0.0, "scale": 1.0, "quantised": False}],
    "edits": [],
}


def _data(**tensor: Any) -> dict[str, Any]:
    spec = {"dtype": "float32", "shape": [1, 2], "rows": [[0.0, 1.0]]} | tensor
    spec = {k: v for k, v in spec.items() if v is not None}
    return {"moeproof_case": 1, "op": "fused_gate", "params": {"topk": 1}, "tensors": {"logits": spec}}


def _read(tmp_path: Path, data: Any) -> Case:
    path = tmp_path / "case.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return read_case(path)


@pytest.mark.parametrize(
    "spec",
    [
        TensorSpec("float32", (2, 3), rows=((0.0, -0.0, math.nan), (math.inf, -math.inf, 1e-45))),
        TensorSpec("bfloat16", (5, 2), rows=((0.1, 0.2),), strides=(0, 1)),
        TensorSpec("float16", (4, 2), recipe=NORMAL, strides=(1, 7), offset=3),
        TensorSpec("int64", (3,), rows=(2**62, -1, 0)),
        TensorSpec("int32", (), rows=(7,)),
        TensorSpec("int32", (0, 4), rows=()),
    ],
)
def test_a_case_reads_back_as_it_was_written(spec: TensorSpec) -> None:
    case = Case("fused_gate", {"topk": 1, "scale": math.inf, "flag": True}, {"logits": spec}, note="a note")
    again = Case.loads(case.dumps())
    assert again.dumps() == case.dumps()
    assert again.note == "a note"
    assert type(again.params["flag"]) is bool
    assert again.tensors["logits"].strides == spec.strides
    if spec.recipe is None:
        assert repr(again.tensors["logits"].rows) == repr(spec.rows)
        first, second = (c.tensors["logits"].build("cpu")[0] for c in (case, again))
        assert torch.equal(first.nan_to_num(9), second.nan_to_num(9))


def test_nan_and_infinities_are_strings_in_json() -> None:
    text = Case("fused_gate", {}, {"logits": TensorSpec("float32", (1, 2), rows=((math.nan, -math.inf),))}).dumps()
    assert '["nan", "-inf"]' in text
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_tensors_lie_between_bait_at_their_offset() -> None:
    spec = TensorSpec("float32", (2, 3), rows=((1.0, 2.0, 3.0), (4.0, 5.0, 6.0)), strides=(4, 1), offset=1)
    view, storage = spec.build("cpu")
    assert view.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    guard = GUARD_BYTES // 4
    assert storage[: guard + 1].eq(BAIT_FLOAT).all()
    assert storage[-guard:].eq(BAIT_FLOAT).all()
    assert storage[guard + 1 + 3] == BAIT_FLOAT  # the gap between the rows
    assert len(storage) == 2 * guard + spec.storage_elements


def test_rows_repeat_cyclically() -> None:
    view, _ = TensorSpec("int32", (5, 1), rows=((1,), (2,))).build("cpu")
    assert view.flatten().tolist() == [1, 2, 1, 2, 1]


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "huge shape": ({"shape": [2**31, 2**31], "rows": None, "recipe": NORMAL}, "bytes"),
    "huge literal": ({"shape": [1, 2**33]}, "bytes"),
    "huge stride": ({"strides": [2**60, 1], "shape": [3, 2]}, "bytes"),
    "huge offset": ({"offset": 2**60}, "bytes"),
    "huge shape of stride 0": ({"shape": [2**40, 2], "strides": [0, 1]}, "elements"),
    "huge empty shape": ({"shape": [0, 10**30], "rows": []}, "sizes"),
    "overlapping rows": ({"shape": [4, 2], "strides": [1, 1]}, "overlap"),
    "inner stride 0": ({"strides": [2, 0]}, "overlap"),
    "three dimensions": ({"shape": [1, 1, 2]}, "two sizes"),
    "negative size": ({"shape": [-1, 2]}, "negative"),
    "negative stride": ({"strides": [2, -1]}, "strides"),
    "stride for each dimension": ({"strides": [1]}, "strides"),
    "negative offset": ({"offset": -1}, "offset"),
    "offset of a float": ({"offset": 1.0}, "offset"),
    "offset of a bool": ({"offset": True}, "offset"),
    "size of a bool": ({"shape": [True, 2]}, "shape"),
    "size of a float": ({"shape": [1.0, 2]}, "shape"),
    "shape of a string": ({"shape": "12"}, "shape"),
    "dtype": ({"dtype": "complex64"}, "dtype"),
    "dtype of a list": ({"dtype": ["float32"]}, "dtype|unhashable"),
    "unknown field": ({"stride": [1]}, "unknown fields: stride"),
    "rows and recipe": ({"recipe": NORMAL}, "exactly one"),
    "neither": ({"rows": None}, "exactly one"),
    "ragged": ({"shape": [2, 2], "rows": [[0.0, 1.0], [0.0]]}, "2 numbers"),
    "deeper rows": ({"rows": [[[0.0], 1.0]]}, "a literal"),
    "bool literal": ({"rows": [[True, 0.0]]}, "a literal"),
    "word": ({"rows": [["NaN", 0.0]]}, "a literal"),
    "null": ({"rows": [[None, 0.0]]}, "a literal"),
    "float for an int": ({"dtype": "int32"}, "an int"),
    "nan for an int": ({"dtype": "int32", "rows": [["nan", 0]]}, "an int"),
    "rows of an object": ({"rows": {"0": [0.0, 1.0]}}, "rows"),
    "recipe of a list": ({"rows": None, "recipe": ["normal"]}, "recipe"),
    "unknown recipe": ({"rows": None, "recipe": {"kind": "__import__('os')"}}, "kind"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_tensor_is_refused_by_name(name: str, tmp_path: Path) -> None:
    change, words = HOSTILE[name]
    with pytest.raises(CaseError, match=words) as caught:
        _read(tmp_path, _data(**change))
    assert "case.json" in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"moeproof_case": 2}, "format 1"),
        ({"op": "rm"}, "op is 'rm'"),
        ({"params": []}, "objects"),
        ({"params": {"topk": [1]}}, "params.topk"),
        ({"params": {"topk": None}}, "params.topk"),
        ({"tensors": {"logits": 3}}, "allowed: an object"),
        ({"note": 3}, "note"),
        ({"subject": "x"}, "unknown fields: subject"),
    ],
)
def test_a_hostile_case_is_refused_by_name(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=words):
        _read(tmp_path, _data() | change)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        "null",
        "{" * 100_000,
        "[" * 100_000 + "]" * 100_000,
        '{"moeproof_case": ' + "1" * 5000 + "}",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        json.dumps(_data()).replace("[[0.0, 1.0]]", "[" * 400 + "]" * 400),
    ],
    ids=["empty", "list", "null", "braces", "deep", "long int", "bytes", "deep rows"],
)
def test_text_that_is_no_case_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"case\.json"):
        _read(tmp_path, text)


def test_a_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    with path.open("wb") as file:
        file.truncate(MAX_FILE + 1)
    with pytest.raises(CaseError, match=f"{MAX_FILE + 1} bytes; allowed: {MAX_FILE}"):
        read_case(path)


def test_the_limit_counts_all_tensors_together() -> None:
    half = TensorSpec("float32", (MAX_BYTES // 8 + 4, 1), recipe=NORMAL)
    with pytest.raises(CaseError, match=r"the case needs \d+ bytes of input"):
        Case("append_shared_experts", {}, {"topk_weights": half, "shared_weights": half})


def test_nothing_is_allocated_before_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("full", "empty", "tensor", "zeros", "arange"):
        monkeypatch.setattr(torch, name, lambda *a, **k: pytest.fail("allocated"))
    change, _ = HOSTILE["huge shape"]
    with pytest.raises(CaseError):
        _read(tmp_path, _data(**change))
    assert _read(tmp_path, _data()).op == "fused_gate"  # nor by reading a sound one


def test_layouts_that_strategies_draw_are_within_the_limits(tmp_path: Path) -> None:
    for strides in ([0, 1], [1, 4], [5, 1], [2, 1]):
        rows = [[0.0, 1.0]] * 4
        case = _read(tmp_path, _data(shape=[4, 2], rows=rows, strides=strides))
        assert case.tensors["logits"].build("cpu")[0].tolist() == rows
    assert MAX_SIZE > 2**31
