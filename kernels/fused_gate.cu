// Fused MoE gate: scores, group choice, top-k, weights, shared experts and id mapping of a row in one pass.
//
// Ownership. A *team* of WARPS warps owns one row at a time and walks the rows with a grid stride. WARPS == 1: a
// block is TEAMS independent warps, each with rows and shared memory of its own. WARPS > 1: a block is one team.
// A lane owns VPT neighbouring experts, lanes own neighbouring runs, warps neighbouring runs of 32·VPT; so among
// equal keys the lower lane (and warp) always holds the lower expert id, and ties need no comparison of ids.
//
// Selection. A warp takes the best key of each lane, and of these the `routed`-th best as a threshold: at least
// `routed` experts are no worse, and few more. Those are compacted to one per lane, scored again from their logit,
// and ranked by counting. Where more than 32 qualify (many ties, large k) it picks one by one instead. Both are
// exact, so the choice between them never shows. With WARPS > 1 the first warp then merges the warps' sorted lists.
#include "gate_groups.cuh"

enum Grouping { UNGROUPED = 0, LANE_GROUPS = 1, STAGED_GROUPS = 2 };
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
  int experts, routed, places, groups, kept_groups, logits_dtype, bias_dtype, renormalize;
  float routed_scale, shared_weight;
};

// One row's logits, in whatever layout.
template <int DTYPE>
struct Row {
  const void* data;  // first element of the row
  long long column_stride;
  int dtype;

  __device__ __forceinline__ float operator[](int expert) const {
    if (DTYPE == STRIDED) return load_float(data, dtype, expert * column_stride);
    return load_float(data, DTYPE, expert);
  }
};

template <int DTYPE>
__device__ __forceinline__ Row<DTYPE> row_at(const GateParams& p, long long row) {
  const int dtype = DTYPE == STRIDED ? p.logits_dtype : DTYPE;
  const char* base = static_cast<const char*>(p.logits);
  return {base + row * p.row_stride * (dtype == FLOAT32 ? 4 : 2), p.column_stride, dtype};
}

// Words of 16, 8 or 4 bytes, for vector loads of logits.
template <int WORDS> struct Vector;
template <> struct Vector<4> { using type = uint4; };
template <> struct Vector<2> { using type = uint2; };
template <> struct Vector<1> { using type = unsigned; };

// Loads x[j] = row[first + j]; -inf past the last expert. VEC elements a load: the launcher has checked that the
// row is aligned to them and that VEC divides the number of experts. VEC == 1 is the scalar path.
template <int DTYPE, int VPT, int VEC>
__device__ __forceinline__ void load_logits(float (&x)[VPT], const Row<DTYPE>& row, int first, int experts) {
  constexpr int SIZE = DTYPE == FLOAT32 ? 4 : 2;
  constexpr int WORDS = VEC * SIZE / 4;
  if constexpr (DTYPE == STRIDED || VEC == 1) {
#pragma unroll
    for (int j = 0; j < VPT; ++j) x[j] = first + j < experts ? row[first + j] : -__uint_as_float(0x7f800000u);
  } else {
    using Word = typename Vector<WORDS>::type;
    union Unpacked {
      Word vector;
      unsigned words[WORDS];
    } loaded[VPT / VEC];
#pragma unroll
    for (int v = 0; v < VPT / VEC; ++v)
      if (first + v * VEC < experts)
        loaded[v].vector = reinterpret_cast<const Word*>(static_cast<const char*>(row.data) + first * SIZE)[v];
#pragma unroll
    for (int v = 0; v < VPT / VEC; ++v) {
      const bool real = first + v * VEC < experts;
#pragma unroll
      for (int i = 0; i < VEC; ++i) {
        float value;
        if (DTYPE == FLOAT32) {
          value = __uint_as_float(loaded[v].words[i % WORDS]);
        } else {
          const unsigned word = loaded[v].words[i / 2 % WORDS];
          const unsigned short bits = i % 2 ? word >> 16 : word & 0xffffu;
          value = DTYPE == BFLOAT16 ? bfloat_to_float(bits) : half_to_float(bits);
        }
        x[v * VEC + i] = real ? value : -__uint_as_float(0x7f800000u);
      }
    }
  }
}

struct SoftmaxShared {
  float peak[32];
  unsigned long long sum[32];
};

