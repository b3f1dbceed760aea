#pragma once
#include "align_common.cuh"
#include "stream.cuh"

// Few ids, one launch. Every block counts all ids, up to IDS a thread, those before its own apart from the others,
// lays out all groups, and places its own at most 32 ids: lane l of every warp has the l-th, so a rank is (counted
// before) + (lower lanes). Warp 0 places; the padding of the groups that end with an own id is shared out over the
// warps. Thread t owns the experts t * PER … t * PER + PER - 1.
template <int PER, int IDS>
__global__ void __launch_bounds__(THREADS) align_few(AlignParams p) {
  constexpr int BUCKETS = THREADS * PER;
  __shared__ __align__(16) int before[BUCKETS], others[BUCKETS];  // counts; then first own place, end of the group
  __shared__ int sums[WARPS];
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int first = blockIdx.x * p.own, mine = first + lane;
  const bool owner = tid * PER < p.experts;

  if (owner) {
    const int none[PER] = {};
    put<PER>(before + tid * PER, none);
    put<PER>(others + tid * PER, none);
  }
  after_previous(false);
  int own[1], all[IDS];
  load_experts(p, tid, THREADS, p.numel - tid, all);
  load_experts(p, mine, 1, min(p.own, p.numel - first) - lane, own);
  __syncthreads();  // counters are zero before any is raised
#pragma unroll
  for (int j = 0; j < IDS; ++j)
    if (all[j] >= 0) atomicAdd(tid + j * THREADS < first ? &before[all[j]] : &others[all[j]], 1);
  const unsigned peers = peers_of(own[0], p.experts);
  __syncthreads();  // all ids are counted before the counts are read

  int earlier[PER] = {}, count[PER] = {}, blocks[PER], used;
  if (owner) {
    get<PER>(before + tid * PER, earlier);
    get<PER>(others + tid * PER, count);
  }
#pragma unroll
  for (int j = 0; j < PER; ++j) {
    count[j] += earlier[j];
    blocks[j] = quotient(count[j] + p.block_size - 1, p.block);
  }
  int at = expert_prefix(blocks, sums, used) * p.block_size;
  used *= p.block_size;
  if (owner) {
#pragma unroll
    for (int j = 0; j < PER; ++j) {
      const int start = at;
      at += blocks[j] * p.block_size;
      earlier[j] += start;
      count[j] += start;
    }
    put<PER>(before + tid * PER, earlier);
    put<PER>(others + tid * PER, count);
  }
  __syncthreads();  // groups are laid out before their places are looked up

  int from = 0, to = 0;  // the padding behind this lane's id, where that is the last of its group
  if (own[0] >= 0) {
    const int position = before[own[0]] + __popc(peers & lower_lanes()), end = others[own[0]];
    if (warp == 0) place(p, mine, own[0], position);
    if (position + 1 == end) {
      from = end;
      to = padded(p, end);
    }
  }
  fill_groups(p, from, to, warp, WARPS);
  finish(p, used);
}
