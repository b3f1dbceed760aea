"""Turning recipes into tensors: the same bits on the CPU, on CUDA and with every version of torch.

Elements get an index into a small table made on the host, from integer arithmetic alone. On the device floats
are only multiplied, added and converted: all exactly rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from . import rng
from .patterns import (
    FLAT,
    NO_JITTER,
    PERMUTED,
    RANDOM,
    Context,
    Template,
    clamp_finite,
    id_template,
    score_template,
    table_width,
)
from .recipe import check_recipe

__all__ = ["check_recipe", "expand", "rows_of"]

CHUNK, CPU_CHUNK = 1 << 23, 1 << 16
"""Elements made at a time: temporaries take about 40 bytes an element, and stay in cache on the CPU."""
_SOME = (1 << rng.BITS) // 8
_ALL = 1 << rng.BITS
# Columns of the table of integers, one row a block.
_MODE, _SIZE, _UNIT, _TURNS, _SCATTER, _BELL, _MUL, _DIV, _MOD, _EVERY, _CHANCE, _ONE, _QUANTISED, _OFFSET = range(14)

Param = torch.Tensor | int
"""A parameter of blocks: of each row's block, or of the only one."""


def expand(
    recipe: Mapping[str, Any], shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str
) -> torch.Tensor:
    """Return the contents that a recipe describes.

    Parameters
    ----------
    recipe : mapping
        A recipe that `check_recipe` accepts.
    shape : tuple of int
        Up to two sizes. A 1-d tensor has the contents of a single row, a 0-d one those of a row of one.
    dtype : torch.dtype
        A floating-point dtype for ``scores``; any for the other kinds, which hold integers.
    device : torch.device or str
        Where the tensor is made.

    Returns
    -------
    torch.Tensor
        Contiguous.

    Raises
    ------
    ValueError
        If a ``scores`` recipe is asked for integers.
    """
    rows, columns = _two_sizes(shape)
    out = torch.empty((rows, columns), dtype=dtype, device=device)
    if out.numel():
        plan = _plan(recipe, rows, columns, dtype, torch.device(device))
        chunk = CPU_CHUNK if out.device.type == "cpu" else CHUNK
        for row in range(0, rows, step := max(1, chunk // columns)):
            for column in range(0, columns, chunk):
                row_ids = torch.arange(row, min(row + step, rows), device=device)
                column_ids = torch.arange(column, min(column + chunk, columns), device=device)
                part = plan.make(row_ids, column_ids)
                if part.shape == out.shape and part.is_contiguous():
                    out = part
                else:
                    out[row : row + step, column : column + chunk] = part
        for row, column, value in _last_edits(recipe, rows, columns):
            out[row, column] = _rounded(value, dtype)
    return _one_nan(out, recipe).reshape(shape)


def rows_of(
    recipe: Mapping[str, Any],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str,
    row_indices: torch.Tensor | list[int],
) -> torch.Tensor:
    """Return some rows of what `expand` gives for `shape`, bit for bit, without making the others.

    Parameters
    ----------
    recipe, shape, dtype, device
        As for `expand`; `shape` is that of the whole tensor.
    row_indices : torch.Tensor or list of int
        Rows of a 2-d tensor, elements of a 1-d one.

    Returns
    -------
    torch.Tensor
        Shape ``[len(row_indices), *shape[1:]]``.
    """
    if not shape:
        raise ValueError(f"shape is {shape}; allowed: one or two sizes, as rows are asked for")
    rows, columns = _two_sizes(shape)
    chosen = torch.as_tensor(row_indices, dtype=torch.int64, device=device)
    if chosen.numel() and (int(chosen.min()) < 0 or int(chosen.max()) >= shape[0]):
        raise ValueError(f"row_indices are {chosen.tolist()!r:.80}; allowed: 0 to {shape[0] - 1}")
    if not chosen.numel() or not math.prod(shape):
        return torch.empty((chosen.numel(), *shape[1:]), dtype=dtype, device=device)
    plan = _plan(recipe, rows, columns, dtype, torch.device(device))
    flat = len(shape) == 1
    row_ids = torch.zeros(1, dtype=torch.int64, device=device) if flat else chosen
    column_ids = chosen if flat else torch.arange(columns, device=device)
    out = plan.make(row_ids, column_ids).contiguous()
    for row, column, value in _last_edits(recipe, rows, columns):
        here = (row_ids == row).unsqueeze(1) & (column_ids == column).unsqueeze(0)
        out.masked_fill_(here, _rounded(value, dtype))
    return _one_nan(out, recipe).reshape(-1, *shape[1:])


@dataclass
class _Plan:
    """A recipe made ready for one shape, dtype and device."""

    seed: int
    blocks: int
    width: int
    columns: int
    dtype: torch.dtype
    modes: frozenset[int]
    bell: bool
    quantised: bool
    special: bool
    one: bool
    plain: bool
    ints: torch.Tensor | tuple[int, ...]
    table: torch.Tensor
    jitter: torch.Tensor | None
    specials: torch.Tensor | None
    multipliers: torch.Tensor | None

    def make(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return the elements at `rows` × `columns` (int64, 1-d both), edits left out."""
        param = self._params(rows)
        random = RANDOM in self.modes and not self.plain
        needs_bits = random or self.jitter is not None or self.special
        bits = rng.element_bits(self.seed, rows, columns) if needs_bits else None
        shape = (rows.numel(), columns.numel())
        row_bits = rng.row_bits(self.seed, rows) if PERMUTED in self.modes or self.one else rows
        if self.plain:
            # A block's one entry is its offset, too.
            values = self._of_block(self.table, rows).expand(shape)
            scale = None if self.jitter is None else self._of_block(self.jitter, rows)
        else:
            places = self._index(rows, columns, row_bits, param, bits)
            index = (places if self.blocks == 1 else places + param(_OFFSET)).expand(shape).reshape(-1)
            values = self.table.index_select(0, index).view(shape)
            scale = None if self.jitter is None else self.jitter.index_select(0, index).view(shape)
        if scale is not None and bits is not None:
            values = self._jitter_bits(bits, param(_BELL)).mul_(scale).add_(values)
        if self.quantised:
            coarse, chosen = values.bfloat16().float(), param(_QUANTISED)
            values = torch.where(chosen != 0, coarse, values) if isinstance(chosen, torch.Tensor) else coarse
        if self.special and bits is not None:
            values = self._with_specials(values, rows, columns, row_bits, param, bits)
        return values.to(self.dtype)

    def _params(self, rows: torch.Tensor) -> Callable[[int], Param]:
        """Return what gives a column of the table of integers: a number if there is one block, else ``[rows, 1]``."""
        if isinstance(self.ints, tuple):
            return self.ints.__getitem__
        params = self.ints.index_select(0, rows % self.blocks)
        return lambda i: params[:, i : i + 1]

    def _of_block(self, table: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return the entry of each row's block, one a block, to be broadcast: ``[rows, 1]`` or ``[1]``."""
        return table if self.blocks == 1 else table.index_select(0, rows % self.blocks).unsqueeze(1)

    def _index(
        self,
        rows: torch.Tensor,
        columns: torch.Tensor,
        row_bits: torch.Tensor,
        param: Callable[[int], Param],
        bits: torch.Tensor | None,
    ) -> torch.Tensor:
        found: dict[int, torch.Tensor] = {}
        if RANDOM in self.modes and bits is not None:
            chosen = rng.draw(bits, rng.CLASS)
            found[RANDOM] = chosen.mul_(param(_SIZE)).bitwise_right_shift_(rng.BITS)
        if PERMUTED in self.modes:
            found[PERMUTED] = rng.permute(
                columns,
                self.width,
                self.multipliers,
                row_bits,
                param(_UNIT),
                param(_TURNS),
                param(_SCATTER),
            )
        if FLAT in self.modes:
            place = torch.div(rows, self.blocks, rounding_mode="floor").mul_(self.columns).unsqueeze(1) + columns
            scaled = torch.div(place * param(_MUL), param(_DIV), rounding_mode="floor")
            found[FLAT] = scaled % param(_MOD)
        index, modes = found.popitem()[1], param(_MODE)
        if isinstance(modes, torch.Tensor):
            for mode, other in found.items():
                index = torch.where(modes == mode, other, index)
        return index

    def _jitter_bits(self, bits: torch.Tensor, bell: Param) -> torch.Tensor:
        """Return one uniform draw, or the sum of three where `bell`, as float32 (exact: below 2^24)."""
        ones = (1 << rng.BITS) - 1
        z = (bits >> 64 - rng.BITS).bitwise_and_(ones)
        if self.bell:
            mask = bell * ones
            z.add_((bits >> 64 - 2 * rng.BITS).bitwise_and_(mask))
            z.add_((bits >> 64 - 3 * rng.BITS).bitwise_and_(mask))
        return z.to(torch.float32)

    def _with_specials(
        self,
        values: torch.Tensor,
        rows: torch.Tensor,
        columns: torch.Tensor,
        row_bits: torch.Tensor,
        param: Callable[[int], Param],
        bits: torch.Tensor,
    ) -> torch.Tensor:
        local = torch.div(rows, self.blocks, rounding_mode="floor").unsqueeze(1)
        chosen_row = local % param(_EVERY) == 0
        here = rng.draw(bits, rng.SPECIAL) < param(_CHANCE) * chosen_row
        if self.one:
            target = (row_bits >> 28) % self.columns
            here |= (columns == target) & chosen_row & (param(_ONE) != 0)
        assert self.specials is not None
        return torch.where(here, self._of_block(self.specials, rows), values)


def _plan(
    recipe: Mapping[str, Any], rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> _Plan | _Listed:
    kind = recipe["kind"]
    if kind in ("permutation", "slice"):
        return _Listed(_listed(recipe, rows * columns), columns, dtype, device)
    floats = kind == "scores"
    if floats and not dtype.is_floating_point:
        raise ValueError(f"dtype is {dtype}; allowed for a 'scores' recipe: a floating-point dtype")
    blocks, seed = recipe["blocks"], recipe["seed"]
    width = table_width(columns) if floats else recipe["num_experts"]
    templates = []
    for i, block in enumerate(blocks):
        context = Context(width, dtype, rng.mix(seed * 16 + i) >> 1)
        if floats:
            templates.append(score_template(block, context))
        else:
            elements = len(range(i, rows, len(blocks))) * columns
            templates.append(id_template(block, context, recipe["num_experts"], elements))
    return _assemble(recipe, templates, width, columns, dtype, device)


def _assemble(
    recipe: Mapping[str, Any],
    templates: list[Template],
    width: int,
    columns: int,
    dtype: torch.dtype,
    device: torch.device,
) -> _Plan:
    blocks, floats = recipe["blocks"], recipe["kind"] == "scores"
    ints: list[tuple[int, ...]] = []
    offset = 0
    for block, t in zip(blocks, templates, strict=True):
        turns = max(width // t.unit, 1) if t.unit else 1
        where = block.get("where") if "special" in block else None
        chance = _SOME if where == "some" else _ALL if where == "all" else 0
        flags = (int(t.scatter), int(t.bell), *t.flat, block.get("every", 1), chance, int(where == "one"))
        ints.append((t.mode, len(t.values), t.unit, turns, *flags, int(t.quantised), offset))
        offset += len(t.values)
    arrays = {"table": _joined([t.values for t in templates])}
    if special := any("special" in block for block in blocks):
        arrays["specials"] = np.array([b.get("special", 0) for b in blocks], dtype=np.float64 if floats else np.int64)
    if floats:
        arrays = {name: clamp_finite(values, dtype).astype(np.float32) for name, values in arrays.items()}
    if any(t.jitter is not None for t in templates):
        quiet = [np.full(len(t.values), NO_JITTER) if t.jitter is None else t.jitter for t in templates]
        arrays["jitter"] = _joined(quiet).astype(np.float32)
    if any(t.scatter for t in templates):
        arrays["multipliers"] = np.array(rng.coprimes(width, recipe["seed"]), dtype=np.int64)
    if len(blocks) > 1:
        arrays["ints"] = np.array(ints, dtype=np.int64)
    made = _upload(arrays, device)
    return _Plan(
        seed=rng.mix(recipe["seed"]),
        blocks=len(blocks),
        width=width,
        columns=columns,
        dtype=dtype,
        modes=frozenset([t.mode for t in templates]),
        bell=any(t.bell for t in templates),
        quantised=any(t.quantised for t in templates),
        special=special,
        one=special and any(i[_ONE] for i in ints),
        plain=offset == len(blocks),
        ints=made["ints"].view(len(blocks), -1) if len(blocks) > 1 else ints[0],
        table=made["table"],
        jitter=made.get("jitter"),
        specials=made.get("specials"),
        multipliers=made.get("multipliers"),
    )


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _upload(arrays: dict[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """Bring arrays of int64 or float32 to the device as flat tensors, with a single copy at most."""
    if device.type == "cpu":
        return {name: torch.from_numpy(a).view(-1) for name, a in arrays.items()}
    words = [np.frombuffer(a.tobytes() + b"\0" * (-a.nbytes % 8), dtype=np.int64) for a in arrays.values()]
    packed = torch.from_numpy(np.concatenate(words)).to(device).split([len(w) for w in words])
    floats = {np.dtype(np.float32): torch.float32}
    pairs = zip(packed, arrays.items(), strict=True)
    return {name: p.view(floats.get(a.dtype, torch.int64))[: a.size] for p, (name, a) in pairs}


@dataclass
class _Listed:
    """A recipe whose elements are listed on the host."""

    values: np.ndarray
    columns: int
    dtype: torch.dtype
    device: torch.device

    def make(self, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """Return the elements at `rows` × `columns`."""
        table = torch.from_numpy(self.values).to(self.device)
        place = rows.unsqueeze(1) * self.columns + columns
        return table[place.clamp_(max=len(table) - 1)].to(self.dtype)


def _listed(recipe: Mapping[str, Any], count: int) -> np.ndarray:
    """Return the entries of a ``permutation`` or ``slice`` recipe."""
    if recipe["kind"] == "permutation":
        values = rng.host_permutation(recipe["seed"], recipe["size"])
        lost = rng.host_bits(recipe["seed"] + 1, recipe["size"]) % np.uint64(256) < np.uint64(recipe["minus_one"])
        return np.where(lost, -1, values)
    start, size = recipe["start"], recipe["count"]
    places = np.arange(max(1, min(count, start + size + 1)), dtype=np.int64) - start
    return np.where((places >= 0) & (places < size), places, -1)


_NAN_BITS = {torch.float16: 0x7E00, torch.bfloat16: 0x7FC0}
"""The one NaN of each narrow dtype: CPU and CUDA conversions give NaN different payloads."""


def _one_nan(out: torch.Tensor, recipe: Mapping[str, Any]) -> torch.Tensor:
    """Give every NaN of a narrow tensor the same bits, in place, if the recipe plants any."""
    bits = _NAN_BITS.get(out.dtype)
    if bits is not None and _plants_nan(recipe):
        out.view(torch.int16).masked_fill_(out.isnan(), bits)
    return out


def _plants_nan(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_plants_nan(v) for v in value.values())
    if isinstance(value, list | tuple):
        return any(_plants_nan(v) for v in value)
    return isinstance(value, float) and math.isnan(value)


def _two_sizes(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], shape[1]) if len(shape) == 2 else (1, shape[0] if shape else 1)


def _last_edits(recipe: Mapping[str, Any], rows: int, columns: int) -> list[tuple[int, int, float]]:
    """Return the edits that lie inside the tensor, the last one of each element."""
    edits = {(r, c): v for r, c, v in recipe.get("edits", ()) if r < rows and c < columns}
    return [(r, c, v) for (r, c), v in edits.items()]


def _rounded(value: float, dtype: torch.dtype) -> float:
    if not dtype.is_floating_point:
        return value
    return float(np.float32(clamp_finite(np.array(float(value)), dtype)))
