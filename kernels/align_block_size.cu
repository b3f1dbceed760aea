// Groups flat indices of (token, place) pairs by expert, each group padded to a multiple of the block size: a stable
// counting sort. Everything is bitwise repeatable: the only atomics add integers, whose order doesn't show.
//
//   single   one launch. Every block counts all ids (they are few) and writes its own slice of the outputs.
//   fused    tile_histogram, then place_ids, whose blocks sum the tile counts themselves.
//   scanned  tile_histogram, scan_tiles, then place_ids. For many tiles or experts.
//
// Ownership in place_ids: a block owns one tile of neighbouring ids; a warp owns a run of the tile's current round,
// read in chunks of 32, so an id's rank among equal ids is (earlier tiles) + (earlier rounds) + (earlier warps) +
// (earlier chunks of the warp) + (lower lanes), each in order of the flat index. Thread t owns the experts
// t·PER … t·PER + PER - 1 in scans. Blocks past the tiles own the padding and expert_ids.

constexpr int THREADS = 512;
enum Mode { SINGLE = 0, FUSED = 1, SCANNED = 2 };

struct AlignParams {
  const void* ids;
  const int* expert_map;   // null: identity
  int* sorted_ids;         // [capacity]
  int* expert_ids;         // [capacity / block_size]
  int* total_padded;       // [1]
  int* tile_counts;        // [tiles, experts] scratch: counts; prefixes over tiles after scan_tiles
  int* expert_counts;      // [experts] scratch, written by scan_tiles
  long long row_stride, column_stride, map_stride;  // elements
  int wide, numel, topk, experts, block_size, capacity, tiles, tile_length;
};

// Expert of flat index i, -1 if it has none here. `wide`: ids are 64 bit.
__device__ __forceinline__ int expert_of(const AlignParams& p, int i) {
  const int row = p.topk == p.numel ? 0 : i / p.topk;  // the launcher passes evenly strided ids as one row
  const long long at = row * p.row_stride + (i - row * p.topk) * p.column_stride;
  const long long id = p.wide ? static_cast<const long long*>(p.ids)[at] : static_cast<const int*>(p.ids)[at];
  if (id < 0 || id >= p.experts) return -1;
  const int expert = p.expert_map ? p.expert_map[id * p.map_stride] : (int)id;
  return expert < 0 || expert >= p.experts ? -1 : expert;
}

