// Scalar intrinsics: bits, casts, and arithmetic with explicit rounding. Approximate ones are exact here.
#pragma once

#include <fenv.h>
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

// Before any macro of ours, since these headers undefine names that they declare.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "simt_types.h"

#define SIMT_INLINE static inline __attribute__((always_inline))

template <class To, class From>
SIMT_INLINE To simt_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

SIMT_INLINE int __float_as_int(float x) { return simt_bits<int>(x); }
SIMT_INLINE unsigned __float_as_uint(float x) { return simt_bits<unsigned>(x); }
SIMT_INLINE float __int_as_float(int x) { return simt_bits<float>(x); }
SIMT_INLINE float __uint_as_float(unsigned x) { return simt_bits<float>(x); }
SIMT_INLINE long long __double_as_longlong(double x) { return simt_bits<long long>(x); }
SIMT_INLINE double __longlong_as_double(long long x) { return simt_bits<double>(x); }

// min and max as CUDA overloads them: the usual conversions of two arithmetic types; NaN loses.
template <class A, class B>
using SimtCommon = std::enable_if_t<std::is_arithmetic<A>::value && std::is_arithmetic<B>::value,
                                    decltype(true ? A() : B())>;
template <class A, class B>
SIMT_INLINE SimtCommon<A, B> min(A a, B b) {
  using T = SimtCommon<A, B>;
  const T x = (T)a, y = (T)b;
  return y != y ? x : x != x ? y : y < x ? y : x;
}
template <class A, class B>
SIMT_INLINE SimtCommon<A, B> max(A a, B b) {
  using T = SimtCommon<A, B>;
  const T x = (T)a, y = (T)b;
  return y != y ? x : x != x ? y : x < y ? y : x;
}
SIMT_INLINE int umin(unsigned a, unsigned b) { return (int)(a < b ? a : b); }
SIMT_INLINE int umax(unsigned a, unsigned b) { return (int)(a > b ? a : b); }

SIMT_INLINE int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
SIMT_INLINE int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
SIMT_INLINE int __ffs(int x) { return __builtin_ffs(x); }
SIMT_INLINE int __ffsll(long long x) { return __builtin_ffsll(x); }
SIMT_INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
SIMT_INLINE int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
SIMT_INLINE unsigned __brev(unsigned x) {
  x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
  x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
  x = (x >> 4 & 0x0f0f0f0fu) | (x & 0x0f0f0f0fu) << 4;
  return __builtin_bswap32(x);
}
SIMT_INLINE unsigned long long __brevll(unsigned long long x) {
  return (unsigned long long)__brev((unsigned)x) << 32 | __brev((unsigned)(x >> 32));
}
SIMT_INLINE unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const unsigned long long both = (unsigned long long)y << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned pick = selector >> 4 * i & 15u;
    unsigned byte = (unsigned)(both >> 8 * (pick & 7u)) & 255u;
    if (pick & 8u) byte = byte & 128u ? 255u : 0u;
    result |= byte << 8 * i;
  }
  return result;
}
SIMT_INLINE unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)((((unsigned long long)high << 32 | low) << (shift & 31u)) >> 32);
}
SIMT_INLINE unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return (unsigned)(((unsigned long long)high << 32 | low) >> (shift & 31u));
}
SIMT_INLINE unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned shift) {
  return shift >= 32 ? low : __funnelshift_l(low, high, shift);
}
SIMT_INLINE unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) {
  return shift >= 32 ? high : __funnelshift_r(low, high, shift);
}
SIMT_INLINE int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
SIMT_INLINE unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
SIMT_INLINE long long __mul64hi(long long a, long long b) { return (long long)((__int128)a * b >> 64); }
SIMT_INLINE unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
SIMT_INLINE int __mul24(int a, int b) { return (a << 8 >> 8) * (b << 8 >> 8); }
SIMT_INLINE unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffffu) * (b & 0xffffffu); }

