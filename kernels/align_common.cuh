#pragma once
// What the variants of moe_align_block_size share. Every expert's group starts at a multiple of the block size, so a
// position in sorted_ids is enough to know its block.

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;
constexpr int MAX_EXPERTS = 4096;
constexpr int SLICE = 32;  // experts that a warp looks after, a lane each
constexpr int MAX_SLICES = MAX_EXPERTS / SLICE;

// Division by a constant of the launch: quotient = (n * multiplier) >> shift, exact for 0 <= n < 2^31.
struct Divisor {
  unsigned multiplier;
  int shift;
};

struct AlignParams {
  const void* ids;
  const int* expert_map;  // null: identity
  int* sorted_ids;        // [capacity]
  int* expert_ids;        // [capacity / block_size]
  int* total_padded;      // [1]
  int* scratch;           // laid out by the variant, aligned to 16 bytes
  // Elements. Flat index i is at i * column_stride + (i / row) * row_gap; evenly strided ids have row.multiplier 0.
  long long column_stride, row_gap, map_stride;
  Divisor row, block;
  int wide, numel, experts, block_size, capacity;  // wide: ids are 64 bit
  int tiles, tile_length;  // ids of a tile: what one block counts
  int own;                 // ids that one block places
  int rank_warps, chunks;  // warps that rank a block's ids, and chunks of 32 ids each
};

__device__ __forceinline__ int quotient(int n, Divisor by) {
  return (int)((unsigned long long)(unsigned)n * by.multiplier >> by.shift);
}

// The least multiple of the block size that is >= position.
__device__ __forceinline__ int padded(const AlignParams& p, int position) {
  return quotient((unsigned)position + p.block_size - 1, p.block) * p.block_size;
}

// Experts of the N flat indices first, first + step, … less than first + left; -1 for the others and where there is
// none. All loads are in flight together, and from the L2: where nothing has waited for the kernel before yet, the L1 may
// still hold what was there before it.
template <int N>
__device__ __forceinline__ void load_experts(const AlignParams& p, int first, int step, int left, int (&expert)[N]) {
  long long at[N];
#pragma unroll
  for (int j = 0; j < N; ++j) {
    const int i = first + j * step;
    at[j] = i * p.column_stride + quotient(i, p.row) * p.row_gap;
  }
  if (p.wide) {
    long long id[N];
#pragma unroll
    for (int j = 0; j < N; ++j) id[j] = j * step < left ? __ldcg(static_cast<const long long*>(p.ids) + at[j]) : -1;
#pragma unroll
    for (int j = 0; j < N; ++j) expert[j] = id[j] >= 0 && id[j] < p.experts ? (int)id[j] : -1;
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j) expert[j] = j * step < left ? __ldcg(static_cast<const int*>(p.ids) + at[j]) : -1;
#pragma unroll
    for (int j = 0; j < N; ++j)
      if ((unsigned)expert[j] >= (unsigned)p.experts) expert[j] = -1;
  }
  if (p.expert_map) {
#pragma unroll
    for (int j = 0; j < N; ++j)
      if (expert[j] >= 0) expert[j] = __ldcg(p.expert_map + expert[j] * p.map_stride);
#pragma unroll
    for (int j = 0; j < N; ++j)
      if ((unsigned)expert[j] >= (unsigned)p.experts) expert[j] = -1;
  }
}

// Lanes of the warp whose `theirs` is this lane's expert; 0 for lanes without one.
__device__ __forceinline__ unsigned peers_of(int expert, int theirs, int experts) {
  unsigned peers = __ballot_sync(~0u, theirs >= 0);
  if (expert < 0) peers = 0;
  const int bits = 32 - __clz(experts - 1);  // __clz(0) is 32
#pragma unroll 1
  for (int low = 0; low < bits; low += 3) {
#pragma unroll
    for (int b = low; b < low + 3; ++b) {
      const unsigned set = __ballot_sync(~0u, theirs >> b & 1);
      peers &= expert >> b & 1 ? set : ~set;
    }
  }
  return peers;
}

__device__ __forceinline__ unsigned lower_lanes() { return (1u << (threadIdx.x & 31)) - 1; }

// Sum over the lanes up to and including this one.
__device__ __forceinline__ int warp_prefix(int value) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    const int other = __shfl_up_sync(~0u, value, step);
    if (lane >= step) value += other;
  }
  return value;
}

// Exclusive prefix sums over the experts: thread t owns PER of them from t * PER on. Gives the sum before the thread's
// first, and the sum of all. Holds a barrier; `sums`, a number a warp, may be reused after a further one.
template <int PER>
__device__ __forceinline__ int expert_prefix(const int (&value)[PER], int* sums, int& all) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  int own = 0;
#pragma unroll
  for (int j = 0; j < PER; ++j) own += value[j];
  const int inclusive = warp_prefix(own);
  if (lane == 31) sums[warp] = inclusive;
  __syncthreads();  // all warps' sums are written before they are added up
  const int sum = lane < WARPS ? sums[lane] : 0;
  all = __reduce_add_sync(~0u, sum);
  return __reduce_add_sync(~0u, lane < warp ? sum : 0) + inclusive - own;
}

// N neighbouring numbers: one, or four at a time.
template <int N>
__device__ __forceinline__ void get(const int* from, int (&to)[N]) {
#pragma unroll
  for (int j = 0; j < N; j += 4) {
    if (N % 4) {
      to[j] = from[j];
      continue;
    }
    const int4 four = *reinterpret_cast<const int4*>(from + j);
    to[j] = four.x, to[j + 1] = four.y, to[j + 2] = four.z, to[j + 3] = four.w;
  }
}

template <int N>
__device__ __forceinline__ void put(int* to, const int (&from)[N]) {
#pragma unroll
  for (int j = 0; j < N; j += 4) {
    if (N % 4) to[j] = from[j];
    else *reinterpret_cast<int4*>(to + j) = make_int4(from[j], from[j + 1], from[j + 2], from[j + 3]);
  }
}

// Writes flat index i at its position; the first id of a block also names the block's expert.
__device__ __forceinline__ void place(const AlignParams& p, int i, int expert, int position) {
  p.sorted_ids[position] = i;
  const int block = quotient(position, p.block);
  if (block * p.block_size == position) p.expert_ids[block] = expert;
}

// A warp fills [from, to) of every `step`th lane from `first` on.
__device__ __forceinline__ void fill_groups(const AlignParams& p, int from, int to, int first, int step) {
  const int lane = threadIdx.x & 31;
#pragma unroll 1
  for (int l = first; l < 32; l += step) {
    const unsigned begin = __shfl_sync(~0u, from, l), end = __shfl_sync(~0u, to, l);
#pragma unroll 1
    for (unsigned i = begin + lane; i < end; i += 32) p.sorted_ids[i] = p.numel;
  }
}

// The grid writes total_padded, and fills the outputs past the places in use.
__device__ __forceinline__ void finish(const AlignParams& p, int used) {
  const unsigned worker = blockIdx.x * THREADS + threadIdx.x, workers = gridDim.x * THREADS;
  const unsigned capacity = p.capacity, blocks = quotient(p.capacity, p.block);
  if (worker == 0) *p.total_padded = used;
#pragma unroll 1
  for (unsigned i = used + worker; i < capacity; i += workers) p.sorted_ids[i] = p.numel;
#pragma unroll 1
  for (unsigned b = quotient(used, p.block) + worker; b < blocks; b += workers) p.expert_ids[b] = -1;
}
