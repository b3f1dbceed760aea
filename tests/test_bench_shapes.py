"""Shapes, suites and inputs of the benchmark."""

from __future__ import annotations

import pytest
import torch

from moeproof.strategies.domain_check import why_outside
from moeproof.verify.bench.inputs import (
    FEW_SETS,
    LEAST_SETS,
    TIMES_CACHE,
    count_sets,
    distinct_ids,
    input_bytes,
    make_inputs,
    output_bytes,
    skewed_ids,
)
from moeproof.verify.bench.shapes import NAMES, SUITES, Shape, ShapeError, parse, suite
from moeproof.verify.contract import judge, output_specs
from moeproof.verify.subject import find

H100_CACHE = 50 << 20


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("gate:E=256,T=1", ["gate E=256 T=1"]),
        ("gate:E=256/384,T=1/8", ["gate E=256 T=1", "gate E=256 T=8", "gate E=384 T=1", "gate E=384 T=8"]),
        ("gate:E=256,T=4,groups=8,kept=4,dtype=bfloat16", ["gate E=256 dtype=bfloat16 groups=8 kept=4 T=4"]),
        ("gate:E=64,T=4,scoring=softmax,bias=0,k=6", ["gate E=64 k=6 scoring=softmax bias=0 T=4"]),
        ("align:E=64,ids=8192", ["align E=64 block=64 ids=8192"]),
        ("align:E=64,T=2,k=4,block=16,skewed=1", ["align E=64 k=4 block=16 skewed=1 ids=8"]),
        ("append:E=64,T=3,shared=2", ["append E=64 shared=2 T=3"]),
    ],
)
def test_shapes_are_read(text: str, labels: list[str]):
    assert [s.label for s in parse(text)] == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gates:E=1,T=1", "shape is 'gates:E=1,T=1'; allowed: OP:KEY=VALUE"),
        ("gate:E=256", "shape is 'gate:E=256'; allowed: one with E and T"),
        ("gate:T=1", "allowed: one with E and T"),
        ("align:E=64", "allowed: one with E and ids or T"),
        ("gate:E=256,T=x", "T is 'x'; allowed: an int"),
        ("gate:E=256,T=-1", "T is '-1'; allowed: an int"),
        ("gate:E=256,T=0", "allowed: at least one token"),
        ("gate:E=256,T=1,block=4", "'block' in shape .*; allowed for gate: E, T"),
        ("gate:E=256,T=1,dtype=int8", "dtype is 'int8'; allowed: float32, bfloat16, float16"),
        ("gate:E=256,T=1,scoring=tanh", "scoring is 'tanh'; allowed: sigmoid"),
        ("gate:E=256,T=1,groups=7,kept=2", "num_expert_group is 7; allowed: a divisor"),
        ("gate:E=4,T=1", "k from 1 to E"),
        ("align:E=64,ids=9", "ids is 9; allowed: a multiple of k=8"),
    ],
)
def test_shapes_that_make_no_sense_are_refused(text: str, message: str):
    with pytest.raises(ShapeError, match=message):
        parse(text)


def test_unknown_suite_is_refused():
    with pytest.raises(ShapeError, match="suite is 'gates'; allowed: gate, softmax, align, append"):
        suite(["gates"])


def test_suites_hold_different_shapes_with_labels_of_their_own():
    shapes = suite([])
    assert len(shapes) == sum(map(len, SUITES.values())) == len(set(shapes)) == len({s.label for s in shapes})
    assert suite(["append", "append"]) == list(SUITES["append"])


def test_own_kernels_claim_every_shape_of_the_suites():
    domains = {
        s.op: s.domain for s in find(["own:fused_gate", "own:moe_align_block_size", "own:append_shared_experts"])
    }
    for shape in suite([]):
        assert why_outside(shape.case(), domains[NAMES[shape.op]]) is None, shape.label


@pytest.mark.parametrize("experts", [8, 9, 64, 257])
def test_ids_are_distinct_in_a_row_and_equally_likely(experts: int):
    ids = distinct_ids(20000, 8, experts, torch.Generator().manual_seed(1))
    assert ids.shape == (20000, 8)
    assert (ids.sort(1).values.diff(dim=1) > 0).all()
    assert ids.min() == 0
    assert ids.max() == experts - 1
    for places in (ids, ids[:, :1], ids[:, -1:]):
        share = torch.bincount(places.flatten(), minlength=experts) * experts / places.numel()
        # Five standard deviations of a binomial share.
        assert (share - 1).abs().max() < 5 * (experts / places.numel()) ** 0.5


def test_skewed_ids_are_distinct_and_a_few_experts_are_busy():
    ids = skewed_ids(5000, 4, 128, torch.Generator().manual_seed(1))
    assert (ids.sort(1).values.diff(dim=1) > 0).all()
    counts = torch.bincount(ids.flatten(), minlength=128).sort(descending=True).values
    assert counts[0] > 10 * counts[64]
    assert counts[-1] > 0


@pytest.mark.parametrize("text", ["gate:E=40,T=3,dtype=bfloat16", "align:E=64,ids=24", "append:E=64,T=5,shared=2"])
def test_inputs_are_random_aligned_and_what_the_contract_asks_for(text: str):
    (shape,) = parse(text)
    case = shape.case()
    one, two, again = (make_inputs(shape, torch.device("cpu"), seed) for seed in (1, 2, 1))
    assert set(one.args) == {*case.tensors, *case.params}
    for name, spec in case.tensors.items():
        value = one.args[name]
        assert tuple(value.shape) == spec.shape
        assert str(value.dtype) == f"torch.{spec.dtype}"
        assert value.data_ptr() % 64 == 0
        assert value.is_contiguous()
        assert value.float().std() > 0
        assert torch.equal(value, again.args[name])
        assert not torch.equal(value, two.args[name])
    assert input_bytes(case) == sum(one.args[n].nbytes for n in case.tensors) <= one.storage.numel()


@pytest.mark.parametrize("text", ["gate:E=40,T=3", "align:E=64,ids=24,skewed=1", "append:E=64,T=5"])
def test_the_oracle_accepts_the_reference_on_these_inputs(text: str):
    (shape,) = parse(text)
    (subject,) = find([f"torch:{NAMES[shape.op]}"])
    args = make_inputs(shape, torch.device("cpu"), 3).args
    assert judge(shape.case(), subject, args, subject.load()(args, {}) or {}) == []


def test_bytes_are_those_of_the_roofline():
    shape = Shape("gate", 65536, 256)
    (subject,) = find(["own:fused_gate"])
    assert input_bytes(shape.case()) == 4 * 65536 * 256 + 4 * 256
    assert output_bytes(output_specs(shape.case(), subject)) == 65536 * 8 * 8


@pytest.mark.parametrize("megabytes", [0.001, 1, 3.1, 3.2, 10, 70, 500])
def test_inputs_are_either_all_cached_or_none_is(megabytes: float):
    size = int(megabytes * 2**20)
    sets, cold = count_sets(size, H100_CACHE)
    if cold:
        assert sets * size >= TIMES_CACHE * H100_CACHE
        assert sets >= LEAST_SETS
        assert (sets - 1) * size > H100_CACHE
    else:
        assert sets == FEW_SETS
        assert sets * size <= H100_CACHE / 2
    assert cold == (megabytes > 3.125)
