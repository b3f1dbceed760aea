#pragma once
#include "align_common.cuh"
#include "stream.cuh"

// Few ids, one launch. Every block counts all ids, up to IDS a thread, those before its own apart from the others,
// lays out all groups, and places its own, up to 32 * CHUNKS: lane l of warp w has the l-th of chunk w, so a rank is
// (counted before) + (earlier chunks) + (lower lanes). A single chunk is ranked by every warp and placed by warp 0. The
// padding of the groups that end with an own id is shared out over the warps. Thread t owns the experts t * PER …
// t * PER + PER - 1.
template <int PER, int IDS, int CHUNKS>
__global__ void __launch_bounds__(THREADS) align_few(AlignParams p) {
  constexpr int BUCKETS = THREADS * PER;
  __shared__ __align__(16) int before[BUCKETS], others[BUCKETS];  // counts; then first own place, end of the group
  __shared__ int sums[WARPS];
  __shared__ int2 paddings[32 * CHUNKS];
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int chunk = CHUNKS > 1 ? warp : 0;
  const int first = blockIdx.x * p.own, mine = first + chunk * 32 + lane;
  const int left = min(p.own, p.numel - first) - lane;  // of every 32nd id from the first of this lane's on
  const bool owner = tid * PER < p.experts;

  if (owner) {
    const int none[PER] = {};
    put<PER>(before + tid * PER, none);
    put<PER>(others + tid * PER, none);
  }
  after_previous(false);
  int own[1], earlier_own[CHUNKS], all[IDS];
  load_experts(p, tid, THREADS, p.numel - tid, all);
  load_experts(p, mine, 1, left - chunk * 32, own);
  load_experts(p, first + lane, 32, left, earlier_own);  // unused, so left out, for one chunk
  __syncthreads();  // counters are zero before any is raised
#pragma unroll
  for (int j = 0; j < IDS; ++j)
    if (all[j] >= 0) atomicAdd(tid + j * THREADS < first ? &before[all[j]] : &others[all[j]], 1);
  int rank = 0;
  if (chunk < CHUNKS) {
    rank = __popc(peers_of(own[0], own[0], p.experts) & lower_lanes());
#pragma unroll
    for (int c = 0; c < CHUNKS - 1; ++c)
      if (c < chunk) rank += __popc(peers_of(own[0], earlier_own[c], p.experts));
  }
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

  int2 padding = make_int2(0, 0);  // the places behind this lane's id, where that is the last of its group
  if (own[0] >= 0) {
    const int position = before[own[0]] + rank, end = others[own[0]];
    if (CHUNKS > 1 || warp == 0) place(p, mine, own[0], position);
    if (position + 1 == end) padding = make_int2(end, padded(p, end));
  }
  if (CHUNKS == 1) {
    fill_groups(p, padding.x, padding.y, warp, WARPS);
  } else {
    if (chunk < CHUNKS) paddings[tid] = padding;
    __syncthreads();  // all warps' paddings are known before they are shared out
#pragma unroll 1
    for (int c = 0; c < CHUNKS; ++c) {
      const int2 of = paddings[c * 32 + lane];
      fill_groups(p, of.x, of.y, warp, WARPS);
    }
  }
  finish(p, used);
}