// Row maximum and 1 / sum of exp(x - maximum), the same bits for every shape of team: the sum is one of integers, in
// units of 2^-40 of the largest term. A row with NaN or +inf, or of -inf only, gives a NaN scale: all its scores.
template <int VPT, int WARPS>
__device__ __forceinline__ void softmax_terms(const float (&x)[VPT], float& peak, float& scale, SoftmaxShared* shared) {
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  peak = x[0];
#pragma unroll
  for (int j = 1; j < VPT; ++j) peak = x[j] != x[j] || x[j] > peak ? x[j] : peak;  // NaN enters, and never leaves
  for (int step = 16; step; step >>= 1) {
    const float other = __shfl_xor_sync(~0u, peak, step);
    peak = other != other || other > peak ? other : peak;
  }
  if (WARPS > 1) {
    if (lane == 0) shared->peak[warp] = peak;
    __syncthreads();  // every warp's maximum is written before any is read
    for (int w = 0; w < WARPS; ++w) {
      const float other = shared->peak[w];
      peak = other != other || other > peak ? other : peak;
    }
  }
  unsigned long long sum = 0;
#pragma unroll
  for (int j = 0; j < VPT; ++j) {
    const float e = exp_biased<64>(clamp_keeping_nan(__fsub_rn(x[j], peak), -110.f, 0.f));
    sum += e == e ? (unsigned long long)__fmul_rn(e, 1.f / (1 << 24)) : 0;
  }
  for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(~0u, sum, step);
  if (WARPS > 1) {
    if (lane == 0) shared->sum[warp] = sum;
    __syncthreads();  // every warp's sum is written before any is read
    sum = 0;
    for (int w = 0; w < WARPS; ++w) sum += shared->sum[w];
  }
  const bool finite = fabsf(peak) < __uint_as_float(0x7f800000u);
  scale = finite ? __fdiv_rn(1099511627776.f, (float)sum) : __uint_as_float(0x7fffffffu);
}

// The routed experts of one warp's run, or of the row, best first.
struct Picked {
  int key[PLACES];
  int id[PLACES];
  float score[PLACES];
};

// Everything that turns an expert id into its score and key again.
template <int DTYPE, int SCORING, bool SCORED>
struct Rescorer {
  const GateParams& p;
  Row<DTYPE> row;
  float peak, scale;

  __device__ __forceinline__ float score_of(int id, float& x) const {
    x = row[id];
    return score<SCORING>(x, peak, scale);
  }
  __device__ __forceinline__ int key_of(int id, float x, float s) const {
    const float bias = SCORED && p.bias ? load_float(p.bias, p.bias_dtype, id * p.bias_stride) : 0.f;
    return rank_key<SCORING, SCORED>(x, SCORED || SCORING != SOFTMAX ? s : scale, __fsub_rn(0.f, bias));
  }
};

// Picks the warp's `routed` best of 32·VPT keys, in order. Keys of ids at or past `experts` are WORST.
// `is_kept(id)` says whether the expert's group is in. Uses and fills `out`, which is this warp's own.
template <int VPT, class Rescore, class Kept>
__device__ __forceinline__ void pick(const int (&key)[VPT], int first, int experts, int routed, const Rescore& rescore,
                                     const Kept& is_kept, Picked* out) {
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
    float x, s = 0.f;
    int mine = WORST;
    if (lane < count && id < experts) {
      s = rescore.score_of(id, x);
      const bool in = is_kept(id);
      mine = in ? rescore.key_of(id, x, s) : DROPPED;
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
    unsigned taken = 0;
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
      float x, s = 0.f;
      if (id < experts && is_kept(id)) s = rescore.score_of(id, x);
      out->score[lane] = s == s ? s : 0.f;
    }
  }
  __syncwarp();  // the result is written before the caller reads it
}

