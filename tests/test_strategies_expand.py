"""Recipes expand to the same bits everywhere, and each pattern has the property that its name says."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import pytest
import torch

from moeproof.strategies import expand as expand_module
from moeproof.strategies.case import TensorSpec
from moeproof.strategies.expand import check_recipe, expand, rows_of
from moeproof.strategies.recipe import ID_PATTERNS, SCORE_PATTERNS

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SCORES: dict[str, dict[str, Any]] = {
    "constant": {"value": -0.0},
    "levels": {"n": 5, "center": 1.0, "spread": 4.0},
    "normal": {"center": 0.0, "scale": 1.0, "quantised": False},
    "uniform": {"center": -8.0, "scale": 0.125, "quantised": True},
    "ulp": {"base": -1.25, "n": 8},
    "signed_zero": {},
    "denormal": {"n": 100},
    "saturated": {"sign": 0},
    "large": {"sign": -1},
    "boundary_tie": {"k": 8, "winners": 5, "ties": 9, "stride": 0, "value": 0.5},
    "planted": {"span": 4, "first": False},
    "sorted": {"descending": True, "disorder": 2},
    "group_max": {"groups": 8},
    "group_equal": {"groups": 8},
    "per_group": {"groups": 8, "center": -8.0, "spread": 4.0},
    "mask": {"keep": 3, "fill": -math.inf},
}
IDS: dict[str, dict[str, Any]] = {
    "one": {"expert": 3},
    "distinct": {},
    "uniform": {},
    "skewed": {"hot": 2, "share": 230},
    "subset": {"step": 3, "start": 1},
    "sorted": {},
    "runs": {"count": 16},
    "round_robin": {"experts": 10},
}


def scores(*blocks: dict[str, Any], seed: int = 1, edits: Any = ()) -> dict[str, Any]:
    return {"kind": "scores", "seed": seed, "blocks": list(blocks), "edits": list(edits)}


def ids(*blocks: dict[str, Any], experts: int = 60, seed: int = 1) -> dict[str, Any]:
    return {
        "kind": "ids",
        "seed": seed,
        "num_experts": experts,
        "blocks": list(blocks),
        "edits": [[1, 2, -1]],
    }


def block(name: str, **changes: Any) -> dict[str, Any]:
    return {"pattern": name, **SCORES[name], **changes}


def id_block(name: str, **changes: Any) -> dict[str, Any]:
    return {"pattern": name, **IDS[name], **changes}


def made(name: str, shape: tuple[int, int] = (64, 256), dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    recipe = scores(block(name, **changes))
    check_recipe(recipe)
    return expand(recipe, shape, dtype, "cpu")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(bits(tensor.cpu().contiguous()).numpy().tobytes()).hexdigest()[:16]


EVERYTHING = scores(
    *(block(n) for n in ("normal", "boundary_tie", "levels", "group_max")),
    block("denormal", special=math.nan, where="one", every=2),
    block("mask", special=math.inf, where="some", every=1),
    block("uniform"),
    block("sorted", special=-math.inf, where="all", every=3),
    seed=2**32 - 1,
    edits=[[0, 0, 5.0], [0, 0, -0.0], [3, 7, math.nan], [10**6, 0, 1.0]],
)
ALL_IDS = ids(
    *(id_block(n) for n in ("distinct", "skewed", "runs")),
    id_block("uniform", special=-1, where="some", every=2),
)
RECIPES: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    **{n: (scores(block(n)), torch.float32) for n in SCORES},
    **{f"ids_{n}": (ids(id_block(n)), torch.int32) for n in IDS},
    "everything_float32": (EVERYTHING, torch.float32),
    "everything_bfloat16": (EVERYTHING, torch.bfloat16),
    "everything_float16": (EVERYTHING, torch.float16),
    "ids_all": (ALL_IDS, torch.int64),
    "permutation": ({"kind": "permutation", "seed": 5, "size": 700, "minus_one": 30}, torch.int32),
    "slice": ({"kind": "slice", "start": 12, "count": 20}, torch.int32),
}
GOLDEN = {
    "constant": "34327f6df1b70a46",
    "levels": "c6206f6f1e190ef6",
    "normal": "e3fc587dcd99a395",
    "uniform": "8607e9673408e1bb",
    "ulp": "d5a039b6895de491",
    "signed_zero": "e4e2926e20fa3d4c",
    "denormal": "b2587ebc5a0188f9",
    "saturated": "ba70bf2885545209",
    "large": "2e5c2bbd37ee72d2",
    "boundary_tie": "c1e1072a624e3779",
    "planted": "ba46cbde79c54352",
    "sorted": "9cc2f35ecf83ea56",
    "group_max": "6b94c0df2b2d7087",
    "group_equal": "309b3b0fa137bea1",
    "per_group": "8ce3a6e6b1f45553",
    "mask": "0139f015d0aa1b2f",
    "ids_one": "e0abd5d73be204f4",
    "ids_distinct": "a558969b77a8f532",
    "ids_uniform": "bd59c3a7c2cfa303",
    "ids_skewed": "79930fc47e3d08b5",
    "ids_subset": "b60bda2e185ea385",
    "ids_sorted": "5a9e87ac8a7b9e67",
    "ids_runs": "c8c688bac7ff223c",
    "ids_round_robin": "7610939b9537f164",
    "everything_float32": "c4f5e55f828ccdcc",
    "everything_bfloat16": "4a151e331b90d9be",
    "everything_float16": "f5f2dbc9ea4241d3",
    "ids_all": "b39c96d1f70fdd5a",
    "permutation": "32860cb2f870bf14",
    "slice": "0b27822882f8dffc",
}


def test_every_pattern_is_tried() -> None:
    assert SCORES.keys() == SCORE_PATTERNS.keys()
    assert IDS.keys() == ID_PATTERNS.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_bits_never_change(name: str) -> None:
    recipe, dtype = RECIPES[name]
    check_recipe(recipe)
    assert digest(expand(recipe, (33, 20), dtype, "cpu")) == GOLDEN[name]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", RECIPES)
def test_bits_are_those_of_the_cpu_on_cuda(name: str) -> None:
    recipe, dtype = RECIPES[name]
    for shape in ((33, 20), (300, 384), (5, 9000)):
        assert digest(expand(recipe, shape, dtype, "cuda")) == digest(expand(recipe, shape, dtype, "cpu"))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("shape", [(33, 20), (300, 384), (5, 9000), (1, 1)])
def test_bits_are_the_same_made_by_torch(name: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    recipe, dtype = RECIPES[name]
    rows = [shape[0] - 1, 0]
    by_numpy = digest(expand(recipe, shape, dtype, "cpu")), digest(rows_of(recipe, shape, dtype, "cpu", rows))
    monkeypatch.setattr(expand_module, "_library", lambda device: torch)
    by_torch = digest(expand(recipe, shape, dtype, "cpu")), digest(rows_of(recipe, shape, dtype, "cpu", rows))
    assert by_torch == by_numpy


@pytest.mark.parametrize("name", RECIPES)
def test_rows_of_are_rows_of_expand(name: str) -> None:
    recipe, dtype = RECIPES[name]
    rows = [40, 3, 0, 10, 3]
    whole = bits(expand(recipe, (41, 20), dtype, "cpu"))
    assert torch.equal(bits(rows_of(recipe, (41, 20), dtype, "cpu", rows)), whole[rows])
    line = bits(expand(recipe, (41,), dtype, "cpu"))
    assert torch.equal(bits(rows_of(recipe, (41,), dtype, "cpu", torch.tensor(rows))), line[rows])


@pytest.mark.parametrize("blocks", [["constant"], ["constant", "normal"]], ids=["one", "two"])
def test_rows_of_a_constant_take_an_edit_in_one_element(blocks: list[str]) -> None:
    recipe = scores(*map(block, blocks), edits=[[2, 3, 5.0]])
    whole = expand(recipe, (5, 20), torch.float32, "cpu")
    assert float(whole[2, 3]) == 5.0
    assert torch.equal(rows_of(recipe, (5, 20), torch.float32, "cpu", [2, 0]), whole[[2, 0]])


@pytest.mark.parametrize("name", ["everything_float32", "ids_all", "slice"])
@pytest.mark.parametrize("shape", [(41, 20), (3, 9000), (5000,)])
def test_chunks_leave_no_seams(name: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, dtype = RECIPES[name]
    whole = expand(recipe, shape, dtype, "cpu")
    monkeypatch.setattr(expand_module, "CPU_CHUNK", 64)
    parts = expand(recipe, shape, dtype, "cpu")
    assert parts.is_contiguous()
    assert torch.equal(bits(parts), bits(whole))


def test_seeds_and_rows_and_columns_differ() -> None:
    x = expand(scores(block("normal"), seed=1), (64, 64), torch.float32, "cpu")
    y = expand(scores(block("normal"), seed=2), (64, 64), torch.float32, "cpu")
    assert (x == y).float().mean() < 0.01
    assert len(x.unique()) > 0.99 * x.numel()
    assert abs(torch.corrcoef(x).fill_diagonal_(0)).max() < 0.6
    assert abs(torch.corrcoef(x.T).fill_diagonal_(0)).max() < 0.6


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,), (), (1, 1)])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    for recipe, dtype in (RECIPES["everything_float32"], RECIPES["ids_all"], RECIPES["slice"]):
        assert expand(recipe, shape, dtype, "cpu").shape == shape


@pytest.mark.parametrize("name", [*RECIPES])
def test_tensors_are_contiguous_and_an_edit_changes_one_element(name: str) -> None:
    recipe, dtype = RECIPES[name]
    before = expand(recipe, (33, 20), dtype, "cpu")
    assert before.is_contiguous()
    if "edits" in recipe:
        after = expand({**recipe, "edits": [*recipe["edits"], [5, 5, 77]]}, (33, 20), dtype, "cpu")
        assert (bits(before) != bits(after)).nonzero().tolist() == [[5, 5]]


def test_normal_is_normal_like() -> None:
    x = made("normal", (500, 400), center=3.0, scale=2.0)
    assert abs(x.mean() - 3.0) < 0.02
    assert abs(x.std() - 2.0) < 0.02
    assert x.min() >= -3.0
    assert x.max() <= 9.0


def test_quantised_values_are_bfloat16_and_tie_across_place_eight() -> None:
    x = made("normal", (2000, 256), quantised=True)
    assert torch.equal(x, x.bfloat16().float())
    ordered = x.sort(dim=1, descending=True).values
    assert (ordered[:, 7] == ordered[:, 8]).float().mean() > 0.04


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("stride", [0, 1, 8, 32, 33, 100])
@pytest.mark.parametrize("value", [0.0, 1e4, -6.0])
def test_a_tie_straddles_place_k(dtype: torch.dtype, stride: int, value: float) -> None:
    x = made("boundary_tie", (50, 250), dtype, k=8, winners=5, ties=9, stride=stride, value=value)
    tied = x == torch.tensor(value, dtype=dtype)
    assert torch.equal((x > value).sum(1), torch.full((50,), 5))
    assert torch.equal(tied.sum(1), torch.full((50,), 9))
    if stride == 1:  # side by side, up to wrapping round
        assert ((tied & ~tied.roll(1, dims=1)).sum(1) == 1).all()
    if stride == 32:
        lanes = [{i % 32 for i in row.nonzero().flatten().tolist()} for row in tied]
        assert max(map(len, lanes)) <= 4


def test_ties_at_random_places_are_everywhere_and_share_lanes() -> None:
    tied = made("boundary_tie", (4000, 256)) == 0.5
    share = tied.float().mean(0)
    assert abs(share - 9 / 256).max() < 0.02
    lanes = tied.reshape(4000, 8, 32).sum(1)
    assert (lanes.max(dim=1).values > 1).float().mean() > 0.2


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("base", [1.25, -1.25, 6.5, 0.1, 0.0])
def test_ulp_values_are_neighbours(dtype: torch.dtype, base: float) -> None:
    found = made("ulp", dtype=dtype, base=base, n=8).unique()
    codes = bits(found).long().abs().sort().values
    assert len(found) == 8
    assert torch.equal(codes.diff(), torch.ones(7, dtype=torch.long))
    assert abs(found.float() - base).max() <= abs(base) * 0.1 + 1e-6


def test_signed_zeros_are_of_both_signs() -> None:
    x = made("signed_zero")
    assert (x == 0).all()
    assert 0.4 < torch.signbit(x).float().mean() < 0.6


def test_no_jitter_keeps_negative_zero_beside_a_jittered_block() -> None:
    x = expand(scores(block("signed_zero"), block("normal")), (64, 64), torch.float32, "cpu")
    assert torch.signbit(x[::2]).any()
    assert not x[::2].any()


@pytest.mark.parametrize("dtype", FLOATS)
def test_denormals_are_denormal(dtype: torch.dtype) -> None:
    x = made("denormal", dtype=dtype).double().abs()
    assert (x > 0).all()
    assert (x < torch.finfo(dtype).tiny).all()


@pytest.mark.parametrize("sign", [-1, 0, 1])
def test_saturated_and_large_have_their_sign_and_size(sign: int) -> None:
    for name in ("saturated", "large"):
        x = made(name, dtype=torch.float16, sign=sign).float()
        assert x.isfinite().all()
        assert abs(x).min() >= 17
        assert (x > 0).any() == (sign >= 0)
        assert (x < 0).any() == (sign <= 0)
        assert name == "saturated" or abs(x).max() == 65504


@pytest.mark.parametrize(("first", "span"), [(True, 1), (False, 1), (False, 32)])
def test_planted_winners_win(first: bool, span: int) -> None:
    chosen = made("planted", first=first, span=span).topk(span).indices
    assert chosen.min() >= (0 if first else 256 - span)
    assert chosen.max() < (span if first else 256)


def test_sorted_is_nearly_sorted() -> None:
    x = made("sorted", descending=False, disorder=0)
    assert (x.diff(dim=1) > 0).all()
    y = made("sorted", descending=True, disorder=16)
    assert 0.02 < (y.diff(dim=1) > 0).float().mean() < 0.5


def test_group_patterns() -> None:
    top = made("group_max").reshape(64, 8, 32).topk(3).values
    assert (top[..., 0] == top[..., 1]).all()
    assert (top[..., 1] > top[..., 2]).all()
    assert len(top[0, :, 0].unique()) > 1
    equal = made("group_equal").reshape(64, 8, 32)
    ordered = equal.sort(dim=2).values
    assert (ordered == ordered[:, :1]).all()
    assert not torch.equal(equal[:, 0], equal[:, 1])
    per_group = made("per_group").reshape(64, 8, 32)
    assert (per_group == per_group[..., :1]).all()
    assert len(per_group.unique()) > 1


def test_mask_keeps_few() -> None:
    x = made("mask")
    assert torch.equal(x.isfinite().sum(1), torch.full((64,), 3))
    assert len({tuple(r.isfinite().nonzero().flatten().tolist()) for r in x}) > 50


def test_levels_and_constant() -> None:
    assert made("levels").unique().tolist() == [-1.0, 0.0, 1.0, 2.0, 3.0]
    assert torch.signbit(made("constant")).all()
    assert made("constant", dtype=torch.float16, value=1e30).unique().tolist() == [65504.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("every", [1, 3])
def test_special_values(value: float, every: int) -> None:
    def where(place: str) -> torch.Tensor:
        x = made("normal", special=value, where=place, every=every)
        found = x.isnan() if math.isnan(value) else x == value
        assert not found[torch.arange(64) % every != 0].any()
        return found[::every]

    assert where("all").all()
    assert (where("one").sum(1) == 1).all()
    assert 0.08 < where("some").float().mean() < 0.17


def test_edits_come_last_and_stay_inside() -> None:
    x = expand(EVERYTHING, (33, 20), torch.float32, "cpu")
    assert x[0, 0] == 0
    assert torch.signbit(x[0, 0])
    assert x[3, 7].isnan()


def test_rows_have_the_pattern_of_their_block() -> None:
    x = expand(scores(block("constant", value=1.0), block("constant", value=2.0)), (5, 2), torch.float32, "cpu")
    assert x.tolist() == [[1, 1], [2, 2], [1, 1], [2, 2], [1, 1]]


def ids_of(name: str, shape: tuple[int, int] = (128, 10), experts: int = 60, **changes: Any) -> torch.Tensor:
    recipe = ids(id_block(name, **changes), experts=experts) | {"edits": []}
    check_recipe(recipe)
    return expand(recipe, shape, torch.int32, "cpu")


def test_id_patterns() -> None:
    assert all(len(set(row)) == 10 for row in ids_of("distinct").tolist())
    assert set(ids_of("distinct").flatten().tolist()) == set(range(60))
    assert any(len(set(row)) < 10 for row in ids_of("uniform").tolist())
    assert set(ids_of("uniform").flatten().tolist()) == set(range(60))
    assert ids_of("one").unique().tolist() == [3]
    assert ids_of("subset").unique().tolist() == list(range(1, 60, 3))
    counts = ids_of("skewed").flatten().bincount(minlength=60).sort(descending=True).values
    assert counts[:2].sum() > 0.8 * 1280
    ascending = ids_of("sorted").flatten()
    assert (ascending.diff() >= 0).all()
    assert ascending[-1] == 59
    assert ids_of("runs", (60, 16)).flatten().bincount().tolist() == [16] * 60
    assert ids_of("round_robin", (10, 4)).flatten().bincount().tolist() == [4] * 10
    minus_one = ids_of("uniform", special=-1, where="all", every=2)
    assert torch.equal((minus_one == -1).all(1), torch.arange(128) % 2 == 0)


def test_permutation_and_slice() -> None:
    recipe = {"kind": "permutation", "seed": 3, "size": 100, "minus_one": 0}
    assert sorted(expand(recipe, (100,), torch.int32, "cpu").tolist()) == list(range(100))
    holes = expand({**recipe, "minus_one": 128}, (100,), torch.int32, "cpu")
    assert 20 < (holes == -1).sum() < 80
    part = expand({"kind": "slice", "start": 2, "count": 3}, (7,), torch.int32, "cpu")
    assert part.tolist() == [-1, -1, 0, 1, 2, -1, -1]


NORMAL = block("normal")
BAD: dict[str, tuple[Any, str]] = {
    "not an object": ([], "recipe is"),
    "kind": ({"kind": "noise"}, "recipe.kind is 'noise'"),
    "no seed": ({"kind": "scores", "blocks": [NORMAL], "edits": []}, "lacks seed"),
    "unknown": ({**scores(NORMAL), "rows": 5}, "'rows'"),
    "seed": (scores(NORMAL, seed=-1), "recipe.seed is -1"),
    "bool seed": (scores(NORMAL, seed=True), "recipe.seed is True"),
    "no blocks": (scores(), "recipe.blocks is"),
    "nine blocks": (scores(*[NORMAL] * 9), "1 to 8"),
    "block": ({**scores(), "blocks": [3]}, r"blocks\[0\] is 3"),
    "pattern": (scores({"pattern": "gauss"}), "'gauss'"),
    "pattern list": (scores({"pattern": ["normal"]}), "pattern is"),
    "huge n": (scores(block("levels", n=10**12)), "n is 1000000000000; allowed: int from 1 to 8192"),
    "zero n": (scores(block("levels", n=0)), "n is 0"),
    "nan spread": (scores(block("levels", spread=math.nan)), "spread is nan"),
    "huge centre": (scores(block("normal", center=1e9)), "center is 1000000000.0"),
    "long int": (scores(block("constant", value=10**400)), "value is"),
    "text": (scores(block("constant", value="x")), "value is 'x'"),
    "where": (scores(block("normal", special=1.0, where="most", every=1)), "where is 'most'"),
    "where list": (scores(block("normal", special=1.0, where=[], every=1)), "where is"),
    "special alone": (scores(block("normal", special=1.0)), "lacks every, where"),
    "every": (scores(block("normal", special=1.0, where="all", every=0)), "every is 0"),
    "edits": (scores(NORMAL, edits=[[0, 0, 1.0]] * 65), "at most 64"),
    "edit": (scores(NORMAL, edits=[[0, 1.0]]), r"edits\[0\]"),
    "edit row": (scores(NORMAL, edits=[[-1, 0, 1.0]]), "row is -1"),
    "experts": (ids(id_block("uniform"), experts=10**9), "num_experts is 1000000000"),
    "float id": (ids(id_block("uniform", special=0.5, where="all", every=1)), "special is 0.5"),
    "score pattern for ids": (ids(NORMAL), "'normal'"),
    "permutation": ({"kind": "permutation", "seed": 1, "size": 10**9, "minus_one": 0}, "size is 1000000000"),
    "slice": ({"kind": "slice", "start": 0, "count": 10**9}, "count is 1000000000"),
}


@pytest.mark.parametrize("name", BAD)
def test_malformed_recipes_are_refused(name: str) -> None:
    recipe, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        check_recipe(recipe)


def test_scores_refuse_integers_and_rows_outside() -> None:
    with pytest.raises(ValueError, match=r"dtype is torch\.int32"):
        expand(scores(NORMAL), (2, 2), torch.int32, "cpu")
    with pytest.raises(ValueError, match=r"allowed: 0 to 4"):
        rows_of(scores(NORMAL), (5, 2), torch.float32, "cpu", [5])


def test_a_case_holds_any_recipe() -> None:
    for name, (recipe, dtype) in RECIPES.items():
        spec = TensorSpec(str(dtype).removeprefix("torch."), (33, 20), recipe=recipe)
        revived = TensorSpec.from_json(json.loads(json.dumps(spec.to_json())))
        assert digest(revived.contents("cpu")) == digest(spec.contents("cpu")), name
