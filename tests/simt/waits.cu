// Threads that wait for what does not come, and threads that give up.
#include <cassert>

template <bool WRONG>
__global__ void two_barriers(int* out, int n) {
  if (WRONG && threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  if ((int)threadIdx.x < n) out[threadIdx.x] = 1;
}

template <bool WRONG>
__global__ void barrier_against_warp(int* out, int n) {
  if (WRONG && threadIdx.x < 16) __syncthreads();
  else __syncwarp(WRONG ? ~0u : __activemask());
  if ((int)threadIdx.x < n) out[threadIdx.x] = 1;
}

template <bool WRONG>
__global__ void missing_lane(int* out, int n) {
  int value = threadIdx.x;
  if (threadIdx.x < 16) value = __shfl_xor_sync(WRONG ? ~0u : 0xffffu, value, 1);
  else if (WRONG) __syncthreads();
  if (!WRONG || threadIdx.x < 16) __syncwarp(WRONG ? 0xffffu : ~0u);
  if ((int)threadIdx.x < n) out[threadIdx.x] = value;
}

template <bool WRONG>
__global__ void not_in_mask(int* out, int n) {
  const unsigned mask = WRONG ? 0xffffu : ~0u;
  const int sum = __reduce_add_sync(mask, (int)threadIdx.x);
  if ((int)threadIdx.x < n) out[threadIdx.x] = sum;
}

template <bool WRONG>
__global__ void mixed_collectives(int* out, int n) {
  unsigned value = 0;
  if (WRONG && threadIdx.x < 16) value = __ballot_sync(~0u, 1);
  else value = __reduce_add_sync(~0u, 1u);
  if ((int)threadIdx.x < n) out[threadIdx.x] = (int)value;
}

template <bool WRONG>
__global__ void nobody_sets_it(int* flag, int* out) {
  volatile int* watched = flag;
  if (blockIdx.x == 0 && threadIdx.x == 0 && !WRONG) *watched = 1;
  if (blockIdx.x == 1)
    while (!*watched) {
    }
  if (threadIdx.x == 0) out[blockIdx.x] = 1;
}

template <bool WRONG>
__global__ void endless(int* out, int n) {
  unsigned x = n;
  while (x != 1 || WRONG) x = x % 2 ? 3 * x + 1 : x / 2;
  if ((int)threadIdx.x < n) out[threadIdx.x] = (int)x;
}

// A thread may leave before a barrier; the others need not wait for it.
template <bool WRONG>
__global__ void early_exit(int* out, int n) {
  __shared__ int values[128];
  if (threadIdx.x >= 100) return;
  values[threadIdx.x] = threadIdx.x;
  if (!WRONG) __syncthreads();
  if ((int)threadIdx.x < n) out[threadIdx.x] = values[99 - threadIdx.x];
}

template <bool WRONG>
__global__ void trap(int* out, int n) {
  if (WRONG && threadIdx.x == 5) __trap();
  if ((int)threadIdx.x < n) out[threadIdx.x] = 1;
}

template <bool WRONG>
__global__ void asserted(int* out, int n) {
  assert(threadIdx.x < (WRONG ? 5 : 1024));
  if ((int)threadIdx.x < n) out[threadIdx.x] = 1;
}

__device__ __noinline__ int deep(int depth, volatile int* out) {
  volatile int frame[64];
  frame[depth % 64] = depth;
  return depth == 0 ? frame[0] : deep(depth - 1, out) + frame[depth % 64];
}

template <bool WRONG>
__global__ void deep_recursion(int* out, int n) {
  const int sum = deep(WRONG ? 400 : 3, out);
  __syncwarp();
  if ((int)threadIdx.x < n) out[threadIdx.x] = sum;
}
