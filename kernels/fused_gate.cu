// Fused MoE gate: scores, group choice, top-k, weights, shared experts and id mapping of a row in one pass.
// For aligned rows of neighbouring logits; fused_gate_generic.cu has the rest, and gives the same bits where
// both can run.
#include "gate_row.cuh"

// Words of 16, 8 or 4 bytes, for vector loads of logits.
template <int WORDS> struct Vector;
template <> struct Vector<4> { using type = uint4; };
template <> struct Vector<2> { using type = uint2; };
template <> struct Vector<1> { using type = unsigned; };

// Elements a load for VPT experts a lane: 16 bytes, or the half if that doesn't divide a lane's share.
__device__ constexpr int vector_of(int dtype, int vpt) {
  const int most = dtype == FLOAT32 ? 4 : 8;
  return vpt % most ? most / 2 : most;
}

// Loads x[j] = row[first + j]; -inf from `end` on. VEC elements a load: the launcher has checked that the row
// is aligned to them and that VEC divides the number of experts, and of experts a group.
template <int DTYPE, int VPT, int VEC>
__device__ __forceinline__ void load_logits(float (&x)[VPT], const Row& row, int first, int end) {
  constexpr int SIZE = DTYPE == FLOAT32 ? 4 : 2;
  constexpr int WORDS = VEC * SIZE / 4;
  using Word = typename Vector<WORDS>::type;
  union Unpacked {
    Word vector;
    unsigned words[WORDS];
  } loaded[VPT / VEC];
#pragma unroll
  for (int v = 0; v < VPT / VEC; ++v)
    if (first + v * VEC < end)
      loaded[v].vector = reinterpret_cast<const Word*>(static_cast<const char*>(row.data) + first * SIZE)[v];
#pragma unroll
  for (int v = 0; v < VPT / VEC; ++v) {
    const bool real = first + v * VEC < end;
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

// GROUPED: a group is 32 >> ceil(log2(groups)) neighbouring lanes, of which the last may hold fewer experts
// or none. Without a bound of its own the compiler gives the grouped body registers that cost a resident
// block.
template <int DTYPE, int SCORING, bool SCORED, bool GROUPED, int VPT, bool SPLIT>
__global__ void __launch_bounds__(SPLIT ? MAX_EXPERTS / VPT : 32 * TEAMS, GROUPED && VPT == 8 ? 9 : 0)
    fused_gate(GateParams p) {
  __shared__ Picked picked[SPLIT ? MAX_EXPERTS / (32 * VPT) : TEAMS];
  __shared__ SoftmaxShared softmax;

  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int team = SPLIT ? 0 : warp, teams = SPLIT ? 1 : blockDim.x >> 5;
  const long long step = (long long)gridDim.x * teams;
  const long long valid = p.num_valid_rows ? *p.num_valid_rows : p.rows;

  // This lane's experts: first … end - 1, VPT at most.
  int first = (SPLIT ? threadIdx.x : lane) * VPT, end = p.experts, group = 0, group_lanes = 32;
  unsigned real = ~0u;
  float per_size = 0.f;
  if (GROUPED) {
    const int shift = __clz(p.groups - 1) - 27, size = p.experts / p.groups;  // at most 32 groups
    group_lanes = 1 << shift;
    group = lane >> shift;
    first = group * size + (lane - (group << shift)) * VPT;
    end = group < p.groups ? (group + 1) * size : 0;
    const int held = max(end - first, 0);
    real = held < VPT ? (1u << held) - 1 : ~0u;
    per_size = reciprocal_approx((float)size);
  }

  float negated[VPT];  // 0 - bias of this lane's experts
#pragma unroll
  for (int j = 0; j < VPT; ++j) {
    const bool biased = SCORED && p.bias && first + j < end;
    negated[j] = __fsub_rn(0.f, biased ? load_float(p.bias, p.bias_dtype, (first + j) * p.bias_stride) : 0.f);
  }

  for (long long index = (long long)blockIdx.x * teams + team; index < p.rows; index += step) {
    if (index >= valid) {  // the same for the whole team
      write_padding<SPLIT>(p, index);
      continue;
    }
    const Row row = row_at(p, index, DTYPE, 1);
    float x[VPT], peak = 0.f, scale = 0.f;
    load_logits<DTYPE, VPT, vector_of(DTYPE, VPT)>(x, row, first, end);
    if (SCORING == SOFTMAX) {
      peak = x[0];
#pragma unroll
      for (int j = 1; j < VPT; ++j) peak = max_keeping_nan(peak, x[j]);
      peak = row_peak<SPLIT>(peak, &softmax);
      unsigned long long sum = 0;
#pragma unroll
      for (int j = 0; j < VPT; ++j) sum += softmax_term(x[j], peak);
      scale = row_scale<SPLIT>(sum, peak, &softmax);
    }

    int key[VPT];
#pragma unroll
    for (int j = 0; j < VPT; ++j) {
      const float s = SCORED ? score(SCORING, x[j], peak, scale) : scale;
      const int ranked = rank_key(SCORING, SCORED, x[j], s, negated[j]);
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
}
