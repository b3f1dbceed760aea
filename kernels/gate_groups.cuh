// Group-limited routing: which groups of experts stay in, from the keys that the lanes hold.
#pragma once

#include "score.cuh"

// A team shares one row: a warp (WARPS == 1) or a whole block. Orders the team's shared-memory traffic.
template <int WARPS>
__device__ __forceinline__ void team_sync() {
  if (WARPS == 1) __syncwarp();
  else __syncthreads();
}

// The two smallest keys of a set, and how to add to it.
struct BestTwo {
  int first = WORST, second = WORST;

  __device__ __forceinline__ void add(int key) {
    const int larger = max(first, key);
    first = min(first, key);
    second = min(second, larger);
  }

  // Joins the sets of 2, 4, … `lanes` neighbouring lanes (a power of two); all lanes of the warp take part.
  __device__ __forceinline__ void join(int lanes) {
    for (int step = 1; step < lanes; step <<= 1) {
      const int other_first = __shfl_xor_sync(~0u, first, step);
      const int other_second = __shfl_xor_sync(~0u, second, step);
      second = min(max(first, other_first), min(second, other_second));
      first = min(first, other_first);
    }
  }

  // Key of a group's score: the sum of its two best c. Costs are negated scores, so is their sum; neither is -0.
  __device__ __forceinline__ int group_key(bool single) const {
    return single ? first : order_key(__fadd_rn(key_to_cost(first), key_to_cost(second)));
  }
};

// Of up to 32 groups, lane h holding the key of group h (WORST past the last): the mask of the `keep` best,
// equal keys by lower id.
__device__ __forceinline__ unsigned best_groups(int key, int groups, int keep) {
  const int lane = threadIdx.x & 31;
  int rank = 0;
  for (int h = 0; h < groups; ++h) {
    const int other = __shfl_sync(~0u, key, h);
    rank += other < key || (other == key && h < lane);
  }
  return __ballot_sync(~0u, lane < groups && rank < keep);
}

// Any number of groups, keys in shared memory: one warp replaces each key by 1 (kept) or 0. The `keep`-th smallest
// key is built bit by bit from the top; groups that equal it are kept by lower id until the count is reached.
__device__ __forceinline__ void mark_best_groups(int* keys, int groups, int keep) {
  const int lane = threadIdx.x & 31;
  unsigned threshold = 0;  // in the unsigned order of the keys
  int left = keep;         // how many of those that share the threshold's upper bits are kept
  for (int bit = 31; bit >= 0; --bit) {
    int below = 0;
    for (int h = lane; h < groups; h += 32) below += ((unsigned)keys[h] ^ 0x80000000u) >> bit == threshold >> bit;
    below = __reduce_add_sync(~0u, (unsigned)below);
    if (left > below) {
      left -= below;
      threshold |= 1u << bit;
    }
  }
  for (int base = 0; base < groups; base += 32) {
    const int h = base + lane;
    const unsigned key = h < groups ? (unsigned)keys[h] ^ 0x80000000u : ~0u;
    const bool ties = h < groups && key == threshold;
    const unsigned tied = __ballot_sync(~0u, ties);
    const int before = __popc(tied & ((1u << lane) - 1));
    if (h < groups) keys[h] = key < threshold || (ties && before < left);
    left -= min(left, __popc(tied));
  }
}

// Groups that are whole lanes: each lane's VPT experts lie in one group of `lanes_per_group` (a power of two)
// neighbouring lanes. Drops the other groups' keys; returns the mask of lanes whose experts are kept.
template <int VPT>
__device__ __forceinline__ unsigned drop_lane_groups(int (&key)[VPT], int experts, int groups, int keep) {
  const int lane = threadIdx.x & 31, size = experts / groups, lanes = size / VPT;
  BestTwo best;
#pragma unroll
  for (int j = 0; j < VPT; ++j) best.add(key[j]);
  best.join(lanes);
  const int mine = best.group_key(size == 1);
  const int gathered = __shfl_sync(~0u, mine, lane * lanes);  // lane h: group h; wraps past the last, unused
  const unsigned kept = best_groups(lane < groups ? gathered : WORST, groups, keep);
  const bool used = lane * VPT < experts, in = used && (kept >> (lane / lanes) & 1);
  if (used && !in) {
#pragma unroll
    for (int j = 0; j < VPT; ++j) key[j] = DROPPED;
  }
  return __ballot_sync(~0u, in);
}

// Groups of any size. `stage` takes the team's keys, `flags` ends up with 1 for a kept group, 0 for a dropped one.
// The caller's first expert is `first`; the team has WARPS warps.
template <int VPT, int WARPS>
__device__ __forceinline__ void drop_staged_groups(int (&key)[VPT], int first, int experts, int groups, int keep,
                                                   int* stage, int* flags) {
  const int lane = threadIdx.x & 31, rank = WARPS == 1 ? lane : threadIdx.x, size = experts / groups;
#pragma unroll
  for (int j = 0; j < VPT; ++j)
    if (first + j < experts) stage[first + j] = key[j];
  team_sync<WARPS>();  // every key is staged before any group is scanned

  int lanes = 32;  // per group: the largest power of two that a group fills
  while (lanes > size) lanes >>= 1;
  const int teams = WARPS * 32 / lanes, part = rank & (lanes - 1);
  for (int base = 0; base < groups; base += teams) {
    const int h = base + rank / lanes;
    BestTwo best;
    if (h < groups)
      for (int i = part; i < size; i += lanes) best.add(stage[h * size + i]);
    best.join(lanes);
    if (h < groups && part == 0) flags[h] = best.group_key(size == 1);
  }
  team_sync<WARPS>();  // group keys are written before one warp ranks them
  if (WARPS == 1 || threadIdx.x < 32) mark_best_groups(flags, groups, keep);
  team_sync<WARPS>();  // flags are written before all read them

  int h = first / size, at = first - h * size;
#pragma unroll
  for (int j = 0; j < VPT; ++j) {
    if (first + j < experts && !flags[h]) key[j] = DROPPED;
    if (++at == size) at = 0, ++h;
  }
}
