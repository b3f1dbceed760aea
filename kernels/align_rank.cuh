#pragma once
#include "align_common.cuh"

// Ranks a block's ids among equal ones, in the order of the flat index. A warp owns a run of neighbouring ids, read
// in chunks of 32: an id's rank is (earlier warps) + (earlier chunks of the warp) + (lower lanes). Counts by warp are
// in counts[warp][expert], written only for the experts that the warp has: bit w of masks[expert] says that warp w
// does. So only the masks need clearing, however many experts there are.
template <int CHUNKS>
struct Ranks {
  int expert[CHUNKS], rank[CHUNKS];
  int first;  // flat index of this lane's first id

  __device__ __forceinline__ void load(const AlignParams& p, int begin, int end) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int run = p.chunks * 32, skipped = warp * run;
    first = begin + skipped + lane;
    load_experts(p, first, 32, warp < p.rank_warps ? min(end - begin - skipped, run) - lane : 0, expert);
  }

  // Ranks this warp's ids among its own. The masks are zero.
  __device__ __forceinline__ void count(const AlignParams& p, unsigned* masks, unsigned short* counts) {
    const int warp = threadIdx.x >> 5;
    if (warp >= p.rank_warps) return;
    unsigned short* own = counts + warp * p.experts;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      if (c >= p.chunks) break;
      const int e = expert[c];
      const unsigned peers = peers_of(e, e, p.experts), below = peers & lower_lanes();
      int before = 0;
      if (peers && !below) {
        if (c == 0) {
          atomicOr(&masks[e], 1u << warp);
        } else if (atomicOr(&masks[e], 1u << warp) >> warp & 1) {
          before = own[e];
        }
        own[e] = (unsigned short)(before + __popc(peers));
      }
      if (c > 0) before = __shfl_sync(~0u, before, peers ? __ffs(peers) - 1 : 0);
      rank[c] = before + __popc(below);
      __syncwarp();  // the counts are raised before the next chunk's leaders read them
    }
  }

  // Adds to every rank where its expert's ids start, and counts[warp][expert], by now the ids before the warp's.
  __device__ __forceinline__ void locate(const AlignParams& p, const int* starts, const unsigned short* counts) {
    const int warp = threadIdx.x >> 5;
    if (warp >= p.rank_warps) return;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const int e = expert[c];
      if (e >= 0) rank[c] += starts[e] + counts[warp * p.experts + e];
    }
  }
};

// Turns counts by warp into exclusive prefixes over the warps, and masks[e] into the number of e's ids. A thread owns
// every THREADS-th expert.
__device__ __forceinline__ void prefix_over_warps(const AlignParams& p, unsigned* masks, unsigned short* counts) {
  if (p.experts <= THREADS) {  // most warps have ids of most experts: all counts are fetched together
    const int e = threadIdx.x;
    const unsigned mask = e < p.experts ? masks[e] : 0;
    if (!mask) return;
    int here[WARPS], sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) here[w] = mask >> w & 1 ? counts[w * p.experts + e] : 0;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      if (mask >> w & 1) counts[w * p.experts + e] = (unsigned short)sum;
      sum += here[w];
    }
    masks[e] = sum;
    return;
  }
#pragma unroll 1
  for (int e = threadIdx.x; e < p.experts; e += THREADS) {
    unsigned left = masks[e];
    if (!left) continue;
    int sum = 0;
#pragma unroll 1
    do {
      unsigned short* count = counts + (__ffs(left) - 1) * p.experts + e;
      left &= left - 1;
      const int here = *count;
      *count = (unsigned short)sum;
      sum += here;
    } while (left);
    masks[e] = sum;
  }
}
