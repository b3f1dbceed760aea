"""Devices that own kernels are planned for on the executor: plans stay sound, and small inputs take every path."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from simt import needs_compiler

from moeproof.kernels import align_plan
from moeproof.kernels.align_plan import AlignPlan
from moeproof.verify import corpus
from moeproof.verify.execute import Runner
from moeproof.verify.simt import own
from moeproof.verify.simt.devices import DEVICES, device_of, standing_in
from moeproof.verify.simt.subjects import MODULES, SOURCES

OP = "moe_align_block_size"
NUMBERS = ("FEW_CHUNKS", "OWN", "TILES", "MIN_TILE", "WARPS", "CHUNKS", "MANY_TILES")
USUAL = {name: getattr(align_plan, name) for name in NUMBERS}
SIZES = [*itertools.product((1, 63, 65, 257, 600, 1000, 2048, 3000, 65536), (5, 64, 600, 4096), range(1, 6))]


def planned(numel: int, experts: int, block_size: int) -> AlignPlan:
    device = SimpleNamespace(sm_count=0)
    with standing_in(device, OP, {"num_experts": experts, "block_size": block_size}):
        return align_plan.plan(numel, experts, block_size, sm_count=device.sm_count, capability=(8, 0))


def test_every_op_has_devices() -> None:
    assert DEVICES.keys() == MODULES.keys()
    assert {device_of(OP, {"num_experts": e, "block_size": b}).sm_count for _, e, b in SIZES} == {2, 24, 256}


@pytest.mark.parametrize("device", range(len(DEVICES[OP])))
def test_plans_of_every_device_hold_what_the_kernels_assume(device: int) -> None:
    for numel, experts, block_size in SIZES:
        if (experts + block_size) % len(DEVICES[OP]) != device:
            continue
        chosen = planned(numel, experts, block_size)
        assert chosen.place in align_plan.instantiations()
        assert (chosen.tiles - 1) * chosen.tile_length < numel <= chosen.tiles * chosen.tile_length
        assert chosen.own <= 32 * chosen.rank_warps * chosen.chunks
        assert chosen.rank_warps <= USUAL["WARPS"]
        assert chosen.chunks <= USUAL["CHUNKS"]
        if chosen.variant == "few":
            per, ids, chunks = map(int, chosen.place.removeprefix("align_few<").rstrip(">").split(", "))
            assert chosen.own <= 32 * chunks
            assert per * align_plan.THREADS >= experts
            assert ids * align_plan.THREADS >= numel
        else:
            assert chosen.own <= min(chosen.tile_length, 4096)
            counts, padded = 2 * chosen.rank_warps * experts, -(-experts // 8) * 8
            staged = chosen.place == align_plan.PLACE[True]
            most = max(counts, 4 * chosen.own) if staged else counts
            assert chosen.shared >= 4 * ((3 if staged else 2) * padded + align_plan.MAX_SLICES + 4) + most


def test_a_few_thousand_ids_take_every_path() -> None:
    """Paths that the usual numbers keep for hundreds of thousands of ids, or for large devices."""
    plans = [planned(*size) for size in SIZES if size[0] < 4096]
    scanned = [p for p in plans if p.variant == "scanned"]
    assert {p.place for p in plans} == set(align_plan.instantiations()[:6]) | set(align_plan.PLACE)
    rounds = {(p.place, min(3, -(-p.tile_length // p.own))) for p in scanned}
    assert rounds == set(itertools.product(align_plan.PLACE, (1, 2, 3)))
    assert {p.chunks for p in scanned} >= {1, 2, 8}
    assert {p.rank_warps for p in scanned} == {1, 3, 16}
    runs = {-(-p.tiles // USUAL["WARPS"]) for p in scanned}
    assert 1 in runs
    assert any(2 <= run <= 8 for run in runs)
    assert any(run > 8 for run in runs), "a run of tiles in several batches"


def test_the_usual_numbers_come_back() -> None:
    def fails() -> None:
        with standing_in(SimpleNamespace(sm_count=0), OP, {"num_experts": 3, "block_size": 1}):
            seen.append(align_plan.OWN)
            raise KeyError

    seen: list[int] = []
    with pytest.raises(KeyError):
        fails()
    assert seen == [DEVICES[OP][4].align["OWN"]]
    assert {name: getattr(align_plan, name) for name in NUMBERS} == USUAL


@needs_compiler
@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("rounds-wide", "starts[e] += masks[e];", ";"),
        ("many-tiles", "at += counts[j];", "at = counts[j];"),
        ("last-slice", "if (lane == 31) bases", "if (lane == 30) bases"),
        ("hundreds-of-ids", "tid + j * THREADS < first", "tid - j * THREADS < first"),
        ("minus-one-before-last", "if (expert < 0) peers = 0;", ";"),
        ("over-255-apart", "+ e] = (unsigned short)sum;", "+ e] = (unsigned char)sum;"),
        ("over-255-wide", "*count = (unsigned short)sum;", "*count = (unsigned char)sum;"),
        ("one-over-a-tile", "begin < tile_end; begin += p.own", "begin < tile_end - 1; begin += p.own"),
    ],
)
def test_a_small_case_of_the_corpus_tells(name: str, good: str, bad: str, tmp_path: Path) -> None:
    changed = 0
    for file in SOURCES.glob("*.cu*"):
        text = file.read_text()
        changed += text.count(good)
        (tmp_path / file.name).write_text(text.replace(good, bad))
    assert changed == 1
    case = corpus.read_case(corpus.SHIPPED / OP / f"{name}.json")
    assert not Runner(own(OP), torch.device("cpu")).run(case).violations
    assert Runner(own(OP, tmp_path), torch.device("cpu")).run(case).violations