// Exclusive prefix sum over the block's threads; `total` is the sum. Holds two barriers; `sums` may be reused after
// a further one.
__device__ __forceinline__ int block_prefix(int value, int* sums, int& total) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int inclusive = value;
  for (int step = 1; step < 32; step <<= 1) {
    const int other = __shfl_up_sync(~0u, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  if (lane == 31) sums[warp] = inclusive;
  __syncthreads();  // all warps' sums are written before the first warp scans them
  if (warp == 0) {
    int sum = lane < THREADS / 32 ? sums[lane] : 0;
    for (int step = 1; step < 32; step <<= 1) {
      const int other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    if (lane < THREADS / 32) sums[lane] = sum;
  }
  __syncthreads();  // the scanned sums are written before all read them
  total = sums[THREADS / 32 - 1];
  return inclusive - value + (warp ? sums[warp - 1] : 0);
}

// Counts one tile's ids by expert into tile_counts[tile]. A block owns a tile.
template <int BUCKETS>
__global__ void __launch_bounds__(THREADS) tile_histogram(AlignParams p) {
  __shared__ int counts[BUCKETS];
  const int tid = threadIdx.x, tile = blockIdx.x;
  for (int e = tid; e < p.experts; e += THREADS) counts[e] = 0;
  __syncthreads();  // counters are zero before any is raised
  const long long begin = (long long)tile * p.tile_length;
  const int end = (int)min(begin + p.tile_length, (long long)p.numel);
  for (int base = (int)begin; base < end; base += THREADS) {
    const int i = base + tid, expert = i < end ? expert_of(p, i) : -1;
    // One expert in the whole warp is common in skewed inputs and would serialise 32 atomics.
    const int leader = __shfl_sync(~0u, expert, 0);
    if (__ballot_sync(~0u, expert == leader) == ~0u) {
      if ((tid & 31) == 0 && expert >= 0) atomicAdd(&counts[expert], 32);
    } else if (expert >= 0) {
      atomicAdd(&counts[expert], 1);
    }
  }
  __syncthreads();  // all ids are counted before the counts are read
  for (int e = tid; e < p.experts; e += THREADS) p.tile_counts[(long long)tile * p.experts + e] = counts[e];
}

// Turns tile_counts into exclusive prefixes over the tiles, in place, and gives the totals. A block owns 32 experts:
// lane l the l-th, warp w the w-th of 32 runs of tiles.
__global__ void __launch_bounds__(1024) scan_tiles(AlignParams p) {
  __shared__ int sums[32][33];  // 33: a column's entries in different banks
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int e = blockIdx.x * 32 + lane;
  const int run = (p.tiles + 31) / 32;
  const int begin = min(warp * run, p.tiles), end = min(begin + run, p.tiles);
  int* column = p.tile_counts + e;
  int sum = 0;
  if (e < p.experts)
    for (int t = begin; t < end; ++t) sum += column[(long long)t * p.experts];
  sums[warp][lane] = sum;
  __syncthreads();  // all runs' sums are written before they are added up
  int prefix = 0;
  for (int w = 0; w < warp; ++w) prefix += sums[w][lane];
  if (e < p.experts) {
    if (warp == 31) p.expert_counts[e] = prefix + sum;
    for (int t = begin; t < end; ++t) {
      const int count = column[(long long)t * p.experts];
      column[(long long)t * p.experts] = prefix;
      prefix += count;
    }
  }
}

// First position of expert e's group for e <= experts, BUCKETS >= experts.
template <int BUCKETS>
using Offsets = int[BUCKETS + 1];

// Expert of the block of the output that starts at `position`: the one whose group ends past it.
__device__ __forceinline__ int owner_of(const int* offsets, int experts, int position) {
  int low = 0, high = experts - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (offsets[middle + 1] <= position) low = middle + 1;
    else high = middle;
  }
  return low;
}

// Places the ids of [begin, end) of one round. `ranks` counts by warp: WARPS warps, `stride` counters each.
template <int WARPS, int CHUNKS>
struct Round {
  int expert[CHUNKS], rank[CHUNKS];
  int chunks, first;  // chunks a warp; flat index of this lane's first id

  __device__ __forceinline__ void load(const AlignParams& p, int begin, int end) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    chunks = (end - begin + WARPS * 32 - 1) / (WARPS * 32);
    first = begin + warp * chunks * 32 + lane;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const int i = first + c * 32;
      expert[c] = warp < WARPS && c < chunks && i < end ? expert_of(p, i) : -1;
    }
  }

  // Ranks this warp's ids among the equal ones of its own run, counting them in `counts`.
  __device__ __forceinline__ void count(unsigned short* counts, int experts) {
    const unsigned lower = (1u << (threadIdx.x & 31)) - 1;
    const int bits = 32 - __clz(experts - 1);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      if (c >= chunks) break;
      const int e = expert[c];
      unsigned peers = __ballot_sync(~0u, e >= 0);
      for (int b = 0; b < bits; ++b) {
        const bool set = e >> b & 1;
        const unsigned same = __ballot_sync(~0u, set);
        peers &= set ? same : ~same;
      }
      const int before = e >= 0 ? counts[e] : 0;
      rank[c] = before + __popc(peers & lower);
      __syncwarp();  // every peer has read the count before one of them raises it
      if (e >= 0 && !(peers & lower)) counts[e] = (unsigned short)(before + __popc(peers));
      __syncwarp();  // the count is raised before the next chunk reads it
    }
  }
};

