// Which experts of a row can be among its best, by a cheap estimate of their c; only those are scored exactly.
//
// Every lane's largest estimate is its *head*. The `routed`-th largest head is a bound: at least `routed`
// experts are estimated no worse, so an expert that is estimated worse by more than the estimate's error is out.
// What is left, the *candidates*, are compacted to one a lane (a *slot*), scored exactly, ranked by counting and
// seated. A row with more candidates than slots (many ties), fewer than places, or no finite bound is left to
// exact_row. Both ways are exact, so the choice between them never shows.
#pragma once

#include "gate_row.cuh"

constexpr float LARGEST = 3.40282347e+38f;  // finite float

// Estimate of an expert's c up to a constant of the row, from its logit. FINE: to 1e-6, else to 3e-4.
template <int SCORING, bool SCORED, bool FINE>
__device__ __forceinline__ float estimate(float x, float bias, float peak, float scale) {
  if (!SCORED) return x;  // scores grow with their logits
  if (SCORING == SOFTMAX) return __fadd_rn(score(SOFTMAX, x, peak, scale), bias);
  if (FINE) return __fadd_rn(reciprocal_approx(__fadd_rn(1.f, exp2_approx(__fmul_rn(x, -LOG2E)))), bias);
  return __fmaf_rn(tanh_approx(__fmul_rn(x, 0.5f)), 0.5f, bias);  // sigmoid(x) - 1/2
}

// How far below the bound an expert that is no worse in truth can be estimated: twice the estimate's error.
template <int SCORING, bool SCORED, bool FINE>
__device__ __forceinline__ float slack(float bound) {
  if (!SCORED || SCORING == SOFTMAX) return 0.f;
  return __fmaf_rn(fabsf(bound), 1.f / (1 << 19), FINE ? 1e-5f : 6e-4f);
}

// The smaller of two numbers, or NaN; fminf would pass over a NaN.
__device__ __forceinline__ float min_keeping_nan(float a, float b) {
#ifdef __CUDA_ARCH__
  float smaller;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(smaller) : "f"(a), "f"(b));
  return smaller;
#else
  return b != b || b < a ? b : a;
#endif
}

// Counts one if a < b, in two instructions where the compiler would take three.
__device__ __forceinline__ void count_less(int& count, int a, int b) {
#ifdef __CUDA_ARCH__
  asm("{.reg .pred less; setp.lt.s32 less, %1, %2; @less add.s32 %0, %0, 1;}" : "+r"(count) : "r"(a), "r"(b));
#else
  count += a < b;
#endif
}

// The `wanted`-th largest of the warp's keys. `keys` are the warp's own words.
__device__ __forceinline__ int kth_of_warp(int key, int wanted, int4* keys) {
  reinterpret_cast<int*>(keys)[threadIdx.x & 31] = key;
  __syncwarp();  // all keys are written before they are compared
  int counts[4] = {};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int4 k = keys[i];
    count_less(counts[0], key, k.x), count_less(counts[1], key, k.y);
    count_less(counts[2], key, k.z), count_less(counts[3], key, k.w);
  }
  const int greater = counts[0] + counts[1] + (counts[2] + counts[3]);
  __syncwarp();  // all keys are compared before the words are used again
  return __reduce_min_sync(~0u, greater < wanted ? key : 0x7fffffff);
}

// The `wanted`-th largest of a value of each of LANES neighbouring lanes: sorts them, largest first. No NaN.
template <int LANES>
__device__ __forceinline__ float sort_lanes(float value) {
  const int lane = threadIdx.x & 31;
#pragma unroll
  for (int size = 2; size <= LANES; size <<= 1) {
    const float mirrored = __shfl_xor_sync(~0u, value, size - 1);
    value = (value > mirrored) != (lane & (size >> 1) ? true : false) ? value : mirrored;
#pragma unroll
    for (int step = size >> 2; step; step >>= 1) {
      const float other = __shfl_xor_sync(~0u, value, step);
      value = (value > other) != (lane & step ? true : false) ? value : other;
    }
  }
  return value;
}

// A row's bound: the `routed`-th largest head, or with TWO of its lanes' two best. `keys` are the warp's own words.
template <int LANES, bool TWO>
__device__ __forceinline__ float bound_of(float first, float second, int routed, int4* keys) {
  if (LANES == 32) return key_to_cost(kth_of_warp(order_key(first), routed, keys));
  first = sort_lanes<LANES>(first);
  if (!TWO) return __shfl_sync(~0u, first, routed - 1, LANES);
  // Some i + 1 best firsts and routed - 1 - i best seconds are the best: those whose worst is best.
  const int i = threadIdx.x & (LANES - 1);
  const float other = __shfl_sync(~0u, sort_lanes<LANES>(second), max(routed - 2 - i, 0), LANES);
  float bound = i >= routed ? -infinity() : i == routed - 1 ? first : fminf(first, other);
#pragma unroll
  for (int step = LANES / 2; step; step >>= 1) bound = fmaxf(bound, __shfl_xor_sync(~0u, bound, step));
  return bound;
}

