// The gate for every layout, scoring and grouping, all known at run time: one instantiation does what
// thousands of fused_gate could. The team's threads share out the row's experts one by one and leave their
// keys in shared memory, where groups of any size are judged; then each lane takes its VPT neighbouring keys.
#include "gate_row.cuh"

template <int VPT, bool SPLIT>
__global__ void __launch_bounds__(SPLIT ? MAX_EXPERTS / VPT : 32 * TEAMS) fused_gate_generic(GateParams p) {
  constexpr int HELD = SPLIT ? MAX_EXPERTS : 32 * VPT;
  __shared__ Picked picked[SPLIT ? MAX_EXPERTS / (32 * VPT) : TEAMS];
  __shared__ SoftmaxShared softmax;
  __shared__ int stages[SPLIT ? 1 : TEAMS][HELD], flags_of[SPLIT ? 1 : TEAMS][HELD];

  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int team = SPLIT ? 0 : warp, teams = SPLIT ? 1 : blockDim.x >> 5;
  const int rank = SPLIT ? threadIdx.x : lane, threads = SPLIT ? blockDim.x : 32;
  const int first = rank * VPT;
  const long long step = (long long)gridDim.x * teams;
  after_previous(p.early);
  const long long valid = p.num_valid_rows ? *p.num_valid_rows : p.rows;
  const bool scored = p.scored;
  const int size = p.experts / p.groups;
  int *stage = stages[team], *flags = flags_of[team];

  for (long long index = (long long)blockIdx.x * teams + team; index < p.rows; index += step) {
    if (index >= valid) {  // the same for the whole team
      write_padding<32, SPLIT>(p, index, true);
      continue;
    }
    const Row row = row_at(p, index, p.logits_dtype, p.column_stride);
    float peak = -infinity(), scale = 0.f;
#pragma unroll 4
    for (int e = rank; e < p.experts; e += threads) {
      const float x = row[e];
      stage[e] = __float_as_int(x);
      peak = max_keeping_nan(peak, x);
    }
    // Until the next barrier a thread reads only what it staged itself.
    if (p.scoring == SOFTMAX) {
      peak = row_peak<32, SPLIT>(peak, &softmax);
      unsigned long long sum = 0;
#pragma unroll 1
      for (int e = rank; e < p.experts; e += threads) sum += softmax_term(__int_as_float(stage[e]), peak);
      scale = row_scale<32, SPLIT>(sum, peak, &softmax);
    }
#pragma unroll 1
    for (int e = rank; e < p.experts; e += threads) {
      const float x = __int_as_float(stage[e]);
      const float bias = p.bias ? load_float(p.bias, p.bias_dtype, e * p.bias_stride) : 0.f;
      const float s = scored ? score(p.scoring, x, peak, scale) : scale;
      stage[e] = rank_key(p.scoring, scored, x, s, __fsub_rn(0.f, bias));
    }
    team_sync<SPLIT>();  // every key is staged before another thread reads it
    if (p.groups > 1) mark_groups<SPLIT>(stage, flags, size, p.groups, p.kept_groups);

    int key[VPT];
    int h = first / size, at = first - h * size;
#pragma unroll
    for (int j = 0; j < VPT; ++j) {
      key[j] = WORST;
      if (first + j < p.experts) key[j] = p.groups == 1 || flags[h] ? stage[first + j] : DROPPED;
      if (++at == size) at = 0, ++h;
    }
    const auto is_kept = [=](int id) { return p.groups == 1 || flags[id / size] != 0; };
    const Rescorer rescore{p, row, p.scoring, scored, peak, scale};
    pick<VPT>(key, first, ~0u, p.experts, p.routed, rescore, is_kept, &picked[warp]);
    finish_row<SPLIT>(p, index, picked);
  }
}