template <int BUCKETS, int WARPS, int CHUNKS, int MODE>
__global__ void __launch_bounds__(THREADS) place_ids(AlignParams p) {
  constexpr int PER = BUCKETS / THREADS;
  constexpr int SUMMED = MODE == FUSED ? BUCKETS : 1;
  constexpr int ROUND = WARPS * CHUNKS * 32;
  static_assert(ROUND <= 65535, "a round's counts are 16 bit");
  __shared__ unsigned short counts[WARPS][BUCKETS];
  __shared__ Offsets<BUCKETS> offsets;
  __shared__ int totals[SUMMED], prefixes[SUMMED];
  __shared__ int sums[32];

  const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, experts = p.experts;
  const bool places = MODE == SINGLE || (int)blockIdx.x < p.tiles;  // else: writes padding and expert_ids
  const int finishers = MODE == SINGLE ? gridDim.x : gridDim.x - p.tiles;
  const int finisher = MODE == SINGLE ? blockIdx.x : blockIdx.x - p.tiles;
  // The part of the outputs that this block finishes; all of one block's with SINGLE, which also places only there.
  const int share = (p.capacity + finishers - 1) / finishers;
  const int low = MODE == SINGLE ? min((long long)finisher * share, (long long)p.capacity) : 0;
  const int high = MODE == SINGLE ? min((long long)low + share, (long long)p.capacity) : p.capacity;

  const long long begin = MODE == SINGLE ? 0 : (long long)blockIdx.x * p.tile_length;
  const int end = (int)min(MODE == SINGLE ? (long long)p.numel : begin + p.tile_length, (long long)p.numel);
  // Warps with ids: the others' counters are never touched. Few ids leave most warps idle.
  const int used = MODE == SINGLE ? min(WARPS, (p.numel + 31) / 32) : WARPS;

  Round<WARPS, CHUNKS> round;
  int counted[PER], all = 0;  // ids of the round by expert; padded total of all experts
  for (long long base = begin;; base += ROUND) {
    const bool opening = base == begin;
    if (places) round.load(p, (int)base, (int)min(base + ROUND, (long long)end));
    for (int w = 0; w < used; ++w)
      for (int e = tid; e < experts; e += THREADS) counts[w][e] = 0;
    if (opening) {
      if (MODE == FUSED)
        for (int e = tid; e < experts; e += THREADS) totals[e] = prefixes[e] = 0;
      if (MODE == SINGLE)
        for (int i = low + tid; i < high; i += THREADS) p.sorted_ids[i] = p.numel;
    } else {
#pragma unroll
      for (int i = 0; i < PER; ++i)
        if (tid * PER + i < experts) offsets[tid * PER + i] += counted[i];
    }
    __syncthreads();  // counters are zero, and SINGLE's slice is filled, before anything is counted or placed

    if (MODE == FUSED && opening) {
      // Warp w sums every 16th tile, a lane one expert of 32.
      for (int e = lane; e < experts; e += 32) {
        int total = 0, prefix = 0;
#pragma unroll 8
        for (int t = warp; t < p.tiles; t += THREADS / 32) {
          const int count = p.tile_counts[(long long)t * experts + e];
          total += count;
          if (t < (int)blockIdx.x) prefix += count;
        }
        atomicAdd(&totals[e], total);
        atomicAdd(&prefixes[e], prefix);
      }
    }
    if (places && warp < WARPS) round.count(counts[warp], experts);
    __syncthreads();  // the round is counted by warp, and FUSED's sums are complete

    // counts[w] becomes the exclusive prefix over the warps.
#pragma unroll
    for (int i = 0; i < PER; ++i) {
      const int e = tid * PER + i;
      int sum = 0;
      if (e < experts)
        for (int w = 0; w < used; ++w) {
          const int count = counts[w][e];
          counts[w][e] = (unsigned short)sum;
          sum += count;
        }
      counted[i] = sum;
    }
    if (opening) {
      int padded[PER], own = 0;
#pragma unroll
      for (int i = 0; i < PER; ++i) {
        const int e = tid * PER + i;
        int total = 0;
        if (e < experts) total = MODE == SINGLE ? counted[i] : MODE == FUSED ? totals[e] : p.expert_counts[e];
        padded[i] = (total + p.block_size - 1) / p.block_size * p.block_size;
        own += padded[i];
      }
      int at = block_prefix(own, sums, all);
#pragma unroll
      for (int i = 0; i < PER; ++i) {
        const int e = tid * PER + i;
        if (e <= experts) {
          int before = 0;  // ids of e in earlier tiles: where this block's go
          if (places && e < experts)
            before = MODE == FUSED ? prefixes[e]
                     : MODE == SCANNED ? p.tile_counts[(long long)blockIdx.x * experts + e] : 0;
          offsets[e] = at + before;
        }
        at += padded[i];
      }
      if (tid == THREADS - 1 && experts == BUCKETS) offsets[BUCKETS] = all;
    }
    __syncthreads();  // offsets, and the prefixes over the warps, are written before they are used

    if (!places) break;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const int e = round.expert[c];
      if (e < 0) continue;
      const int position = offsets[e] + counts[warp][e] + round.rank[c];
      if (MODE != SINGLE || (position >= low && position < high)) p.sorted_ids[position] = round.first + c * 32;
    }
    if (MODE == SINGLE || base + ROUND >= end) break;
    __syncthreads();  // the round is placed before its counters are cleared and its offsets moved on
  }
  if (MODE != SINGLE && places) return;

  if (finisher == 0 && tid == 0) *p.total_padded = all;
  const int blocks = p.capacity / p.block_size;
  for (int b = finisher * THREADS + tid; b < blocks; b += finishers * THREADS) {
    const int position = b * p.block_size;
    p.expert_ids[b] = position < all ? owner_of(offsets, experts, position) : -1;
  }
  if (MODE == SINGLE) return;
  for (long long i = (long long)all + finisher * THREADS + tid; i < p.capacity; i += finishers * THREADS)
    p.sorted_ids[i] = p.numel;
  // A warp pads one expert's group.
  for (int e = finisher * (THREADS / 32) + warp; e < experts; e += finishers * (THREADS / 32)) {
    const int used = offsets[e] + (MODE == FUSED ? totals[e] : p.expert_counts[e]);
    for (int i = used + lane; i < offsets[e + 1]; i += 32) p.sorted_ids[i] = p.numel;
  }
}