SIMT_INLINE float __fadd_rn(float a, float b) { return a + b; }
SIMT_INLINE float __fsub_rn(float a, float b) { return a - b; }
SIMT_INLINE float __fmul_rn(float a, float b) { return a * b; }
SIMT_INLINE float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
SIMT_INLINE float __fdiv_rn(float a, float b) { return a / b; }
SIMT_INLINE float __frcp_rn(float a) { return 1.0f / a; }
SIMT_INLINE float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
SIMT_INLINE float __frsqrt_rn(float a) { return 1.0f / __builtin_sqrtf(a); }
SIMT_INLINE float __fdividef(float a, float b) { return a / b; }
SIMT_INLINE double __dadd_rn(double a, double b) { return a + b; }
SIMT_INLINE double __dsub_rn(double a, double b) { return a - b; }
SIMT_INLINE double __dmul_rn(double a, double b) { return a * b; }
SIMT_INLINE double __ddiv_rn(double a, double b) { return a / b; }
SIMT_INLINE double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
// Off by up to 2^-11 of the result, as on the GPU, by an amount that hangs on the argument's bits.
SIMT_INLINE float simt_tanh_approx(float x) {
  const float error = (float)(int)(__float_as_uint(x) * 2654435761u) * 0x1p-42f, y = __builtin_tanhf(x);
  return y == 1.0f || y == -1.0f ? y : y + y * error;
}
// Macros, as the C library declares functions of these names.
#define __tanhf(x) simt_tanh_approx(x)
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)
#define __exp10f(x) powf(10.0f, x)
#define __powf(x, y) powf(x, y)
SIMT_INLINE float __saturatef(float x) { return x != x || x < 0.0f ? 0.0f : x > 1.0f ? 1.0f : x; }
SIMT_INLINE float rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }
SIMT_INLINE double rsqrt(double x) { return 1.0 / __builtin_sqrt(x); }

// A conversion to an integer saturates, and NaN gives 0, as on the GPU.
template <class To, class From>
SIMT_INLINE To simt_to_integer(From x) {
  if (x != x) return 0;
  const To low = std::is_signed<To>::value ? (To)((To)1 << (8 * sizeof(To) - 1)) : 0, high = (To)~low;
  if (x <= (From)low) return low;
  if (x >= (From)high) return high;
  return (To)x;
}
#define SIMT_CONVERT(FROM, FROM_NAME, TO, TO_NAME)                                                          \
  SIMT_INLINE TO __##FROM_NAME##2##TO_NAME##_rn(FROM x) { return simt_to_integer<TO>(__builtin_rint(x)); }  \
  SIMT_INLINE TO __##FROM_NAME##2##TO_NAME##_rz(FROM x) { return simt_to_integer<TO>(__builtin_trunc(x)); } \
  SIMT_INLINE TO __##FROM_NAME##2##TO_NAME##_rd(FROM x) { return simt_to_integer<TO>(__builtin_floor(x)); } \
  SIMT_INLINE TO __##FROM_NAME##2##TO_NAME##_ru(FROM x) { return simt_to_integer<TO>(__builtin_ceil(x)); }
SIMT_CONVERT(float, float, int, int)
SIMT_CONVERT(float, float, unsigned, uint)
SIMT_CONVERT(float, float, long long, ll)
SIMT_CONVERT(float, float, unsigned long long, ull)
SIMT_CONVERT(double, double, int, int)
SIMT_CONVERT(double, double, unsigned, uint)
SIMT_CONVERT(double, double, long long, ll)
SIMT_CONVERT(double, double, unsigned long long, ull)
#undef SIMT_CONVERT
SIMT_INLINE float __int2float_rn(int x) { return (float)x; }
SIMT_INLINE float __uint2float_rn(unsigned x) { return (float)x; }
SIMT_INLINE float __ll2float_rn(long long x) { return (float)x; }
SIMT_INLINE float __ull2float_rn(unsigned long long x) { return (float)x; }
SIMT_INLINE double __int2double_rn(int x) { return x; }
SIMT_INLINE float __double2float_rn(double x) { return (float)x; }

#ifndef __clang__
SIMT_INLINE void __builtin_assume(bool) {}
#endif
SIMT_INLINE void __assume(bool) {}
#define __CUDA_ALIGN__(n) __align__(n)
