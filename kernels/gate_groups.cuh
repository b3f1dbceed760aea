// Group-limited routing: which groups of experts stay in, from the keys that the lanes hold.
#pragma once

#include "score.cuh"

// A team shares one row: a warp, or a whole block where rows are split. Orders its shared-memory traffic.
template <bool SPLIT>
__device__ __forceinline__ void team_sync() {
  if (SPLIT) __syncthreads();
  else __syncwarp();
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

  // Key of a group's score: the sum of its two best c. Costs are negated scores, so is their sum; none is -0.
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

// Any number of groups, keys in shared memory: one warp replaces each key by 1 (kept) or 0. The `keep`-th
// smallest key is built bit by bit from the top; groups that equal it are kept by lower id until the count is
// reached.
__device__ __forceinline__ void mark_best_groups(int* keys, int groups, int keep) {
  const int lane = threadIdx.x & 31;
  unsigned threshold = 0;  // in the unsigned order of the keys
  int left = keep;         // how many of those that share the threshold's upper bits are kept
  for (int bit = 31; bit >= 0; --bit) {
    int below = 0;
    for (int h = lane; h < groups; h += 32)
      below += ((unsigned)keys[h] ^ 0x80000000u) >> bit == threshold >> bit;
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

// Groups that are whole lanes: this lane's experts, if `used`, lie in `group`, one of `lanes` (a power of
// two) neighbouring lanes. Drops other groups' keys; returns the mask of kept groups. Keys of no expert are
// WORST.
template <int VPT, class Params>
__device__ __forceinline__ unsigned drop_lane_groups(int (&key)[VPT], bool used, int group, int lanes,
                                                     const Params& p) {
  const int lane = threadIdx.x & 31;
  BestTwo best;
#pragma unroll
  for (int j = 0; j < VPT; ++j) best.add(key[j]);
  best.join(lanes);
  const int mine = best.group_key(p.experts == p.groups);
  const int gathered = __shfl_sync(~0u, mine, lane * lanes);  // lane h: group h; wraps past the last, unused
  const unsigned kept = best_groups(lane < p.groups ? gathered : WORST, p.groups, p.kept_groups);
  if (used && !(kept >> group & 1)) {
#pragma unroll
    for (int j = 0; j < VPT; ++j) key[j] = DROPPED;
  }
  return kept;
}

// Groups of any size, from the team's keys in `stage`: flags[h] becomes 1 for a kept group, 0 otherwise.
template <bool SPLIT>
__device__ __forceinline__ void mark_groups(const int* stage, int* flags, int size, int groups, int keep) {
  const int rank = SPLIT ? threadIdx.x : threadIdx.x & 31, threads = SPLIT ? blockDim.x : 32;
  int lanes = 32;  // per group: the largest power of two that a group fills
  while (lanes > size) lanes >>= 1;
  const int at_once = threads / lanes, part = rank & (lanes - 1);
  for (int base = 0; base < groups; base += at_once) {
    const int h = base + rank / lanes;
    BestTwo best;
    if (h < groups)
      for (int i = part; i < size; i += lanes) best.add(stage[h * size + i]);
    best.join(lanes);
    if (h < groups && part == 0) flags[h] = best.group_key(size == 1);
  }
  team_sync<SPLIT>();  // group keys are written before one warp ranks them
  if (!SPLIT || threadIdx.x < 32) mark_best_groups(flags, groups, keep);
  team_sync<SPLIT>();  // flags are written before all read them
}
