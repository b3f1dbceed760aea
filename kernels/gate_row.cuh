// What every gate kernel does with a row: softmax terms, the top-k, the weights and ids.
//
// Ownership. A *team* owns one row at a time and walks the rows with a grid stride. Not SPLIT: a team is a
// warp, and a block holds up to TEAMS of them, each with rows and shared memory of its own. SPLIT: a team is
// a whole block. A lane owns VPT neighbouring experts, lanes own ascending runs, warps neighbouring runs of
// 32·VPT; so among equal keys the lower lane (and warp) always holds the lower expert id, and ties need no
// comparison.
//
// Selection. A warp takes the best key of each lane, and of these the `routed`-th best as a threshold: at
// least `routed` experts are no worse, and few more. Those are compacted to one per lane, scored again from
// their logit, and ranked by counting. Where more than 32 qualify (many ties, large k) it picks one by one
// instead. Both are exact, so the choice between them never shows. In a split row the first warp then merges
// the warps' sorted lists.
#pragma once

#include "gate_groups.cuh"
#include "stream.cuh"

constexpr int MAX_EXPERTS = 4096;
constexpr int TEAMS = 4;         // most teams a block
constexpr int PLACES = 32;       // most places a row can have: one a lane
constexpr int FAST_ROUTED = 20;  // past it more than 32 experts usually meet the threshold

struct GateParams {
  const void* logits;
  const void* bias;              // null: none
  float* weights;                // [rows, places]
  int* indices;                  // [rows, places]
  const int* num_valid_rows;     // null: all
  const int* expert_map;         // null: identity
  long long rows, row_stride, column_stride, bias_stride, map_stride;  // strides in elements
  int experts, routed, places, groups, kept_groups, logits_dtype, bias_dtype, renormalize, scoring;
  int scored;                    // rank by scores, not by logits
  float routed_scale, shared_weight;
  int early;                     // let the next launch start before the one before has ended
};

// One row's logits, in whatever layout.
struct Row {
  const void* data;  // first element of the row
  long long column_stride;
  int dtype;

  __device__ __forceinline__ float operator[](int expert) const {
    return load_float(data, dtype, expert * column_stride);
  }
};

__device__ __forceinline__ Row row_at(const GateParams& p, unsigned row, int dtype, long long column_stride) {
  const char* base = static_cast<const char*>(p.logits);
  return {base + row * p.row_stride * (dtype == FLOAT32 ? 4 : 2), column_stride, dtype};
}

struct SoftmaxShared {
  float peak[32];
  unsigned long long sum[32];
};

__device__ __forceinline__ float max_keeping_nan(float a, float b) { return b != b || b > a ? b : a; }

// Maximum of a row from each thread's; NaN enters, and never leaves. A row has LANES neighbouring lanes of a warp, or
// with SPLIT a block.
template <int LANES, bool SPLIT>
__device__ __forceinline__ float row_peak(float peak, SoftmaxShared* shared) {
  for (int step = LANES / 2; step; step >>= 1) peak = max_keeping_nan(peak, __shfl_xor_sync(~0u, peak, step));
  if (SPLIT) {
    if ((threadIdx.x & 31) == 0) shared->peak[threadIdx.x >> 5] = peak;
    __syncthreads();  // every warp's maximum is written before any is read
    for (int w = 0; w < blockDim.x >> 5; ++w) peak = max_keeping_nan(peak, shared->peak[w]);
  }
  return peak;
}

// exp(x - peak) in units of 2^-40. An integer, so that a sum has the same bits for every shape of team.
__device__ __forceinline__ unsigned long long softmax_term(float x, float peak) {
  const float e = exp_biased<64>(clamp_keeping_nan(__fsub_rn(x, peak), -110.f, 0.f));
  return e == e ? (unsigned long long)__fmul_rn(e, 1.f / (1 << 24)) : 0;
}

// 1 / sum of a row's terms from each thread's. A row with NaN or +inf, or of -inf only, gives NaN: all its
// scores.
template <int LANES, bool SPLIT>
__device__ __forceinline__ float row_scale(unsigned long long sum, float peak, SoftmaxShared* shared) {
  for (int step = LANES / 2; step; step >>= 1) sum += __shfl_xor_sync(~0u, sum, step);
  if (SPLIT) {
    if ((threadIdx.x & 31) == 0) shared->sum[threadIdx.x >> 5] = sum;
    __syncthreads();  // every warp's sum is written before any is read
    sum = 0;
    for (int w = 0; w < blockDim.x >> 5; ++w) sum += shared->sum[w];
  }
  const bool finite = fabsf(peak) < infinity();
  return finite ? __fdiv_rn(1099511627776.f, (float)sum) : __uint_as_float(0x7fffffffu);
}

