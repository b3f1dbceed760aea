// Fused MoE gate: scores, group choice, top-k, weights, shared experts and id mapping of a row in one pass.
// For aligned rows of neighbouring logits; fused_gate_generic.cu has the rest, and gives the same bits where
// both can run.
//
// Ownership. A row belongs to LANES neighbouring lanes of a warp (16: the warp does two rows at once), or with
// SPLIT to a block; a block without SPLIT holds up to TEAMS warps, each with rows and shared memory of its own. Rows
// are walked with a grid stride. A lane owns VPL experts in vectors of VEC neighbours, the row's lanes taking turns,
// so that loads are coalesced; with GROUPED, a group of experts is the turn of 1, 2, 4, … lanes of its own.
#include "gate_filter.cuh"

// Elements a load for VPL experts a lane: 16 bytes, or the half if that doesn't divide a lane's share.
__device__ constexpr int vector_of(int dtype, int vpl) {
  const int most = dtype == FLOAT32 ? 4 : 8;
  return vpl % most ? most / 2 : most;
}

// Blocks a multiprocessor that the registers are to leave room for; the launcher's grid is as large. As many as there
// can be without spilling; other architectures than 9.0 need a few registers more.
__device__ constexpr int resident_blocks(int lanes, int vpl, bool grouped, bool softmax) {
  const int most = vpl <= 4 ? 10 : vpl <= 8 ? 8 : lanes == 16 ? (vpl <= 16 ? 7 : vpl <= 24 ? 6 : 5) : (vpl <= 12 ? 6 : 5);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ != 900
  const int fewer = vpl >= 16;
#else
  const int fewer = 0;
#endif
  return most - (!grouped ? 0 : lanes == 16 ? 1 : 2) - softmax - fewer;
}

// Where a lane's experts lie: vector v starts at `first` + v·`step`, and exists if v·`step` < `room`.
struct Share {
  int first, step, room;
};

// Words of 16 or 8 bytes, for vector loads of logits.
template <int WORDS> struct Vector;
template <> struct Vector<4> { using type = uint4; };
template <> struct Vector<2> { using type = uint2; };

// A lane's logits as loaded, VEC elements at a time; those of experts that don't exist are other experts'. The launcher
// has checked that the row is aligned to VEC and that VEC divides the number of experts, and of experts a group.
template <int DTYPE, int VPL, int VEC>
struct Loaded {
  static constexpr int SIZE = DTYPE == FLOAT32 ? 4 : 2, WORDS = VEC * SIZE / 4;
  using Word = typename Vector<WORDS>::type;
  union {
    Word vectors[VPL / VEC];
    unsigned words[VPL / VEC * WORDS];
  };

  __device__ __forceinline__ void load(const Row& row, const Share& share, int experts) {
    const char* data = static_cast<const char*>(row.data);
#pragma unroll
    for (int v = 0; v < VPL / VEC; ++v) {  // without a condition, since a select would wait for the load
      const unsigned at = min(share.first + v * share.step, experts - VEC) * SIZE;
      vectors[v] = *reinterpret_cast<const Word*>(data + at);
    }
  }
  __device__ __forceinline__ float operator[](int j) const {
    if (DTYPE == FLOAT32) return __uint_as_float(words[j]);
    const unsigned word = words[j / 2];
    const unsigned short bits = j % 2 ? word >> 16 : word & 0xffffu;
    return DTYPE == BFLOAT16 ? bfloat_to_float(bits) : half_to_float(bits);
  }
};

// Loads a lane's biases, -inf where there is no expert, 0 if there are none. The launcher has checked that they are
// neighbours, and aligned to four.
template <int VPL, int VEC>
__device__ __forceinline__ void load_bias(float (&bias)[VPL], const GateParams& p, const Share& share) {
#pragma unroll
  for (int v = 0; v < VPL / VEC; ++v)
#pragma unroll
    for (int i = 0; i < VEC; ++i) bias[v * VEC + i] = v * share.step < share.room ? 0.f : -infinity();
  if (p.bias && p.bias_dtype == FLOAT32) {
    const float* at = static_cast<const float*>(p.bias) + share.first;
#pragma unroll
    for (int j = 0; j < VPL; j += 4) {
      if (j / VEC * share.step >= share.room) continue;
      const float4 four = *reinterpret_cast<const float4*>(at + j / VEC * share.step + j % VEC);
      bias[j] = four.x, bias[j + 1] = four.y, bias[j + 2] = four.z, bias[j + 3] = four.w;
    }
  } else if (p.bias) {
    const unsigned short* at = static_cast<const unsigned short*>(p.bias) + share.first;
#pragma unroll
    for (int j = 0; j < VPL; j += 4) {
      if (j / VEC * share.step >= share.room) continue;
      const uint2 four = *reinterpret_cast<const uint2*>(at + j / VEC * share.step + j % VEC);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const unsigned short bits = (i < 2 ? four.x : four.y) >> 16 * (i % 2);
        bias[j + i] = p.bias_dtype == BFLOAT16 ? bfloat_to_float(bits) : half_to_float(bits);
      }
    }
  }
}

