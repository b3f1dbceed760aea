// 16-bit floats: a value is kept as its bits, arithmetic goes through float and rounds once, to nearest even.
#pragma once

#include "simt.h"

SIMT_INLINE float simt_half_to_float(unsigned short bits) {
  const unsigned sign = (bits & 0x8000u) << 16, rest = (bits & 0x7fffu) << 13;
  if (rest >= 0x0f800000u) return simt_bits<float>(sign | 0x70000000u | rest);              // infinities and NaN
  return simt_bits<float>(sign | simt_bits<unsigned>(simt_bits<float>(rest) * 0x1p112f));   // exact, denormals too
}

SIMT_INLINE unsigned short simt_float_to_half(float x) {
  const unsigned bits = simt_bits<unsigned>(x), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return (unsigned short)0x7fffu;
  if (rest >= 0x477ff000u) return (unsigned short)(sign | 0x7c00u);  // rounds past the largest
  if (rest < 0x38800000u) {                                          // denormal: the sum's last bit is 2^-24
    const float sum = simt_bits<float>(rest) + 0.5f;
    return (unsigned short)(sign | (simt_bits<unsigned>(sum) - 0x3f000000u));
  }
  return (unsigned short)(sign | ((rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13));
}

SIMT_INLINE float simt_bfloat_to_float(unsigned short bits) { return simt_bits<float>((unsigned)bits << 16); }

SIMT_INLINE unsigned short simt_float_to_bfloat(float x) {
  const unsigned bits = simt_bits<unsigned>(x);
  if (x != x) return (unsigned short)0x7fffu;
  return (unsigned short)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Defines a type NAME, its pair NAME2, and what CUDA's headers do with them.
#define SIMT_SMALL_FLOAT(NAME, PAIR, WORD, TO_FLOAT, FROM_FLOAT)                                       \
  struct NAME {                                                                                        \
    unsigned short bits;                                                                               \
    NAME() = default;                                                                                  \
    NAME(float x) : bits(FROM_FLOAT(x)) {}                                                             \
    NAME(double x) : bits(FROM_FLOAT((float)x)) {}                                                     \
    NAME(int x) : bits(FROM_FLOAT((float)x)) {}                                                        \
    operator float() const { return TO_FLOAT(bits); }                                                  \
    NAME& operator+=(NAME b) { return *this = NAME(float(*this) + float(b)); }                         \
    NAME& operator-=(NAME b) { return *this = NAME(float(*this) - float(b)); }                         \
    NAME& operator*=(NAME b) { return *this = NAME(float(*this) * float(b)); }                         \
    NAME& operator/=(NAME b) { return *this = NAME(float(*this) / float(b)); }                         \
  };                                                                                                   \
  struct alignas(4) PAIR {                                                                             \
    NAME x, y;                                                                                         \
  };                                                                                                   \
  SIMT_INLINE NAME operator+(NAME a, NAME b) { return NAME(float(a) + float(b)); }                     \
  SIMT_INLINE NAME operator-(NAME a, NAME b) { return NAME(float(a) - float(b)); }                     \
  SIMT_INLINE NAME operator*(NAME a, NAME b) { return NAME(float(a) * float(b)); }                     \
  SIMT_INLINE NAME operator/(NAME a, NAME b) { return NAME(float(a) / float(b)); }                     \
  SIMT_INLINE NAME operator-(NAME a) { return NAME(-float(a)); }                                       \
  SIMT_INLINE bool operator==(NAME a, NAME b) { return float(a) == float(b); }                         \
  SIMT_INLINE bool operator!=(NAME a, NAME b) { return float(a) != float(b); }                         \
  SIMT_INLINE bool operator<(NAME a, NAME b) { return float(a) < float(b); }                           \
  SIMT_INLINE bool operator>(NAME a, NAME b) { return float(a) > float(b); }                           \
  SIMT_INLINE bool operator<=(NAME a, NAME b) { return float(a) <= float(b); }                         \
  SIMT_INLINE bool operator>=(NAME a, NAME b) { return float(a) >= float(b); }                         \
  SIMT_INLINE float __##WORD##2float(NAME x) { return float(x); }                                      \
  SIMT_INLINE NAME __float2##WORD(float x) { return NAME(x); }                                         \
  SIMT_INLINE NAME __float2##WORD##_rn(float x) { return NAME(x); }                                    \
  SIMT_INLINE unsigned short __##WORD##_as_ushort(NAME x) { return x.bits; }                           \
  SIMT_INLINE short __##WORD##_as_short(NAME x) { return (short)x.bits; }                              \
  SIMT_INLINE NAME __ushort_as_##WORD(unsigned short bits) {                                           \
    NAME x;                                                                                            \
    x.bits = bits;                                                                                     \
    return x;                                                                                          \
  }                                                                                                    \
  SIMT_INLINE NAME __short_as_##WORD(short bits) { return __ushort_as_##WORD((unsigned short)bits); }  \
  SIMT_INLINE NAME __hadd(NAME a, NAME b) { return a + b; }                                            \
  SIMT_INLINE NAME __hsub(NAME a, NAME b) { return a - b; }                                            \
  SIMT_INLINE NAME __hmul(NAME a, NAME b) { return a * b; }                                            \
  SIMT_INLINE NAME __hdiv(NAME a, NAME b) { return a / b; }                                            \
  SIMT_INLINE NAME __hneg(NAME a) { return -a; }                                                       \
  SIMT_INLINE NAME __hfma(NAME a, NAME b, NAME c) {                                                    \
    return NAME(__builtin_fmaf(float(a), float(b), float(c)));                                         \
  }                                                                                                    \
  SIMT_INLINE bool __heq(NAME a, NAME b) { return a == b; }                                            \
  SIMT_INLINE bool __hlt(NAME a, NAME b) { return a < b; }                                             \
  SIMT_INLINE bool __hgt(NAME a, NAME b) { return a > b; }                                             \
  SIMT_INLINE bool __hisnan(NAME a) { return float(a) != float(a); }                                   \
  SIMT_INLINE NAME __hmax(NAME a, NAME b) { return __hisnan(a) || float(b) > float(a) ? b : a; }       \
  SIMT_INLINE NAME __hmin(NAME a, NAME b) { return __hisnan(a) || float(b) < float(a) ? b : a; }       \
  SIMT_INLINE PAIR __float22##WORD##2_rn(float2 v) { return {NAME(v.x), NAME(v.y)}; }                  \
  SIMT_INLINE PAIR __floats2##WORD##2_rn(float x, float y) { return {NAME(x), NAME(y)}; }              \
  SIMT_INLINE float2 __##WORD##22float2(PAIR v) { return {float(v.x), float(v.y)}; }                   \
  SIMT_INLINE NAME __low2##WORD(PAIR v) { return v.x; }                                                \
  SIMT_INLINE NAME __high2##WORD(PAIR v) { return v.y; }