// Peak and scale of a row whose threads hold N logits each, -inf where there is none.
template <int LANES, bool SPLIT, int N>
__device__ __forceinline__ void softmax_of(const float (&x)[N], float& peak, float& scale, SoftmaxShared* shared) {
  peak = x[0];
#pragma unroll
  for (int j = 1; j < N; ++j) peak = max_keeping_nan(peak, x[j]);
  peak = row_peak<LANES, SPLIT>(peak, shared);
  unsigned long long sum = 0;
#pragma unroll
  for (int j = 0; j < N; ++j) sum += softmax_term(x[j], peak);
  scale = row_scale<LANES, SPLIT>(sum, peak, shared);
}

// The routed experts of one warp's run, or of the row, best first.
struct Picked {
  int key[PLACES];
  int id[PLACES];
  float score[PLACES];
};

// Everything that turns an expert id into its score and key again.
struct Rescorer {
  const GateParams& p;
  Row row;
  int scoring;
  bool scored;
  float peak, scale;

  __device__ __forceinline__ float score_of(int id) const { return score(scoring, row[id], peak, scale); }
  // Score and key; both loads are under way before either is used.
  __device__ __forceinline__ int key_of(int id, float& s) const {
    const float x = row[id];
    const float bias = scored && p.bias ? load_float(p.bias, p.bias_dtype, id * p.bias_stride) : 0.f;
    s = score(scoring, x, peak, scale);
    return rank_key(scoring, scored, x, scored || scoring != SOFTMAX ? s : scale, __fsub_rn(0.f, bias));
  }
};

// Picks the warp's `routed` best of 32·VPT keys, in order. Keys of ids at or past `experts` are WORST. Bit j
// of `real` is 0 if key[j] stands for no expert though its id is one: such a key is WORST, and is never
// picked. `is_kept(id)` says whether the expert's group is in. Uses and fills `out`, which is this warp's
// own.
template <int VPT, class Kept>
__device__ __forceinline__ void pick(const int (&key)[VPT], int first, unsigned real, int experts, int routed,
                                     const Rescorer& rescore, const Kept& is_kept, Picked* out) {
  const int lane = threadIdx.x & 31;
  const unsigned lower = (1u << lane) - 1;
  unsigned candidates = 0;  // bit j: key[j] meets the threshold
  int count = PLACES + 1;
  if (routed <= FAST_ROUTED) {
    int head = key[0];
#pragma unroll
    for (int j = 1; j < VPT; ++j) head = min(head, key[j]);
    int threshold = WORST;
#pragma unroll 4
    for (int r = 0; r < routed; ++r) {
      threshold = __reduce_min_sync(~0u, head);
      if (head == threshold) head = WORST;
    }
#pragma unroll
    for (int j = 0; j < VPT; ++j) candidates |= key[j] <= threshold ? 1u << j : 0u;
    candidates &= real;
    count = __reduce_add_sync(~0u, (unsigned)__popc(candidates));
  }
  if (count <= PLACES) {
    int base = 0;
    for (unsigned holders; (holders = __ballot_sync(~0u, candidates != 0)); base += __popc(holders)) {
      if (candidates) out->id[base + __popc(holders & lower)] = first + __ffs(candidates) - 1;
      candidates &= candidates - 1;
    }
    __syncwarp();  // the list is written before a lane reads its entry
    const int id = lane < count ? out->id[lane] : experts + lane;
    float s = 0.f;
    int mine = WORST;
    if (lane < count && id < experts) {
      const bool in = is_kept(id);
      mine = rescore.key_of(id, s);
      if (!in) mine = DROPPED;
      if (s != s || !in) s = 0.f;
    }
    int rank = 0;
    for (int c = 0; c < count; ++c) {
      const int other = __shfl_sync(~0u, mine, c), other_id = __shfl_sync(~0u, id, c);
      rank += other < mine || (other == mine && other_id < id);
    }
    // The shuffles above order the reads of the list before these writes.
    __syncwarp();
    if (lane < count && rank < routed) {
      out->key[rank] = mine;
      out->id[rank] = id;
      out->score[rank] = s;
    }
  } else {
    unsigned taken = ~real;
    for (int r = 0; r < routed; ++r) {
      int best = WORST, at = -1;
#pragma unroll
      for (int j = 0; j < VPT; ++j)
        if (!(taken >> j & 1) && (at < 0 || key[j] < best)) best = key[j], at = j;
      const int smallest = __reduce_min_sync(~0u, best);
      const unsigned holders = __ballot_sync(~0u, at >= 0 && best == smallest);
      if (lane == __ffs(holders) - 1) {
        taken |= 1u << at;
        out->key[r] = best;
        out->id[r] = first + at;
      }
    }
    __syncwarp();  // the winners are written before lane r scores winner r
    if (lane < routed) {
      const int id = out->id[lane];
      float s = 0.f;
      if (id < experts && is_kept(id)) s = rescore.score_of(id);
      out->score[lane] = s == s ? s : 0.f;
    }
  }
  __syncwarp();  // the result is written before the caller reads it
}

