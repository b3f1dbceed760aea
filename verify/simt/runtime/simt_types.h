// CUDA's qualifiers and vector types for a host compiler.
#pragma once

#include "simt_abi.h"

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __inline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
// The alignment tells the loader: 256 bytes for each block of the cluster, a power of two of them.
#define __cluster_dims__(...) __attribute__((aligned(256 * simt_product(__VA_ARGS__))))
#define __align__(n) __attribute__((aligned(n)))
// Thread-local storage is what a compiler lays out apart, for `extern` arrays too; the runtime swaps its contents
// when it turns to another block. All fibers live on one system thread, so the addresses never change.
#define __shared__ thread_local
#define __CUDACC_SIMT__ 1

constexpr int simt_product(int x, int y = 1, int z = 1) { return x * y * z; }

#define SIMT_VECTOR(T, N, ALIGN2, ALIGN4)                                                    \
  struct N##1 { T x; };                                                                      \
  struct alignas(ALIGN2) N##2 { T x, y; };                                                   \
  struct N##3 { T x, y, z; };                                                                \
  struct alignas(ALIGN4) N##4 { T x, y, z, w; };                                             \
  static inline N##1 make_##N##1(T x) { return {x}; }                                        \
  static inline N##2 make_##N##2(T x, T y) { return {x, y}; }                                \
  static inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }                        \
  static inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }

SIMT_VECTOR(signed char, char, 2, 4)
SIMT_VECTOR(unsigned char, uchar, 2, 4)
SIMT_VECTOR(short, short, 4, 8)
SIMT_VECTOR(unsigned short, ushort, 4, 8)
SIMT_VECTOR(int, int, 8, 16)
SIMT_VECTOR(unsigned int, uint, 8, 16)
SIMT_VECTOR(long, long, 16, 16)
SIMT_VECTOR(unsigned long, ulong, 16, 16)
SIMT_VECTOR(long long, longlong, 16, 16)
SIMT_VECTOR(unsigned long long, ulonglong, 16, 16)
SIMT_VECTOR(float, float, 8, 16)
SIMT_VECTOR(double, double, 16, 16)
#undef SIMT_VECTOR

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define threadIdx (uint3{simt_thread_x(), simt_thread_y(), simt_thread_z()})
#define blockIdx (uint3{simt_block_x(), simt_block_y(), simt_block_z()})
#define blockDim (dim3(simt_block_dim_x(), simt_block_dim_y(), simt_block_dim_z()))
#define gridDim (dim3(simt_grid_dim_x(), simt_grid_dim_y(), simt_grid_dim_z()))
static constexpr int warpSize = 32;
