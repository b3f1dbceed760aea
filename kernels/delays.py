"""Builds kernels with delays at their synchronisation points, so that threads that nothing orders drift apart."""

from __future__ import annotations

import re

_PRELUDE = """
// Sleeps for a time that depends on the site, the block and the warp: some warps not at all, some for microseconds.
__device__ __noinline__ void moeproof_delay(unsigned site, unsigned mask) {
  unsigned h = %(seed)uu ^ site * 0x9E3779B9u ^ (threadIdx.x >> 5) * 0x85EBCA6Bu ^ blockIdx.x * 0xC2B2AE35u;
  h = (h ^ h >> 16) * 0x7FEB352Du;
  h = (h ^ h >> 15) * 0x846CA68Bu;
  h ^= h >> 16;
  if (h & 1) __nanosleep(h >> 1 & mask);
}
"""
_BARRIERS = ("__syncthreads", "__syncwarp", "__cluster_barrier_arrive", "__cluster_barrier_wait")
_EXCHANGES = (
    "__shfl_sync",
    "__shfl_up_sync",
    "__shfl_down_sync",
    "__shfl_xor_sync",
    "__ballot_sync",
    "__any_sync",
    "__all_sync",
    "__reduce_add_sync",
    "__reduce_min_sync",
    "__reduce_max_sync",
    "__reduce_or_sync",
    "__reduce_and_sync",
)
BARRIER_MASK, EXCHANGE_MASK = 2047, 63
"""Longest delays in nanoseconds, as masks: at kernels' starts and barriers, and at exchanges within a warp."""
_KERNEL = re.compile(r"(__global__[^;{]*\{)")


def with_delays(source: str, seed: int) -> str:
    """Return CUDA C++ source with delays at each kernel's start, around barriers and before exchanges in a warp.

    Parameters
    ----------
    source : str
        CUDA C++ text without includes.
    seed : int
        Chooses who sleeps how long where; 0 … 2^32 − 1.
    """
    before, after = (f"moeproof_delay(2 * __LINE__ + {side}, {BARRIER_MASK}u)" for side in (0, 1))
    # Within its own expansion a macro's name is not expanded again: it is the built-in function.
    lines = [f"#define {name}(...) ({before}, {name}(__VA_ARGS__), {after})" for name in _BARRIERS]
    exchange = f"moeproof_delay(2 * __LINE__, {EXCHANGE_MASK}u)"
    lines += [f"#define {name}(...) ({exchange}, {name}(__VA_ARGS__))" for name in _EXCHANGES]
    prelude = _PRELUDE % {"seed": seed & 0xFFFFFFFF} + "\n".join(lines) + "\n"
    return prelude + _KERNEL.sub(rf"\1 {after};", source)
