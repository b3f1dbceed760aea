"""Turning recipes into tensors: the same bits on the CPU, on CUDA and with every version of torch.

Elements get an index into a small table made on the host, from integer arithmetic alone. After that floats are only
multiplied, added and converted: all exactly rounded. It is the same code for NumPy, whose calls cost a third of torch's
and which makes what lies on the CPU, and for torch on other devices.
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
from .rng import Array

__all__ = ["check_recipe", "expand", "rows_of"]

CHUNK, CPU_CHUNK = 1 << 23, 1 << 16
"""Elements made at a time: temporaries take about 40 bytes an element, and stay in cache on the CPU."""
UPLOADED = 1 << 13
"""Up to so many elements are made on the host and copied, wherever they go: some forty launches take longer."""
_SOME = (1 << rng.BITS) // 8
_ALL = 1 << rng.BITS
# Columns of the table of integers, one row a block.
_MODE, _SIZE, _UNIT, _TURNS, _SCATTER, _BELL, _MUL, _DIV, _MOD, _EVERY, _CHANCE, _ONE, _QUANTISED, _OFFSET = range(14)


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
    place = torch.device(device)
    if not rows * columns:
        return torch.empty(shape, dtype=dtype, device=place)
    if place.type != "cpu" and rows * columns <= UPLOADED:
        return expand(recipe, shape, dtype, "cpu").to(place)
    plan = _plan(recipe, rows, columns, dtype, place)
    chunk = CPU_CHUNK if place.type == "cpu" else CHUNK
    step = max(1, chunk // columns)
    if step >= rows and chunk >= columns:
        out = plan.make(_numbers(0, rows, place), _numbers(0, columns, place)).contiguous()
    else:
        out = torch.empty((rows, columns), dtype=dtype, device=place)
        for row in range(0, rows, step):
            row_ids = _numbers(row, min(row + step, rows), place)
            for column in range(0, columns, chunk):
                column_ids = _numbers(column, min(column + chunk, columns), place)
                out[row : row + step, column : column + chunk] = plan.make(row_ids, column_ids)
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
    plan = _plan(recipe, rows, columns, dtype, chosen.device)
    some = chosen.numpy() if _library(chosen.device) is np else chosen
    if len(shape) == 1:
        row_ids, column_ids = _numbers(0, 1, chosen.device), some
    else:
        row_ids, column_ids = some, _numbers(0, columns, chosen.device)
    out = plan.make(row_ids, column_ids).contiguous()
    for row, column, value in _last_edits(recipe, rows, columns):
        here = (row_ids == row)[:, None] & (column_ids == column)
        out.masked_fill_(torch.as_tensor(here), _rounded(value, dtype))
    return _one_nan(out, recipe).reshape(-1, *shape[1:])


def _library(device: torch.device) -> Any:
    """Return what makes tensors that lie on a device: the module numpy, or torch."""
    return np if device.type == "cpu" else torch


def _numbers(start: int, end: int, device: torch.device) -> Array:
    """Return start … end−1 as int64."""
    return np.arange(start, end) if _library(device) is np else torch.arange(start, end, device=device)


@dataclass
class _Plan:
    """A recipe made ready for one shape, dtype and device."""

    xp: Any
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
    ints: Array | tuple[int, ...]
    table: Array
    jitter: Array | None
    specials: Array | None
    multipliers: Array | None

    def make(self, rows: Array, columns: Array) -> torch.Tensor:
        """Return the elements at `rows` × `columns` (int64, 1-d both), edits left out."""
        param = self._params(rows)
        random = RANDOM in self.modes and not self.plain
        needs_bits = random or self.jitter is not None or self.special
        bits = rng.element_bits(self.seed, rows, columns) if needs_bits else None
        row_bits = rng.row_bits(self.seed, rows) if PERMUTED in self.modes or self.one else rows
        if self.plain:
            # A block's one entry is its offset, too.
            values = self.xp.broadcast_to(self._of_block(self.table, rows), (len(rows), len(columns)))
            scale = None if self.jitter is None else self._of_block(self.jitter, rows)
        else:
            index = self._index(rows, columns, row_bits, param, bits)
            if self.blocks > 1:
                index = index + param(_OFFSET)
            values = self.xp.take(self.table, index)
            scale = None if self.jitter is None else self.xp.take(self.jitter, index)
        if scale is not None:
            noise = self._jitter_bits(bits, param(_BELL))
            noise *= scale
            noise += values
            values = noise
        if self.quantised:
            coarse, chosen = self._coarse(values), param(_QUANTISED)
            values = coarse if self.blocks == 1 else self.xp.where(chosen != 0, coarse, values)
        if self.special:
            values = self._with_specials(values, rows, columns, row_bits, param, bits)
        return _tensor(values).to(self.dtype)

    def _params(self, rows: Array) -> Callable[[int], Array]:
        """Return what gives a column of the table of integers: a number if there is one block, else ``[rows, 1]``."""
        if isinstance(self.ints, tuple):
            return self.ints.__getitem__
        params = self.ints[rows % self.blocks]
        return lambda i: params[:, i : i + 1]

    def _of_block(self, table: Array, rows: Array) -> Array:
        """Return the entry of each row's block, one a block, to be broadcast: ``[rows, 1]`` or ``[1]``."""
        return table if self.blocks == 1 else table[rows % self.blocks][:, None]

    def _index(self, rows: Array, columns: Array, row_bits: Array, param: Callable[[int], Array], bits: Array) -> Array:
        found: dict[int, Array] = {}
        if RANDOM in self.modes:
            chosen = rng.draw(bits, rng.CLASS)
            chosen *= param(_SIZE)
            chosen >>= rng.BITS
            found[RANDOM] = chosen
        if PERMUTED in self.modes:
            how = (param(_UNIT), param(_TURNS), param(_SCATTER))
            found[PERMUTED] = rng.permute(columns, self.width, self.multipliers, row_bits, *how)
        if FLAT in self.modes:
            place = (rows // self.blocks * self.columns)[:, None] + columns
            found[FLAT] = place * param(_MUL) // param(_DIV) % param(_MOD)
        index = found.popitem()[1]
        for mode, other in found.items():
            index = self.xp.where(param(_MODE) == mode, other, index)
        return index

    def _jitter_bits(self, bits: Array, bell: Array) -> Array:
        """Return one uniform draw, or the sum of three where `bell`, as float32 (exact: below 2^24)."""
        ones = (1 << rng.BITS) - 1
        z = bits >> 64 - rng.BITS
        z &= ones
        if self.bell:
            mask = bell * ones
            z += (bits >> 64 - 2 * rng.BITS) & mask
            z += (bits >> 64 - 3 * rng.BITS) & mask
        return self.xp.asarray(z, dtype=self.xp.float32)

    def _coarse(self, values: Array) -> Array:
        """Return float32 values rounded to bfloat16."""
        coarse = _tensor(values).bfloat16().float()
        return coarse.numpy() if self.xp is np else coarse

    def _with_specials(
        self, values: Array, rows: Array, columns: Array, row_bits: Array, param: Callable[[int], Array], bits: Array
    ) -> Array:
        chosen_row = (rows // self.blocks)[:, None] % param(_EVERY) == 0
        here = rng.draw(bits, rng.SPECIAL) < param(_CHANCE) * chosen_row
        if self.one:
            target = (row_bits >> 28) % self.columns
            here |= (columns == target) & chosen_row & (param(_ONE) != 0)
        return self.xp.where(here, self._of_block(self.specials, rows), values)


def _tensor(values: Array) -> torch.Tensor:
    """Return a tensor of its own memory, or the same if it is one."""
    if isinstance(values, torch.Tensor):
        return values
    return torch.from_numpy(values if values.flags.writeable else values.copy())


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
    xp = _library(device)
    made = arrays if xp is np else _upload(arrays, device)
    return _Plan(
        xp=xp,
        seed=rng.mix(recipe["seed"]),
        blocks=len(blocks),
        width=width,
        columns=columns,
        dtype=dtype,
        modes=frozenset([t.mode for t in templates]),
        bell=any(t.bell for t in templates),
        quantised=any(t.quantised for t in templates),
        special=special,
        one=any(i[_ONE] for i in ints),
        plain=offset == len(blocks),
        ints=made["ints"].reshape(len(blocks), -1) if len(blocks) > 1 else ints[0],
        table=made["table"],
        jitter=made.get("jitter"),
        specials=made.get("specials"),
        multipliers=made.get("multipliers"),
    )


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _upload(arrays: dict[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """Bring arrays of int64 or float32 to the device as flat tensors, with a single copy."""
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

    def make(self, rows: Array, columns: Array) -> torch.Tensor:
        """Return the elements at `rows` × `columns`."""
        place = torch.as_tensor(rows[:, None] * self.columns + columns)
        table = torch.from_numpy(self.values).to(self.device)
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


def _plants_nan(recipe: Mapping[str, Any]) -> bool:
    blocks, edits = recipe.get("blocks", ()), recipe.get("edits", ())
    return any(v != v for block in blocks for v in block.values()) or any(edit[2] != edit[2] for edit in edits)


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