// The first warp merges the warps' sorted lists: lane w holds the head of list w and the one behind it. Among equal
// heads the lowest lane wins, which holds the lowest ids. Lane r ends up with place r.
template <int WARPS>
__device__ __forceinline__ void merge(const Picked* lists, int routed, int& id, float& s) {
  const int lane = threadIdx.x & 31;
  const bool holds = lane < WARPS;
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

// Lane r turns place r into its weight and id. The sum is a tree over the 32 lanes, places past the last adding 0.
__device__ __forceinline__ void write_places(const GateParams& p, long long row, int id, float s) {
  const int lane = threadIdx.x & 31;
  float weight = lane < p.routed ? s : 0.f;
  float total = weight;
#pragma unroll
  for (int step = 16; step; step >>= 1) total = __fadd_rn(total, __shfl_xor_sync(~0u, total, step));
  if (p.renormalize) weight = total > 0.f ? __fdiv_rn(weight, total) : 0.f;
  weight = __fmul_rn(weight, p.routed_scale);
  if (lane >= p.routed) {
    id = p.experts + lane - p.routed;
    weight = p.shared_weight;
  }
  if (lane < p.places) {
    p.weights[row * p.places + lane] = weight;
    p.indices[row * p.places + lane] = p.expert_map ? p.expert_map[id * p.map_stride] : id;
  }
}

template <int DTYPE, int SCORING, bool SCORED, int GROUPING, int VPT, int VEC, int WARPS, int TEAMS>
__global__ void __launch_bounds__(32 * WARPS * TEAMS) fused_gate(GateParams p) {
  constexpr int STAGE = GROUPING == STAGED_GROUPS ? 32 * VPT * WARPS : 1;
  __shared__ Picked picked[WARPS * TEAMS];
  __shared__ SoftmaxShared softmax;
  __shared__ int stage[TEAMS][STAGE], flags[TEAMS][STAGE];

  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int team = WARPS == 1 ? warp : 0;
  const int first = (WARPS == 1 ? lane : threadIdx.x) * VPT;
  const long long step = (long long)gridDim.x * TEAMS;
  const long long valid = p.num_valid_rows ? *p.num_valid_rows : p.rows;

  float negated[VPT];  // 0 - bias of this lane's experts
#pragma unroll
  for (int j = 0; j < VPT; ++j) {
    const bool biased = SCORED && p.bias && first + j < p.experts;
    negated[j] = __fsub_rn(0.f, biased ? load_float(p.bias, p.bias_dtype, (first + j) * p.bias_stride) : 0.f);
  }

  for (long long index = (long long)blockIdx.x * TEAMS + team; index < p.rows; index += step) {
    if (index >= valid) {  // padding: the same for the whole team
      if (warp % WARPS == 0 && lane < p.places) {
        p.weights[index * p.places + lane] = 0.f;
        p.indices[index * p.places + lane] = -1;
      }
      continue;
    }
    const Row<DTYPE> row = row_at<DTYPE>(p, index);
    float x[VPT], peak = 0.f, scale = 0.f;
    load_logits<DTYPE, VPT, VEC>(x, row, first, p.experts);
    if (SCORING == SOFTMAX) softmax_terms<VPT, WARPS>(x, peak, scale, &softmax);

    int key[VPT];
#pragma unroll
    for (int j = 0; j < VPT; ++j) {
      const float s = SCORED ? score<SCORING>(x[j], peak, scale) : scale;
      const int ranked = rank_key<SCORING, SCORED>(x[j], s, negated[j]);
      key[j] = first + j < p.experts ? ranked : WORST;
    }
    unsigned kept_lanes = ~0u;
    if (GROUPING == LANE_GROUPS) kept_lanes = drop_lane_groups<VPT>(key, p.experts, p.groups, p.kept_groups);
    if (GROUPING == STAGED_GROUPS)
      drop_staged_groups<VPT, WARPS>(key, first, p.experts, p.groups, p.kept_groups, stage[team], flags[team]);
    const int size = GROUPING == STAGED_GROUPS ? p.experts / p.groups : 1;
    const int* kept_groups = flags[team];
    const auto is_kept = [=](int id) {
      if (GROUPING == LANE_GROUPS) return (kept_lanes >> (id / VPT) & 1) != 0;
      if (GROUPING == STAGED_GROUPS) return kept_groups[id / size] != 0;
      return true;
    };

    Picked* mine = &picked[warp];
    const Rescorer<DTYPE, SCORING, SCORED> rescore{p, row, peak, scale};
    pick<VPT>(key, first, p.experts, p.routed, rescore, is_kept, mine);
    if (WARPS == 1) {
      write_places(p, index, lane < p.routed ? mine->id[lane] : 0, lane < p.routed ? mine->score[lane] : 0.f);
    } else {
      __syncthreads();  // all lists are written before the first warp merges them
      if (warp == 0) {
        int id;
        float s;
        merge<WARPS>(picked, p.routed, id, s);
        write_places(p, index, id, s);
      }
    }
    team_sync<WARPS>();  // this row's shared memory is read before the next row's is written
  }
}