// The first warp merges the warps' sorted lists: lane w holds the head of list w and the one behind it. Among
// equal heads the lowest lane wins, which holds the lowest ids. Lane r ends up with place r.
__device__ __forceinline__ void merge(const Picked* lists, int routed, int& id, float& s) {
  const int lane = threadIdx.x & 31;
  const bool holds = lane < blockDim.x >> 5;
  int at = 0, head = holds ? lists[lane].key[0] : WORST;
  id = 0;
  s = 0.f;
  for (int r = 0; r < routed; ++r) {
    const int next = holds && at + 1 < routed ? lists[lane].key[at + 1] : WORST;
    const int smallest = __reduce_min_sync(~0u, head);
    const int winner = __ffs(__ballot_sync(~0u, holds && head == smallest)) - 1;
    const int place = __shfl_sync(~0u, at, winner);
    if (lane == r) {
      id = lists[winner].id[place];
      s = lists[winner].score[place];
    }
    if (lane == winner) {
      head = next;
      ++at;
    }
  }
}

// part / total for 0 <= part <= total, both finite, to 1 ulp; a division proper takes its slow path for part = 0.
__device__ __forceinline__ float quotient(float part, float total) {
  const float up = total < 0x1p-64f ? 0x1p64f : 1.f;  // out of the denormals
  part = __fmul_rn(part, up);
  total = __fmul_rn(total, up);
  const float inverse = reciprocal_approx(total), q = __fmul_rn(part, inverse);
  return __fmaf_rn(__fmaf_rn(-q, total, part), inverse, q);
}

// Where a row's place is in the outputs.
__device__ __forceinline__ long long place_of(const GateParams& p, unsigned row, int slot) {
  return (long long)row * p.places + slot;
}

// Slot r of 32 / SLOTS rows turns place r into its weight and id. The sum is a tree over the slots, places past the
// last adding 0: the same bits for every SLOTS. A padded row holds ids -1 and weights 0.
template <int SLOTS>
__device__ __forceinline__ void write_places(const GateParams& p, unsigned row, bool writes, bool padded, int id,
                                             float s) {
  const int slot = threadIdx.x & (SLOTS - 1);
  float weight = slot < p.routed ? s : 0.f;
  float total = weight;
#pragma unroll
  for (int step = SLOTS / 2; step; step >>= 1) total = __fadd_rn(total, __shfl_xor_sync(~0u, total, step));
  if (p.renormalize) weight = total > 0.f ? quotient(weight, total) : 0.f;
  weight = __fmul_rn(weight, p.routed_scale);
  if (slot >= p.routed) {
    id = p.experts + slot - p.routed;
    weight = p.shared_weight;
  }
  if (slot < p.places && writes) {
    if (p.expert_map && !padded) id = p.expert_map[id * p.map_stride];
    const long long at = place_of(p, row, slot);
    p.weights[at] = padded ? 0.f : weight;
    p.indices[at] = padded ? -1 : id;
  }
}

// Turns the warps' lists into the row's places. Ends with the row's shared memory free for the next.
template <bool SPLIT>
__device__ __forceinline__ void finish_row(const GateParams& p, unsigned row, const Picked* picked) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  if (!SPLIT) {
    const Picked& mine = picked[warp];
    const bool routed = lane < p.routed;
    write_places<32>(p, row, true, false, routed ? mine.id[lane] : 0, routed ? mine.score[lane] : 0.f);
  } else {
    __syncthreads();  // all lists are written before the first warp merges them
    if (warp == 0) {
      int id;
      float s;
      merge(picked, p.routed, id, s);
      write_places<32>(p, row, true, false, id, s);
    }
  }
  team_sync<SPLIT>();  // this row's shared memory is read before the next row's is written
}

// Padding: ids -1 and weights 0.
template <int LANES, bool SPLIT>
__device__ __forceinline__ void write_padding(const GateParams& p, unsigned row, bool present) {
  const int slot = threadIdx.x & (LANES - 1);
  if ((!SPLIT || threadIdx.x < 32) && slot < p.places && present) {
    const long long at = place_of(p, row, slot);
    p.weights[at] = 0.f;
    p.indices[at] = -1;
  }
}