constexpr int SLOTS_A_ROW = 32;  // most candidates a row can have

// A warp's shared words.
struct Contest {
  int4 key[8];    // of the lanes' heads, or candidates
  int id[32];     // of the lanes' candidates
  int2 seat[32];  // id and score of each place
};

// Writes each candidate of this lane, a bit of `mask`, as (thread << 5 | bit) to the row's `code`, while there are
// slots. Returns how many candidates the LANES lanes have, or more than there are slots if a lane has more than 7:
// then it has written none of its own. Where several warps share the row, `total` is what they have in all.
template <int LANES>
__device__ __forceinline__ int collect(unsigned mask, int thread, int* code, int* total = nullptr) {
  const int lane = threadIdx.x & 31;
  const unsigned row = LANES == 32 ? ~0u : ((1u << LANES) - 1) << (lane & ~(LANES - 1));
  const unsigned lower = row & ((1u << lane) - 1);
  const int own = __popc(mask);
  const unsigned ones = __ballot_sync(~0u, own & 1), twos = __ballot_sync(~0u, own & 2);
  const unsigned fours = __ballot_sync(~0u, own & 4), many = __ballot_sync(~0u, own > 7);
  if (own > 7) mask = 0;  // the row is lost, and the slots behind this lane's are others'
  int count = __popc(ones & row) + 2 * __popc(twos & row) + 4 * __popc(fours & row);
  if (many & row) count = SLOTS_A_ROW + 1;
  int base = 0;
  if (total) {
    if (lane == 0 && count) base = atomicAdd(total, count);
    base = __shfl_sync(~0u, base, 0);
  }
  int slot = base + __popc(ones & lower) + 2 * __popc(twos & lower) + 4 * __popc(fours & lower);
  for (; mask; mask &= mask - 1, ++slot)
    if (slot < SLOTS_A_ROW) code[slot] = thread << 5 | (__ffs(mask) - 1);
  __syncwarp();  // all candidates are written before a lane reads its own
  return count;
}

// Score and key of an expert of one row, from its logit and bias: neighbours in memory, as everywhere here.
template <int DTYPE, int SCORING, bool SCORED>
struct Exact {
  const GateParams& p;
  const void* row;
  float peak, scale;

  __device__ __forceinline__ int key_of(int id, float& s) const {
    const float x = load_float(row, DTYPE, id);
    const float bias = SCORED && p.bias ? load_float(p.bias, p.bias_dtype, id) : 0.f;
    s = score(SCORING, x, peak, scale);
    return rank_key(SCORING, SCORED, x, SCORED || SCORING != SOFTMAX ? s : scale, __fsub_rn(0.f, bias));
  }
};

// Scores a row's `count` candidates, whose ids the lanes hold, one a slot (any id past them), and writes the places. A warp
// does 32 / SLOTS rows at once.
template <int SLOTS, class Scores>
__device__ __forceinline__ void settle(const GateParams& p, unsigned index, bool writes, bool padded, int id, int count,
                                       const Scores& exact, Contest& c) {
  const int lane = threadIdx.x & 31, slot = lane & (SLOTS - 1), base = lane - slot;
  const bool runs = slot < count;
  float s;
  int key = exact.key_of(id, s);
  if (!runs) key = WORST;
  if (s != s) s = 0.f;
  reinterpret_cast<int*>(c.key)[lane] = key;
  __syncwarp();  // all keys are written before they are compared
  const int others = SLOTS == 32 ? 0 : __shfl_xor_sync(~0u, count, 16);
  const int most = max(count, others);
  int rank = 0;
#pragma unroll
  for (int i = 0; i < SLOTS / 4; ++i) {
    if (4 * i >= most) break;
    const int4 k = c.key[(base >> 2) + i];
    count_less(rank, k.x, key), count_less(rank, k.y, key), count_less(rank, k.z, key), count_less(rank, k.w, key);
  }
  const unsigned taken = __reduce_or_sync(~0u, runs ? 1u << (base + rank) : 0u);
  if (__popc(taken) != count + others) {  // equal keys: the lower id goes first
    c.id[lane] = id;
    __syncwarp();  // all ids are written before they are compared
    for (int i = 0; i < most; ++i) {
      const int k = reinterpret_cast<const int*>(c.key)[base + i];
      rank += i < count && k == key && c.id[base + i] < id;
    }
  }
  if (runs && rank < p.routed) c.seat[base + rank] = make_int2(id, __float_as_int(s));
  __syncwarp();  // all seats are taken before they are read
  const int2 seat = slot < min(p.routed, count) ? c.seat[lane] : make_int2(0, 0);
  write_places<SLOTS>(p, index, writes, padded, seat.x, __int_as_float(seat.y));
  __syncwarp();  // the row is done before the next one's candidates are collected
}
