"""What kernels compute on the executor is what CUDA defines."""

from __future__ import annotations

import re
import struct
import threading

import numpy as np
import pytest
import torch
from simt import FOLDER, SCHEDULES, needs_compiler

from moeproof.verify.simt import LaunchError, Program, Schedule, Session

pytestmark = needs_compiler
program = Program(FOLDER / "values.cu", *re.findall(r"__global__ void (\w+)", (FOLDER / "values.cu").read_text()))
VALUES = torch.tensor([(i * 7 + i // 5) % 9 for i in range(32)], dtype=torch.int32)


def _ints(size: int) -> torch.Tensor:
    return torch.full((size,), -9, dtype=torch.int32)


def _words(values: list[int]) -> list[int]:
    return [v & 0xFFFFFFFF for v in values]


def _shuffled(kind: str, argument: int, width: int) -> list[int]:
    found = []
    for lane in range(32):
        low, high = lane & ~(width - 1), lane | (width - 1)
        source = {
            "idx": low | (argument & (width - 1)),
            "up": lane - argument if lane - argument >= low else lane,
            "down": lane + argument if lane + argument <= high else lane,
            "xor": lane ^ argument if lane ^ argument <= high else lane,
        }[kind]
        found.append(int(VALUES[source]))
    return found


@pytest.mark.parametrize(("argument", "width"), [(0, 32), (3, 32), (31, 32), (5, 8), (1, 2), (16, 16), (4, 4)])
def test_shuffles(argument: int, width: int) -> None:
    out = _ints(128)
    with Session({"in": VALUES}, {"out": out}, schedule=Schedule("random", argument)):
        program.launch("shuffles", 1, 32, VALUES, out, argument, width)
    wanted = [_shuffled(kind, argument, width) for kind in ("idx", "up", "down", "xor")]
    assert out.reshape(4, 32).tolist() == wanted


def test_a_shuffle_moves_8_bytes() -> None:
    values, out = torch.randn(32, dtype=torch.float64), torch.empty(32, dtype=torch.float64)
    with Session({"in": values}, {"out": out}):
        program.launch("wide_shuffle", 1, 32, values, out)
    assert torch.equal(out, values.flip(0))


@pytest.mark.parametrize("schedule", SCHEDULES[::3], ids=str)
def test_votes(schedule: Schedule) -> None:
    out = _ints(160)
    with Session({"in": VALUES}, {"out": out}, schedule=schedule):
        program.launch("votes", 1, 32, VALUES, out)
    values = VALUES.tolist()
    ballot, some, peers, matched, alike = out.reshape(5, 32).tolist()
    assert _words(ballot) == [sum((v > 2) << i for i, v in enumerate(values))] * 32
    for lane, value in enumerate(values):
        mine = [i for i in range(32) if i % 2 == lane % 2]
        assert some[lane] == 1 + 2 * any(values[i] > 6 for i in mine)
        assert peers[lane] & 0xFFFFFFFF == sum((v == value) << i for i, v in enumerate(values))
        same = len({values[i] & 1 for i in mine}) == 1
        assert alike[lane] == same
        assert matched[lane] & 0xFFFFFFFF == (sum(1 << i for i in mine) if same else 0)


def test_reductions() -> None:
    out = _ints(256)
    with Session({"in": VALUES}, {"out": out}, schedule=Schedule("random", 5)):
        program.launch("reductions", 1, 32, VALUES, out)
    rows = out.reshape(8, 32).tolist()
    for lanes in (range(12), range(12, 32)):
        signed = [int(VALUES[i]) - 4 for i in lanes]
        words = _words(signed)
        wanted = [sum(signed), min(signed), max(signed), min(words), max(words)]
        wanted += [int(f.reduce(np.array(words, np.uint32))) for f in (np.bitwise_and, np.bitwise_or, np.bitwise_xor)]
        for lane in lanes:
            assert _words([row[lane] for row in rows]) == _words(wanted)


def test_barriers_that_count() -> None:
    out = _ints(288)
    with Session({"in": VALUES}, {"out": out}, schedule=Schedule("longest_first")):
        program.launch("barriers", 1, 96, VALUES, out)
    many = 3 * int((VALUES > 2).sum())
    assert out.tolist() == [many] * 96 + [1] * 96 + [0] * 96


@pytest.mark.parametrize("schedule", SCHEDULES[::3], ids=str)
def test_atomics(schedule: Schedule) -> None:
    ints = torch.zeros(4, dtype=torch.int32)
    words = torch.tensor([-1, 0, 0, 0, 0, -1, 0, 0], dtype=torch.int32)
    longs, floats = torch.zeros(6, dtype=torch.int64), torch.zeros(1)
    buffers = {"ints": ints, "words": words, "longs": longs, "floats": floats}
    with Session(updated=buffers, schedule=schedule):
        program.launch("atomics", 1, 64, *buffers.values())
    total = sum(range(64))
    assert ints.tolist() == [total, -total, -63, 0]
    got = _words(words.tolist())
    assert got[:3] == [1, 0xFFFFFFFF, 0]
    assert got[3] == 64 % 10
    assert got[4] == (7 - 64 % 7) % 7
    assert got[5:7] == [0x80000000, 0x8000003F]
    assert 1 <= got[7] <= 64
    assert longs.tolist() == [64 << 33, 63 << 40, 0, 77, 8, 1]
    assert floats.item() == 32.0


def test_bits() -> None:
    out = _ints(256)
    with Session({"in": VALUES}, {"out": out}):
        program.launch("bits", 1, 32, VALUES, out)
    rows = [_words(row) for row in out.reshape(8, 32).tolist()]
    for lane, value in enumerate(VALUES.tolist()):
        x = value * 0x01234567 & 0xFFFFFFFF
        both = (~x & 0xFFFFFFFF) << 32 | x
        wanted = [
            x.bit_count(),
            32 - x.bit_length(),
            (x & -x).bit_length(),
            int(f"{x:032b}"[::-1], 2),
            sum((both >> 8 * byte & 255) << 8 * i for i, byte in enumerate((5, 1, 7, 3))),
            both << lane >> 32 & 0xFFFFFFFF,
            x * 0xDEADBEEF >> 32,
            1,
        ]
        assert [row[lane] for row in rows] == wanted


def test_small_floats_round_as_torch_does() -> None:
    nasty = [0.0, -0.0, 1.0, 65504.0, 65519.9, 65520.0, 1e38, -1e38, 2**-24, 2**-25, 1.5 * 2**-25, 6e-8, 6.1e-5, 1e-40]
    nasty += [
        float("inf"),
        float("-inf"),
        float("nan"),
        1.00048828125,
        1.00146484375,
        3.3895e38,
        1.00390625,
        1.01171875,
    ]
    values = torch.tensor([*nasty, *torch.randn(32 - len(nasty)).tolist()])
    halves, bfloats = (torch.empty(32, dtype=torch.int16) for _ in range(2))
    back = torch.empty(64)
    with Session({"in": values}, {"halves": halves, "bfloats": bfloats, "back": back}):
        program.launch("small_floats", 1, 32, values, halves, bfloats, back)
    for got, dtype, again in ((halves, torch.float16, back[:32]), (bfloats, torch.bfloat16, back[32:])):
        wanted = values.to(dtype)
        real = ~values.isnan()
        assert torch.equal(got[real], wanted.view(torch.int16)[real])
        assert torch.equal(again[real], wanted.float()[real])
        assert again[~real].isnan().all()


def test_conversions_to_integers_saturate() -> None:
    values = torch.tensor([0.5, 1.5, -1.5, 3e9, -3e9, 5e9, float("nan"), float("inf"), -0.9] + [0.0] * 23)
    rounded, down, words = _ints(32), _ints(32), _ints(32)
    with Session({"in": values}, {"rounded": rounded, "down": down, "words": words}):
        program.launch("integers", 1, 32, values, rounded, down, words)
    top = 2**31 - 1
    assert rounded[:9].tolist() == [0, 2, -2, top, -top - 1, top, 0, top, -1]
    assert down[:9].tolist() == [0, 1, -2, top, -top - 1, top, 0, top, -1]
    assert _words(words[:9].tolist()) == [0, 1, 0, 3000000000, 0, 2**32 - 1, 0, 2**32 - 1, 0]


def test_a_fast_tanh_errs_as_far_as_documented() -> None:
    small = torch.linspace(-3, 3, 26).tolist()
    values = torch.tensor([*small, 0.0, 40.0, -40.0, float("inf"), float("-inf"), float("nan")])
    out = torch.empty(32)
    with Session({"in": values}, {"out": out}):
        program.launch("fast_tanh", 1, 32, values, out)
    wanted = torch.tanh(values[:26].double())
    error = (out[:26] - wanted) / wanted
    assert 2.0**-12 < error.abs().max() <= 2.0**-11
    assert error.min() < 0 < error.max()
    assert out[26:31].tolist() == [0, 1, -1, 1, -1]
    assert out[31].isnan()


@pytest.mark.parametrize("schedule", SCHEDULES[::3], ids=str)
def test_three_dimensions(schedule: Schedule) -> None:
    out = _ints(2 * 3 * 2 * 4 * 3 * 2)
    with Session({}, {"out": out}, schedule=schedule):
        program.launch("indices", (2, 3, 2), (4, 3, 2), out)
    places = np.array([[z * 100 + y * 10 + x for z in range(2) for y in range(3) for x in range(4)]])
    blocks = np.array([z * 100000 + y * 10000 + x * 1000 for z in range(2) for y in range(3) for x in range(2)])
    assert out.tolist() == (blocks[:, None] + places).flatten().tolist()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_lanes_that_happen_to_be_together(schedule: Schedule) -> None:
    counter, out = torch.zeros(1, dtype=torch.int32), torch.zeros(22, dtype=torch.int32)
    with Session(updated={"counter": counter, "out": out}, schedule=schedule):
        program.launch("opportunistic", 1, 64, counter, out)
    assert out.tolist() == [1] * 22


def test_arguments_of_every_kind() -> None:
    out = _ints(6)
    pair = struct.pack("<qf4x", 12345, 2.5)
    with Session({}, {"out": out}):
        program.launch("arguments", 1, 1, pair, 200, 3.75, None, True, out)
    assert out.tolist() == [12345, 10, 200, 3, 1, 1]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_blocks_have_shared_memory_of_their_own(schedule: Schedule) -> None:
    out = _ints(9 * 32)
    with Session({}, {"out": out}, schedule=schedule):
        program.launch("own_shared", 9, 32, out)
    assert out.tolist() == [b * 100 + (i + 8) % 32 for b in range(9) for i in range(32)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((b"", 200, 3.75, None, True, None), r"argument 0 of arguments is b''; allowed: 16 bytes"),
        ((bytes(16), 300, 3.75, None, True, None), r"argument 1 .* is 300; allowed: an int >= 0 of 8 bits"),
        ((bytes(16), 1, "x", None, True, None), r"argument 2 .* is 'x'; allowed: a number"),
        ((bytes(16), 1, 1, 7, True, None), r"argument 3 .* is 7; allowed: a tensor or None"),
        ((bytes(16), 1), r"is given 2 arguments; allowed: 6"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[object, ...], says: str) -> None:
    with Session(), pytest.raises(LaunchError, match=says):
        program.launch("arguments", 1, 1, *arguments)


def test_a_launch_outside_a_session_is_refused() -> None:
    with pytest.raises(LaunchError, match="within `with Session"):
        program.launch("own_shared", 1, 32, _ints(32))


def test_a_launch_shape_is_checked() -> None:
    with Session(), pytest.raises(LaunchError, match=r"grid is 0; allowed: one to three ints >= 1"):
        program.launch("own_shared", 0, 32, _ints(32))
    with Session(), pytest.raises(LaunchError, match=r"shared is -1; allowed: 0 to \d+ bytes"):
        program.launch("own_shared", 1, 32, _ints(32), shared=-1)


def test_any_thread_of_the_process_may_launch() -> None:
    results: list[list[int]] = []

    def work() -> None:
        out = _ints(9 * 32)
        with Session({}, {"out": out}, schedule=Schedule("random", 3)):
            program.launch("own_shared", 9, 32, out)
        results.append(out.tolist())

    work()
    for _ in range(2):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert results == [results[0]] * 3
