#pragma once
#include "align_common.cuh"
#include "align_rank.cuh"
#include "stream.cuh"

// Any number of ids, three launches: tile_histogram counts tiles of neighbouring ids, scan_tiles lays out the groups
// and says where each tile's ids start, place_ids places them. Where the device can, a launch starts while the one
// before it still runs, and waits for it after the work that needs none of its results.

// The scratch of these kernels.
struct ScanScratch {
  int* starts;  // [tiles, experts] counts; then where each tile's ids start, relative to the slice of 32 experts
  int* ends;    // [experts] relative end of each group, padding left out
  int* slices;  // [MAX_SLICES] blocks of each slice

  __device__ __forceinline__ explicit ScanScratch(const AlignParams& p)
      : starts(p.scratch), ends(starts + (long long)p.tiles * p.experts), slices(ends + p.experts) {}
};

// Lays out a slice's groups, a lane an expert: gives the lane's start relative to the slice, in places, and the
// slice's blocks.
__device__ __forceinline__ int slice_start(const AlignParams& p, int count, int& slice_blocks) {
  const int blocks = quotient(count + p.block_size - 1, p.block);
  const int inclusive = warp_prefix(blocks);
  slice_blocks = __shfl_sync(~0u, inclusive, 31);
  return (inclusive - blocks) * p.block_size;
}

// One warp turns the slices' blocks, in its lanes' `blocks`, four slices a lane, into bases[s], the first place of
// slice s, and bases[MAX_SLICES], the places in use.
__device__ __forceinline__ void scan_slices(const AlignParams& p, const int (&blocks)[4], int* bases) {
  const int lane = threadIdx.x & 31;
  const int own = blocks[0] + blocks[1] + blocks[2] + blocks[3], inclusive = warp_prefix(own);
  int at = inclusive - own;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    bases[lane * 4 + j] = at * p.block_size;
    at += blocks[j];
  }
  if (lane == 31) bases[MAX_SLICES] = at * p.block_size;
}

// A block counts its tile's ids by expert, a thread BATCH at a time.
template <int BATCH>
__global__ void __launch_bounds__(THREADS) tile_histogram(AlignParams p) {
  extern __shared__ int memory[];
  int* counts = memory;  // [experts]
  const ScanScratch scratch(p);
  const int tid = threadIdx.x, tile = blockIdx.x;
#pragma unroll 1
  for (int e = tid; e < p.experts; e += THREADS) counts[e] = 0;
  after_previous(false);  // so place_ids, which reads ids before it waits, starts when they are there
  __syncthreads();  // counters are zero before any is raised
  const long long begin = (long long)tile * p.tile_length;
  const int end = (int)min(begin + p.tile_length, (long long)p.numel);
#pragma unroll 1
  for (long long base = begin + tid; base < end; base += THREADS * BATCH) {
    int expert[BATCH];
    load_experts(p, (int)base, THREADS, end - (int)base, expert);
#pragma unroll
    for (int j = 0; j < BATCH; ++j)
      if (expert[j] >= 0) atomicAdd(&counts[expert[j]], 1);
  }
  __syncthreads();  // all ids are counted before the counts are read
  int* row = scratch.starts + (long long)tile * p.experts;
#pragma unroll 1
  for (int e = tid; e < p.experts; e += THREADS) row[e] = counts[e];
}

// Lays out the groups, and turns tile counts into starts, in place, relative to the slice. A block owns a slice: lane l
// its l-th expert, warp w the w-th run of tiles.
__global__ void __launch_bounds__(THREADS) scan_tiles(AlignParams p) {
  constexpr int BATCH = 10;  // a warp's run of TILES tiles
  __shared__ int runs[WARPS][SLICE];
  const ScanScratch scratch(p);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int e = blockIdx.x * SLICE + lane, tiles = e < p.experts ? p.tiles : 0;
  const int run = (p.tiles + WARPS - 1) / WARPS;
  const int begin = min(warp * run, tiles), end = min(begin + run, tiles);
  after_previous(true);
  int* column = scratch.starts + e;
  int counts[BATCH], sum = 0;
#pragma unroll 1
  for (int first = begin; first < end; first += BATCH) {
#pragma unroll
    for (int j = 0; j < BATCH; ++j) counts[j] = first + j < end ? column[(long long)(first + j) * p.experts] : 0;
#pragma unroll
    for (int j = 0; j < BATCH; ++j) sum += counts[j];
  }
  runs[warp][lane] = sum;
  __syncthreads();  // all runs' sums are written before they are added up
  int before = 0, count = 0, blocks;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) {
    const int here = runs[w][lane];
    if (w < warp) before += here;
    count += here;
  }
  const int start = slice_start(p, count, blocks);
  int at = start + before;
#pragma unroll 1
  for (int first = begin; first < end; first += BATCH) {
    if (run > BATCH) {  // else they are still there
#pragma unroll
      for (int j = 0; j < BATCH; ++j) counts[j] = first + j < end ? column[(long long)(first + j) * p.experts] : 0;
    }
#pragma unroll
    for (int j = 0; j < BATCH; ++j) {
      if (first + j < end) column[(long long)(first + j) * p.experts] = at;
      at += counts[j];
    }
  }
  if (warp == 0) {
    if (e < p.experts) scratch.ends[e] = start + count;
    if (lane == 0) scratch.slices[blockIdx.x] = blocks;
  }
}

