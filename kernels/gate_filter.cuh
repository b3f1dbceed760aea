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

// How far below the bound an expert that is no worse in truth must be estimated to be out: more than twice the
// estimate's error, so that one that equals the bound is never out.
template <int SCORING, bool SCORED, bool FINE>
__device__ __forceinline__ float slack(float bound) {
  const float error = !SCORED || SCORING == SOFTMAX ? 0x1p-126f : FINE ? 1e-5f : 6e-4f;
  return __fmaf_rn(fabsf(bound), 1.f / (1 << 19), error);
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

// The larger of two numbers, or the smaller if `bit` is set: a bit of the lane, of which the compiler, left alone, makes
// a predicate in three instructions instead of one.
__device__ __forceinline__ float compared(float a, float b, unsigned bit) {
#ifdef __CUDA_ARCH__
  float result;
  asm("{.reg .pred is_set, keeps; setp.ne.u32 is_set, %3, 0; setp.gt.xor.f32 keeps, %1, %2, is_set;"
      " selp.f32 %0, %1, %2, keeps;}" : "=f"(result) : "f"(a), "f"(b), "r"(bit));
  return result;
#else
  return (a > b) != (bit != 0) ? a : b;
#endif
}

// Counts up to 32 comparisons, in a float, as the units of integers and comparisons have enough to do.
struct Count {
  float value = 0x1p23f;  // whose last bits hold the count

  __device__ __forceinline__ void less(int a, int b) {  // one more if a < b
#ifdef __CUDA_ARCH__
    asm("{.reg .pred less; setp.lt.s32 less, %1, %2; @less add.f32 %0, %0, 0f3f800000;}" : "+f"(value) : "r"(a), "r"(b));
#else
    value += a < b;
#endif
  }
  __device__ __forceinline__ int total() const { return __float_as_int(value) & 63; }
};

// Bit j: values[j] > least; not if it is NaN. Takes the sign of their difference, in half the instructions of this kind
// that comparing takes.
template <int N>
__device__ __forceinline__ unsigned greater_than(const float (&values)[N], float least) {
  unsigned bits = 0;
#pragma unroll
  for (int first = 0; first < N; first += 8) {  // within eight, each needs the one before
    unsigned eight = 0;
#pragma unroll
    for (int j = min(first + 8, N) - 1; j >= first; --j) {
      float apart = __fsub_rn(least, values[j]);
#ifndef __CUDA_ARCH__
      if (apart != apart) apart = 0.f;  // the GPU's NaN is positive
#endif
      eight = __funnelshift_l(__float_as_uint(apart), eight, 1);
    }
    bits |= eight << first;
  }
  return bits;
}

// The `wanted`-th largest of the warp's keys. `keys` are the warp's own words.
__device__ __forceinline__ int kth_of_warp(int key, int wanted, int4* keys) {
  reinterpret_cast<int*>(keys)[threadIdx.x & 31] = key;
  __syncwarp();  // all keys are written before they are compared
  Count odd, even;  // two, as each addition waits for the one before
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int4 k = keys[i];
    odd.less(key, k.x), even.less(key, k.y), odd.less(key, k.z), even.less(key, k.w);
  }
  const int greater = odd.total() + even.total();
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
    value = compared(value, mirrored, lane & size >> 1);
#pragma unroll
    for (int step = size >> 2; step; step >>= 1) {
      const float other = __shfl_xor_sync(~0u, value, step);
      value = compared(value, other, lane & step);
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

// Adds the value of the lane `step` below, if it is one of the same LANES lanes.
template <int LANES>
__device__ __forceinline__ int add_lower(int value, int step) {
#ifdef __CUDA_ARCH__
  asm volatile("{.reg .pred is_in; .reg .b32 lower; shfl.sync.up.b32 lower|is_in, %0, %1, %2, -1;"
               " @is_in add.s32 %0, %0, lower;}" : "+r"(value) : "r"(step), "n"((32 - LANES) << 8));
  return value;
#else
  const int lower = __shfl_up_sync(~0u, value, step, LANES);
  return (threadIdx.x & (LANES - 1)) >= step ? value + lower : value;
#endif
}

// How many the lanes below have of a row's LANES, each `own`; `count` becomes what all have. Where a warp has one row,
// latency counts: votes are as many instructions, but need no turns. Beyond 7 a lane there is no saying: then both are
// more than there are slots.
template <int LANES>
__device__ __forceinline__ int lower_lanes_have(int own, int& count) {
  if (LANES == 32) {
    const unsigned lower = (1u << (threadIdx.x & 31)) - 1;
    const unsigned ones = __ballot_sync(~0u, own & 1), twos = __ballot_sync(~0u, own & 2);
    const unsigned fours = __ballot_sync(~0u, own & 4), many = __ballot_sync(~0u, own > 7);
    count = __popc(ones) + 2 * __popc(twos) + 4 * __popc(fours);
    if (many) count = SLOTS_A_ROW + 1;
    const int before = __popc(ones & lower) + 2 * __popc(twos & lower) + 4 * __popc(fours & lower);
    return many ? count : before;
  }
  int upto = own;
#pragma unroll
  for (int step = 1; step < LANES; step <<= 1) upto = add_lower<LANES>(upto, step);
  count = __shfl_sync(~0u, upto, LANES - 1, LANES);
  return upto - own;
}

// Writes each candidate of this lane, a bit of `mask`, as (thread << 5 | bit) to the row's `code`, while there are
// slots. Returns how many candidates the LANES lanes have, or some number above the slots if they have more. Where
// several warps share the row, `total` is what they have in all.
template <int LANES>
__device__ __forceinline__ int collect(unsigned mask, int thread, int* code, int* total = nullptr) {
  int count;
  int slot = lower_lanes_have<LANES>(__popc(mask), count);
  if (total) {
    int first = 0;
    if ((threadIdx.x & 31) == 0 && count) first = atomicAdd(total, count);
    slot += __shfl_sync(~0u, first, 0);
  }
  for (; mask && slot < SLOTS_A_ROW; ++slot) {
    const int bit = 31 - __clz(mask);
    code[slot] = thread << 5 | bit;
    mask ^= 1u << bit;
  }
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
  Count lower;
#pragma unroll
  for (int i = 0; i < SLOTS / 4; ++i) {
    if (4 * i >= most) break;
    const int4 k = c.key[(base >> 2) + i];
    lower.less(k.x, key), lower.less(k.y, key), lower.less(k.z, key), lower.less(k.w, key);
  }
  int rank = lower.total();
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
