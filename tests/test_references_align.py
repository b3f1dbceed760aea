"""Hand-computed examples of every rule of `moe_align_block_size`, for each family of references.

Run with NUMBA_ENABLE_CUDASIM=1 they include the Numba references in Numba's simulator.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

import pytest
import torch

GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"))
SIMULATED = [("numba_ref", "cpu")] if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else []
FAMILIES = [
    *(pytest.param(p, id="-".join(p)) for p in [("gold", "cpu"), ("torch_ref", "cpu"), *SIMULATED]),
    *(pytest.param((f, "cuda"), id=f"{f}-cuda", marks=GPU) for f in ("gold", "torch_ref", "numba_ref")),
]
Align = Callable[..., tuple[list[int], list[int], list[int]]]


def placed(tensor: torch.Tensor, device: str) -> torch.Tensor:
    """Return the tensor on `device` with its strides and offset (`Tensor.to` may make it contiguous)."""
    storage = tensor.new_empty(0).set_(tensor.untyped_storage()).to(device)
    return storage.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())


@pytest.fixture(params=FAMILIES)
def align(request: pytest.FixtureRequest) -> Align:
    family, device = request.param
    function = importlib.import_module(f"moeproof.references.{family}").moe_align_block_size

    def call(
        ids: torch.Tensor, experts: int, block: int, expert_map: list[int] | None = None
    ) -> tuple[list[int], list[int], list[int]]:
        table = None if expert_map is None else torch.tensor(expert_map, dtype=torch.int32, device=device)
        on_device = placed(ids, device)
        outputs = function(on_device, experts, block, expert_map=table)
        assert torch.equal(on_device.cpu(), ids)
        assert all(o.dtype == torch.int32 and o.device.type == device for o in outputs)
        return tuple(o.tolist() for o in outputs)

    return call


# name: (ids, E, B, map, sorted_token_ids, expert_ids, num_tokens_post_pad)
EXAMPLES: dict[str, tuple[list[list[int]], int, int, list[int] | None, list[int], list[int], int]] = {
    "grouped": ([[1, 0], [1, 2]], 3, 2, None, [1, 4, 0, 2, 3, 4], [0, 1, 2], 6),
    "one expert, tail": ([[2, 2], [2, 2]], 3, 4, None, [0, 1, 2, 3] + [4] * 8, [2, -1, -1], 4),
    "two blocks of one": ([[0, 0, 0]], 2, 2, None, [0, 1, 2, 3], [0, 0], 4),
    "fewer ids than experts": ([[4]], 5, 4, None, [0, 1, 1, 1], [4], 4),
    "block of 1": ([[1, 0], [-1, 1]], 2, 1, None, [1, 0, 3, 4], [0, 1, 1, -1], 3),
    "block above all ids": ([[1], [0]], 2, 5, None, [1, 2, 2, 2, 2, 0, 2, 2, 2, 2], [0, 1], 10),
    "dropped": ([[-1, 0], [3, -7], [2, 0]], 3, 2, None, [1, 5, 4, 6, 6, 6, 6, 6], [0, 2, -1, -1], 4),
    "none valid": ([[-1, -1]], 1, 2, None, [2, 2], [-1], 0),
    "map": ([[0, 1, 2]], 3, 2, [1, -1, 0], [2, 3, 0, 3, 3, 3], [0, 1, -1], 4),
    "map joins experts": ([[2, 0, 1]], 3, 2, [1, 1, 1], [0, 1, 2, 3, 3, 3], [1, 1, -1], 4),
    "map and ids without": ([[-1, 0], [9, 1]], 2, 1, [1, 0], [3, 1, 4, 4], [0, 1, -1, -1], 2),
    "last id, map reversed": ([[3, 3, 0]], 4, 1, [3, 2, 1, 0], [0, 1, 2], [0, 0, 3], 3),
}


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("name", EXAMPLES)
def test_example(align: Align, name: str, dtype: torch.dtype) -> None:
    ids, experts, block, expert_map, sorted_token_ids, expert_ids, total = EXAMPLES[name]
    result = align(torch.tensor(ids, dtype=dtype), experts, block, expert_map)
    assert result == (sorted_token_ids, expert_ids, [total])


@pytest.mark.parametrize("expert_map", [None, [0, 1, 2]])
def test_an_id_past_32_bits_is_not_taken_for_its_low_half(align: Align, expert_map: list[int] | None) -> None:
    ids = torch.tensor([[2**32 + 1, 1, -(2**32)]])
    assert align(ids, 3, 1, expert_map) == ([1, 3, 3], [1, -1, -1], [1])


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_no_ids(align: Align, shape: tuple[int, int]) -> None:
    assert align(torch.empty(shape, dtype=torch.int32), 4, 8) == ([], [], [0])


@pytest.mark.parametrize("layout", ["transposed", "row_stride", "broadcast"])
def test_layouts(align: Align, layout: str) -> None:
    ids = torch.tensor([[1, 0], [1, 1]], dtype=torch.int32)
    if layout == "transposed":
        ids = ids.t().contiguous().t()
    elif layout == "row_stride":
        ids = torch.cat([ids, torch.zeros_like(ids)], 1)[:, :2]
    else:
        ids = ids[:1].expand(2, 2)
    expected = ([1, 3, 0, 2], [0, 0, 1, 1]) if layout == "broadcast" else ([1, 0, 2, 3], [0, 1, 1, 1])
    assert align(ids, 2, 1) == (*expected, [4])
