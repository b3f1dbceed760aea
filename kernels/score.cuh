// Scores of router logits, and the integer keys that rank them.
//
// Every variant of every kernel computes a score with these functions and with explicitly rounded operations, so the
// compiler can contract nothing: one logit gives the same bits whichever variant, lane or batch it is computed in.
// The CPU branches (no __CUDA_ARCH__) let the same text run under a host compiler.
#pragma once

enum Scoring { SIGMOID = 0, SOFTMAX = 1, SQRTSOFTPLUS = 2 };
enum Dtype { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

// A key ranks by *cost* = -c, so that the smallest signed integer is the best expert and NaN comes last of all.
constexpr int WORST = 0x7fffffff;    // cost NaN; also what lanes without an expert hold
constexpr int DROPPED = 0x7f800000;  // cost +inf, that is c = -inf

constexpr float LOG2E = 1.44269502e+0f;     // log2(e) rounded to float
constexpr float LOG2E_LOW = 1.92596303e-8f; // log2(e) - LOG2E
constexpr float TWO_POW_M64 = 5.42101086e-20f;

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

__device__ __forceinline__ float exp2_approx(float x) {  // 2 ulp for |x| <= 1
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

__device__ __forceinline__ float tanh_approx(float x) {  // to 2^-11 of the result
#ifdef __CUDA_ARCH__
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return __tanhf(x);
#endif
}

__device__ __forceinline__ float reciprocal_approx(float x) {  // 1 ulp, exact for powers of two
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.0f / x;
#endif
}

__device__ __forceinline__ float clamp_keeping_nan(float x, float low, float high) {
#ifdef __CUDA_ARCH__
  asm("max.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(low));
  asm("min.NaN.f32 %0, %0, %1;" : "+f"(x) : "f"(high));
  return x;
#else
  return x != x ? x : x < low ? low : x > high ? high : x;
#endif
}

__device__ __forceinline__ float half_to_float(unsigned short bits) {
#ifdef __CUDA_ARCH__
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(bits));
  return y;
#else
  const unsigned sign = (bits & 0x8000u) << 16, rest = (bits & 0x7fffu) << 13;
  if (rest >= 0x0f800000u) return __uint_as_float(sign | 0x70000000u | rest);          // inf, NaN
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest) * 0x1p112f));    // exact, denormals too
#endif
}

__device__ __forceinline__ float bfloat_to_float(unsigned short bits) { return __uint_as_float((unsigned)bits << 16); }

__device__ __forceinline__ float load_float(const void* data, int dtype, long long at) {
  if (dtype == FLOAT32) return static_cast<const float*>(data)[at];
  const unsigned short bits = static_cast<const unsigned short*>(data)[at];
  return dtype == BFLOAT16 ? bfloat_to_float(bits) : half_to_float(bits);
}

// exp(x) * 2^BIAS for x in [-110, 44]: x = (n + f)·ln 2 with |f| <= 1/2, and 2^(n + BIAS) made in the exponent field.
// BIAS = ±64 keeps results that would be denormal, or overflow, in range. NaN stays NaN.
template <int BIAS>
__device__ __forceinline__ float exp_biased(float x) {
  constexpr float MAGIC = 12582912.f + BIAS + 127;  // 1.5·2^23: adding it rounds to an integer, kept in the low bits
  const float shifted = __fmaf_rn(x, LOG2E, MAGIC);
  const float whole = __fsub_rn(shifted, MAGIC);
  float part = __fmaf_rn(x, LOG2E, -whole);
  part = __fmaf_rn(x, LOG2E_LOW, part);
  return __fmul_rn(exp2_approx(part), __uint_as_float(__float_as_uint(shifted) << 23));
}

__device__ __forceinline__ float sigmoid(float x) {
  // s·2^64 = 1 / (2^-64 + exp(-x)·2^-64): the scale keeps s exact to a few ulp down to the denormals.
  const float e = exp_biased<-64>(-clamp_keeping_nan(x, -110.f, 40.f));
  return __fmul_rn(reciprocal_approx(__fadd_rn(e, TWO_POW_M64)), TWO_POW_M64);
}

__device__ __noinline__ float sqrt_softplus(float x) {
  const float a = clamp_keeping_nan(fabsf(x), 0.f, 110.f);
  if (x < -17.f) {  // log(1 + exp(x)) = exp(x) to 2^-25, so the root is exp(x/2), far past where exp(x) underflows
    const float y = __fmul_rn(clamp_keeping_nan(x, -220.f, 0.f), 0.5f);
    return __fmul_rn(exp_biased<64>(y), TWO_POW_M64);
  }
  const float tail = log1pf(__fmul_rn(exp_biased<64>(-a), TWO_POW_M64));
  return __fsqrt_rn(__fadd_rn(x > 0.f ? x : 0.f, tail));
}

// Score of a logit. `peak` (row maximum) and `scale` (1 / row sum) serve softmax only.
__device__ __forceinline__ float score(int scoring, float x, float peak, float scale) {
  if (scoring == SIGMOID) return sigmoid(x);
  if (scoring == SQRTSOFTPLUS) return sqrt_softplus(x);
  const float e = exp_biased<64>(clamp_keeping_nan(__fsub_rn(x, peak), -110.f, 0.f));
  return __fmul_rn(__fmul_rn(e, scale), TWO_POW_M64);
}

// Order-preserving integer of a cost; its own inverse (key_to_cost). No cost may be -0, and a NaN must be positive:
// every cost here comes out of a sum with +0 or a non-negative operand, and a sum's NaN is 0x7fffffff on the GPU.
__device__ __forceinline__ int order_key(float cost) {
#ifndef __CUDA_ARCH__
  if (cost != cost) return WORST;
#endif
  const int bits = __float_as_int(cost);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

__device__ __forceinline__ float key_to_cost(int key) { return __int_as_float(key ^ ((key >> 31) & 0x7fffffff)); }

// `negated` is 0 - bias, computed as such: +0 for both zeros, so that the cost is never -0.
__device__ __forceinline__ int rank_key(int scoring, bool scored, float x, float s, float negated) {
  if (scored) return order_key(__fsub_rn(negated, s));
  if (scoring == SOFTMAX && s != s) return WORST;  // one NaN or +inf makes the whole row NaN
  return order_key(__fsub_rn(0.f, x));             // scores grow with their logits, so the logit ranks as well
}