// Groups that are whole lanes of a row's LANES, of which the last of a group may own fewer experts or none.
template <int LANES>
struct GroupLanes {
  int shift, size;  // log2 of the lanes, and number of experts, a group
  __device__ __forceinline__ explicit GroupLanes(const GateParams& p)
      : shift(__clz(p.groups - 1) - (LANES == 32 ? 27 : 28)), size(p.experts / p.groups) {}  // at most LANES groups
  __device__ __forceinline__ int lanes() const { return 1 << shift; }
  __device__ __forceinline__ int group_of(int lane) const { return lane >> shift; }
  __device__ __forceinline__ int within(int lane) const { return lane & (lanes() - 1); }
};

// The row by exact keys of all its experts: a warp, or with SPLIT a block, in which a thread owns VPT neighbouring
// experts, so that among equal keys the lower thread always holds the lower id. Slower, and takes any row.
template <int DTYPE, int SCORING, bool SCORED, bool GROUPED, int VPT, bool SPLIT>
__device__ __noinline__ void exact_row(const GateParams& p, unsigned index, Picked* picked, SoftmaxShared* shared) {
  const int thread = SPLIT ? threadIdx.x : threadIdx.x & 31, warp = threadIdx.x >> 5;
  int first = thread * VPT, end = p.experts, group = 0, group_lanes = 32;
  unsigned real = ~0u;
  float per_size = 0.f;
  if (GROUPED) {
    const GroupLanes<32> groups(p);
    group = groups.group_of(thread);
    group_lanes = groups.lanes();
    first = group * groups.size + groups.within(thread) * VPT;
    end = group < p.groups ? (group + 1) * groups.size : 0;
    const int held = max(end - first, 0);
    real = held < VPT ? (1u << held) - 1 : ~0u;
    per_size = reciprocal_approx((float)groups.size);
  }
  const Row row = row_at(p, index, DTYPE, 1);
  float x[VPT];
#pragma unroll
  for (int j = 0; j < VPT; ++j) x[j] = first + j < end ? row[first + j] : -infinity();

  float peak = 0.f, scale = 0.f;
  if (SCORING == SOFTMAX) softmax_of<32, SPLIT>(x, peak, scale, shared);

  int key[VPT];
#pragma unroll
  for (int j = 0; j < VPT; ++j) {
    const bool biased = SCORED && p.bias && first + j < end;
    const float bias = biased ? load_float(p.bias, p.bias_dtype, (first + j) * p.bias_stride) : 0.f;
    const float s = SCORED ? score(SCORING, x[j], peak, scale) : scale;
    const int ranked = rank_key(SCORING, SCORED, x[j], s, __fsub_rn(0.f, bias));
    key[j] = first + j < end ? ranked : WORST;
  }
  unsigned kept = ~0u;
  if (GROUPED) kept = drop_lane_groups<VPT>(key, first < end, group, group_lanes, p);
  // (id + 1/2) / size is far enough from the next integer for the product's rounding.
  const auto is_kept = [=](int id) { return !GROUPED || kept >> (int)((id + 0.5f) * per_size) & 1; };
  const Rescorer rescore{p, row, SCORING, SCORED, peak, scale};
  pick<VPT>(key, first, real, p.experts, p.routed, rescore, is_kept, &picked[warp]);
  finish_row<SPLIT>(p, index, picked);
}

// The two best estimates of a set.
struct TopTwo {
  float first, second;

  __device__ __forceinline__ void join(float other_first, float other_second) {
    second = fmaxf(fminf(first, other_first), fmaxf(second, other_second));
    first = fmaxf(first, other_first);
  }
};