// A block places its tile's ids, in rounds of `own`, and its share of the padding. The first round is ranked while the
// launches before it run. STAGED sorts each round in shared memory first, so that an expert's ids are written in runs:
// the L2 takes only about 40 writes of 4 bytes anywhere a cycle. A warp ranks up to CHUNKS * 32 ids a round. Shared
// memory: see `place_shared` of align_plan.py.
template <int CHUNKS, bool STAGED>
__global__ void __launch_bounds__(THREADS) place_ids(AlignParams p) {
  constexpr int PER = MAX_EXPERTS / THREADS, BATCH = 8;
  extern __shared__ int memory[];
  __shared__ int sums[WARPS];
  const ScanScratch scratch(p);
  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
  const int experts = p.experts, rounded = (experts + PER - 1) / PER * PER;
  unsigned* masks = reinterpret_cast<unsigned*>(memory);  // [rounded]; later the round's count of each expert
  int* starts = memory + rounded;                         // [rounded] where the round's ids of an expert start
  int* bases = starts + rounded;                          // [MAX_SLICES + 4] first place of each slice
  int* locals = bases + MAX_SLICES + 4;                   // STAGED: [rounded] where an expert starts in `sorted`
  int* rest = STAGED ? locals + rounded : locals;
  unsigned short* counts = reinterpret_cast<unsigned short*>(rest);  // [rank_warps, experts]
  unsigned* sorted = reinterpret_cast<unsigned*>(rest);   // STAGED: [own] expert << 12 | index, after the counts
  const int slices = (experts + SLICE - 1) / SLICE;
  const long long tile = (long long)blockIdx.x * p.tile_length;
  const int tile_end = (int)min(tile + p.tile_length, (long long)p.numel);

  Ranks<CHUNKS> ranks;
#pragma unroll 1
  for (long long begin = tile; begin < tile_end; begin += p.own) {
    ranks.load(p, (int)begin, (int)min(begin + p.own, (long long)tile_end));
#pragma unroll 1
    for (int e = tid; e < rounded; e += THREADS) {
      if (begin > tile && e < experts) starts[e] += masks[e];
      masks[e] = 0;
    }
    __syncthreads();  // masks are zero before any is raised
    ranks.count(p, masks, counts);
    __syncthreads();  // the round is counted by warp before the counts are read
    prefix_over_warps(p, masks, counts);
    int all = 0;
    if (STAGED) {
      __syncthreads();  // the round's counts are complete before they are summed over the experts
      int count[PER] = {};
      if (tid * PER < experts) get<PER>(memory + tid * PER, count);
      int at = expert_prefix(count, sums, all);
#pragma unroll
      for (int j = 0; j < PER; ++j) {
        const int here = count[j];
        count[j] = at;
        at += here;
      }
      if (tid * PER < experts) put<PER>(locals + tid * PER, count);
      __syncthreads();  // where experts start is written before it is looked up
      ranks.locate(p, locals, counts);
      __syncthreads();  // counts are read before sorted ids overwrite them
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c)
        if (ranks.expert[c] >= 0)
          sorted[ranks.rank[c]] = (unsigned)ranks.expert[c] << 12 | (unsigned)(ranks.first + c * 32 - (int)begin);
    }
    if (begin == tile) {
      after_previous(false);
      const int* row = scratch.starts + (long long)blockIdx.x * experts;
#pragma unroll 1
      for (int first = tid; first < experts; first += THREADS * BATCH) {
        int start[BATCH];
#pragma unroll
        for (int j = 0; j < BATCH; ++j) start[j] = first + j * THREADS < experts ? row[first + j * THREADS] : 0;
#pragma unroll
        for (int j = 0; j < BATCH; ++j)
          if (first + j * THREADS < experts) starts[first + j * THREADS] = start[j];
      }
      if (warp == 0) {
        int blocks[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) blocks[j] = lane * 4 + j < slices ? scratch.slices[lane * 4 + j] : 0;
        scan_slices(p, blocks, bases);
      }
    }
    __syncthreads();  // starts, bases, and prefixes or sorted ids are written before places are computed from them
    if (STAGED) {
#pragma unroll 4
      for (int i = tid; i < all; i += THREADS) {
        const int e = sorted[i] >> 12, index = sorted[i] & 4095;
        place(p, (int)begin + index, e, starts[e] + bases[e / SLICE] + i - locals[e]);
      }
    } else {
      ranks.locate(p, starts, counts);
#pragma unroll
      for (int c = 0; c < CHUNKS; ++c) {
        const int e = ranks.expert[c];
        if (e >= 0) place(p, ranks.first + c * 32, e, ranks.rank[c] + bases[e / SLICE]);
      }
    }
    __syncthreads();  // the round is placed before its starts, masks and counts change
  }
  // The grid's blocks take experts in turn, and a block's warps its experts.
  const int grid = gridDim.x;
#pragma unroll 1
  for (int first = blockIdx.x; first < experts; first += grid * 32) {
    const int e = first + grid * lane;
    const int from = e < experts ? bases[e / SLICE] + scratch.ends[e] : 0;
    fill_groups(p, from, padded(p, from), warp, WARPS);
  }
  finish(p, bases[MAX_SLICES]);
}
