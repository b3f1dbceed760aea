"""Counter-based random bits: a function of (seed, row, column), the same on every device and torch version.

Only wrapping int64 arithmetic, shifts and masks, for which NumPy and torch, on the CPU and on CUDA, give the same bits.
Functions take arrays of either, and return the same kind.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch

Array = Any
"""A numpy.ndarray or a torch.Tensor: what is done with it here is spelled the same for both."""
MASK64 = (1 << 64) - 1
# Odd multipliers of splitmix64 (Steele, Lea, Flood 2014) and of its golden-ratio sequence.
GOLDEN = 0x9E3779B97F4A7C15
MIX1 = 0xBF58476D1CE4E5B9
MIX2 = 0x94D049BB133111EB
COLUMN = 0xD1B54A32D192ED03
CLASS = 0xAEF17502108EF2D9
SPECIAL = 0xDB4F0B9175AE2165
BITS = 20
"""Random bits in one draw: three draws add up to less than 2^24, exact in float32."""


def signed(value: int) -> int:
    """Return the int64 that has the low 64 bits of `value`."""
    value &= MASK64
    return value - (1 << 64) if value >> 63 else value


def mix(value: int) -> int:
    """Return splitmix64's finaliser of the low 64 bits of `value`, in [0, 2^64)."""
    value &= MASK64
    value = ((value ^ (value >> 30)) * MIX1) & MASK64
    value = ((value ^ (value >> 27)) * MIX2) & MASK64
    return value ^ (value >> 31)


def host_bits(seed: int, count: int) -> np.ndarray:
    """Return `count` random uint64 words of `seed`, on the host."""
    x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN) + np.uint64(mix(seed))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(MIX1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(MIX2)
    return x ^ (x >> np.uint64(31))


def host_permutation(seed: int, count: int) -> np.ndarray:
    """Return a random permutation of 0 … count−1 as int64, on the host."""
    return np.argsort(host_bits(seed, count), kind="stable").astype(np.int64)


def coprimes(modulus: int, seed: int) -> list[int]:
    """Return 16 multipliers coprime to `modulus`: 1, then random ones."""
    candidates = (host_bits(seed, 160) % np.uint64(modulus)).tolist()
    kept = itertools.islice((c for c in candidates if math.gcd(c, modulus) == 1), 15)
    return [1, *kept, *[1] * 15][:16]


def _scramble(x: Array) -> Array:
    """Mix keys in place, as splitmix64 does less its last step: the high bits are the good ones."""
    # `>>` is arithmetic; that it mixes the sign in costs one bit of 64.
    x ^= x >> 30
    x *= signed(MIX1)
    x ^= x >> 27
    x *= signed(MIX2)
    return x


def element_bits(seed: int, rows: Array, columns: Array) -> Array:
    """Return 64 random bits for each (row, column) as an int64 array of shape ``[rows, columns]``."""
    row_keys = rows * signed(GOLDEN)
    row_keys += signed(mix(seed))
    return _scramble(row_keys[:, None] + columns * signed(COLUMN))


def row_bits(seed: int, rows: Array) -> Array:
    """Return 48 random bits for each row as an int64 array of shape ``[rows, 1]``."""
    x = rows * signed(GOLDEN)
    x += signed(mix(seed + 1))
    _scramble(x)
    x >>= 16
    x &= (1 << 48) - 1
    return x[:, None]


def draw(bits: Array, multiplier: int) -> Array:
    """Return `BITS` fresh bits made of all of `bits`, in [0, 2^BITS)."""
    x = bits * signed(multiplier)
    x >>= 64 - BITS
    x &= (1 << BITS) - 1
    return x


def permute(
    columns: Array, modulus: int, multipliers: Array | None, row: Array, unit: Array, turns: Array, scatter: Array
) -> Array:
    """Permute the columns of each row by a bijection of [0, modulus), without a sort.

    Parameters
    ----------
    columns : array
        Columns, int64 ``[columns]``; taken modulo `modulus`.
    modulus : int
        Size of the set permuted.
    multipliers : array, optional
        16 numbers coprime to `modulus`, the first of them 1. None: no row scatters.
    row : array
        Random bits of each row, as `row_bits` gives them.
    unit : array or int
        Rows are rotated by a random multiple of this, ``[rows, 1]`` or one for all; 0 leaves a row unrotated.
    turns : array or int
        How many such multiples there are, likewise.
    scatter : array or int
        1 for rows whose columns go to random places, 0 for rows that are only rotated, likewise.

    Returns
    -------
    array
        int64 ``[rows, columns]``.
    """
    shift = (row >> 24) % turns * unit - modulus
    if multipliers is None:
        return _wrap(columns % modulus + shift, modulus)
    choice = ((row & 15) * scatter)[:, 0]
    factors = multipliers if len(row) > len(multipliers) else multipliers[choice]
    affine = columns % modulus * factors[:, None]
    affine %= modulus
    if len(row) > len(multipliers):
        affine = affine[choice]
    affine += shift
    x = _wrap(affine, modulus)
    # A round of swap-or-not (Hoang, Morris, Rogaway 2012): after an affine map alone, ranks next to each
    # other would never fall into one lane.
    partner = _wrap((row >> 4) % modulus - x, modulus)
    coin = _largest(x, partner)
    coin += row
    coin *= signed(MIX1)
    coin >>= 40
    coin &= scatter
    partner -= x
    partner *= coin
    partner += x
    return partner


def _wrap(x: Array, modulus: int) -> Array:
    """Bring values of [−modulus, modulus) into [0, modulus), in place; a remainder costs far more."""
    sign = x >> 63
    sign &= modulus
    x += sign
    return x


def _largest(a: Array, b: Array) -> Array:
    return torch.maximum(a, b) if isinstance(a, torch.Tensor) else np.maximum(a, b)