// Says whether this lane's group is among the best, given the two best estimates of the lane's experts; `sure` becomes
// false if the estimates can't tell. A group has `lanes` neighbouring lanes of a row's LANES.
template <int LANES>
__device__ __forceinline__ bool in_best_group(TopTwo best, const GateParams& p, int sub, int lanes, bool& sure) {
  for (int step = 1; step < lanes; step <<= 1)
    best.join(__shfl_xor_sync(~0u, best.first, step), __shfl_xor_sync(~0u, best.second, step));
  const float sum = __fadd_rn(best.first, best.second);
  const float gathered = __shfl_sync(~0u, sum, sub * lanes, LANES);  // lane h: group h; wraps past the last
  const float listed = sub < p.groups ? gathered : -infinity();
  const float sorted = p.groups <= 8 ? sort_lanes<8>(listed) : sort_lanes<LANES>(listed);
  const float last_in = __shfl_sync(~0u, sorted, p.kept_groups - 1, LANES);
  const float best_out = __shfl_sync(~0u, sorted, p.kept_groups & (LANES - 1), LANES);  // unused if all are in
  // Two sums of two estimates, each off by 1e-6 and 2^-23 of it, and their rounding. What cancels is at most 1 then.
  const float apart = __fmaf_rn(fabsf(last_in), 1.f / (1 << 20), 5e-6f);
  sure &= p.kept_groups == p.groups || best_out < last_in - apart;
  // Where the two cancel, their sum is less exact than its size says; that of +inf and -inf is NaN, and sorts anywhere.
  sure &= !__any_sync(~0u, best.first > 1.f && best.second < -1.f);
  return sum >= last_in;
}

template <int DTYPE, int SCORING, bool SCORED, bool GROUPED, int LANES, int VPL, bool SPLIT>
__global__ void __launch_bounds__(SPLIT ? MAX_EXPERTS / VPL : 32 * TEAMS,
                                  SPLIT ? VPL / 8
                                        : resident_blocks(LANES, VPL, GROUPED, SCORED && SCORING == SOFTMAX))
    fused_gate(const __grid_constant__ GateParams p) {
  constexpr int VEC = vector_of(DTYPE, VPL), ROWS = 32 / LANES;
  constexpr int VPT = VPL * LANES / 32, WARPS = SPLIT ? MAX_EXPERTS / (32 * VPL) : TEAMS;
  constexpr bool FINE = GROUPED;  // groups that the estimates can't tell apart are to be rare
  __shared__ Picked picked[WARPS];
  __shared__ SoftmaxShared softmax;
  __shared__ int codes[SPLIT ? 1 : TEAMS][ROWS][SLOTS_A_ROW];
  __shared__ Contest contests[WARPS];
  __shared__ float heads[SPLIT ? WARPS : 1][32];
  __shared__ int totals[2];

  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int sub = SPLIT ? threadIdx.x : lane & (LANES - 1);  // among the row's lanes
  const int team = SPLIT ? 0 : warp, teams = SPLIT ? 1 : blockDim.x >> 5;
  const unsigned rows = p.rows, step = gridDim.x * teams * ROWS;
  const unsigned nth = SPLIT ? 0 : lane / LANES;  // among the warp's rows
  unsigned base = (blockIdx.x * teams + team) * ROWS;

  const int turns = (SPLIT ? blockDim.x : LANES) * VEC;
  Share share{sub * VEC, turns, p.experts - sub * VEC};
  const GroupLanes<LANES> groups(p);
  if (GROUPED) {
    const int group = groups.group_of(sub), offset = groups.within(sub) * VEC;
    share = {group * groups.size + offset, groups.lanes() * VEC, group < p.groups ? groups.size - offset : 0};
  }
  after_previous(p.early);
  // A row past the last reads the last. A small share is loaded one row ahead, once the row before needs its
  // registers no more.
  constexpr bool AHEAD = VPL <= 16;
  Loaded<DTYPE, VPL, VEC> loaded;
  if (AHEAD) loaded.load(row_at(p, min(base + nth, rows - 1), DTYPE, 1), share, p.experts);
  float bias[SCORED ? VPL : VEC];
  if (SCORED) load_bias<SCORED ? VPL : VEC, VEC>(bias, p, share);
  const unsigned valid = p.num_valid_rows ? min((unsigned)max(*p.num_valid_rows, 0), rows) : rows;

  Contest& contest = contests[warp];
  int parity = 0;
  if (SPLIT && threadIdx.x == 0) totals[0] = totals[1] = 0;

  for (; base < rows; base += step) {
    const unsigned index = base + nth;
    const bool present = index < rows, live = index < valid;
    if (base >= valid) {  // the same for the whole team, and for all its later rows
      write_padding<LANES, SPLIT>(p, index, present);
      continue;
    }
    const Row row = row_at(p, min(index, rows - 1), DTYPE, 1);
    if (!AHEAD) loaded.load(row, share, p.experts);
    float c[VPL];
#pragma unroll
    for (int j = 0; j < VPL; ++j) {
      c[j] = loaded[j];
      // Where there is no expert, a bias of -inf does instead.
      if ((!SCORED || SCORING == SOFTMAX) && j / VEC * share.step >= share.room) c[j] = -infinity();
    }
    float peak = 0.f, scale = 0.f;
    if (SCORING == SOFTMAX) softmax_of<LANES, SPLIT>(c, peak, scale, &softmax);

    TopTwo best{-infinity(), -infinity()};  // takes no NaN: fmaxf prefers the number
#pragma unroll
    for (int j = 0; j < VPL; ++j) {
      c[j] = estimate<SCORING, SCORED, FINE>(c[j], SCORED ? bias[j] : 0.f, peak, scale);
      if (GROUPED) best.second = fmaxf(best.second, min_keeping_nan(best.first, c[j]));
      best.first = fmaxf(best.first, c[j]);
    }
    bool sure = SCORING != SOFTMAX || scale == scale, in = true;
    if (GROUPED) {
      in = in_best_group<LANES>(best, p, sub, groups.lanes(), sure);
      if (!in) best = {-infinity(), -infinity()};
    }
    if (SPLIT) {
      heads[warp][lane] = best.first;
      __syncthreads();  // all heads are written before they are read; totals are zero
      if (threadIdx.x == 0) totals[parity ^ 1] = 0;  // all have read it, since they are past the barrier
      for (int w = 0; w < blockDim.x >> 5; ++w) best.first = fmaxf(best.first, heads[w][lane]);
    }
    const float bound = bound_of<LANES, GROUPED>(best.first, best.second, p.routed, contest.key);
    // Finite even where the bound is not, since what is no expert has -inf.
    const float least = fmaxf(__fsub_rn(bound, slack<SCORING, SCORED, FINE>(bound)), -LARGEST);
    unsigned mask = greater_than(c, least);
    if (!in) mask = 0;
    sure &= bound > -infinity();
    const bool everyone = VPL == VEC && !GROUPED && p.experts <= LANES;  // no bound is needed, nor found if there is NaN
    if (everyone) mask = share.room > 0 ? (1u << VEC) - 1 : 0;
    if (AHEAD) loaded.load(row_at(p, min(index + step, rows - 1), DTYPE, 1), share, p.experts);

    int count;
    if (SPLIT) {
      collect<32>(mask, threadIdx.x, codes[0][0], &totals[parity]);
      __syncthreads();  // all candidates are collected before the first warp reads them and all their number
      count = totals[parity];
      parity ^= 1;
    } else {
      count = collect<LANES>(mask, sub, codes[team][nth]);
    }
    sure = everyone || (sure && count >= p.routed && count <= SLOTS_A_ROW);

    // The expert with a code; 0 is the code of a real one.
    const auto id_of = [&](int code) {
      const int j = code & 31, owner = code >> 5;
      if (!GROUPED) return j / VEC * turns + owner * VEC + j % VEC;
      return groups.group_of(owner) * groups.size + (j / VEC * groups.lanes() + groups.within(owner)) * VEC + j % VEC;
    };
    if (ROWS == 2 && !__any_sync(~0u, count > LANES)) {
      const int slot = lane & (LANES - 1), id = id_of(slot < count ? codes[team][nth][slot] : 0);
      const Exact<DTYPE, SCORING, SCORED> exact{p, row.data, peak, scale};
      settle<LANES>(p, index, present && (sure || !live), !live, id, count, exact, contest);
    } else if (!SPLIT || (sure && warp == 0)) {
      for (int r = 0; r < ROWS && base + r < rows; ++r) {  // more candidates than half a warp has slots
        const int first = r * LANES & 31;
        const bool settled = __shfl_sync(~0u, sure, first), padded = !__shfl_sync(~0u, live, first);
        const int held = __shfl_sync(~0u, count, first), theirs = settled ? held : 0;  // not all of too many have a slot
        const int id = id_of(lane < theirs ? codes[team][r][lane] : 0);
        const Exact<DTYPE, SCORING, SCORED> exact{p, row_at(p, base + r, DTYPE, 1).data,
                                                  __shfl_sync(~0u, peak, first), __shfl_sync(~0u, scale, first)};
        settle<32>(p, base + r, settled || padded, padded, id, theirs, exact, contest);
      }
    }
    if (SPLIT) {
      if (!sure) exact_row<DTYPE, SCORING, SCORED, GROUPED, VPT, SPLIT>(p, index, picked, &softmax);
    } else {
      unsigned left = __ballot_sync(~0u, live && !sure && (lane & (LANES - 1)) == 0);
      for (; left; left &= left - 1)
        exact_row<DTYPE, SCORING, SCORED, GROUPED, VPT, SPLIT>(p, base + (__ffs(left) - 1) / LANES, picked, &softmax);
    }
  }
}
