// What the stand-ins for CUDA's functions give.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

__global__ void shuffles(const int* in, int* out, int argument, int width) {
  const int lane = threadIdx.x, value = in[lane];
  out[lane] = __shfl_sync(~0u, value, argument, width);
  out[32 + lane] = __shfl_up_sync(~0u, value, argument, width);
  out[64 + lane] = __shfl_down_sync(~0u, value, argument, width);
  out[96 + lane] = __shfl_xor_sync(~0u, value, argument, width);
}

__global__ void wide_shuffle(const double* in, double* out) {
  out[threadIdx.x] = __shfl_sync(~0u, in[threadIdx.x], 31 - threadIdx.x);
}

__global__ void votes(const int* in, int* out) {
  const int lane = threadIdx.x, value = in[lane];
  int alike = -1;
  const unsigned odd = 0xaaaaaaaau, mask = lane & 1 ? odd : ~odd;
  out[lane] = (int)__ballot_sync(~0u, value > 2);
  out[32 + lane] = __all_sync(mask, value >= 0) + 2 * __any_sync(mask, value > 6);
  out[64 + lane] = (int)__match_any_sync(~0u, value);
  out[96 + lane] = (int)__match_all_sync(mask, value & 1, &alike);
  out[128 + lane] = alike;
}

__global__ void reductions(const int* in, int* out) {
  const int lane = threadIdx.x, value = in[lane] - 4;
  const unsigned mask = lane < 12 ? 0xfffu : ~0xfffu;
  int* at = out + lane;
  at[0] = __reduce_add_sync(mask, value);
  at[32] = __reduce_min_sync(mask, value);
  at[64] = __reduce_max_sync(mask, value);
  at[96] = (int)__reduce_min_sync(mask, (unsigned)value);
  at[128] = (int)__reduce_max_sync(mask, (unsigned)value);
  at[160] = (int)__reduce_and_sync(mask, (unsigned)value);
  at[192] = (int)__reduce_or_sync(mask, (unsigned)value);
  at[224] = (int)__reduce_xor_sync(mask, (unsigned)value);
}

__global__ void barriers(const int* in, int* out) {
  const int value = in[threadIdx.x % 32];
  out[threadIdx.x] = __syncthreads_count(value > 2);
  out[96 + threadIdx.x] = __syncthreads_and(value >= 0);
  out[192 + threadIdx.x] = __syncthreads_or(value > 100);
}

__global__ void atomics(int* ints, unsigned* words, unsigned long long* longs, float* floats) {
  const int i = threadIdx.x;
  atomicAdd(&ints[0], i);
  atomicSub(&ints[1], i);
  atomicMin(&ints[2], -i);
  atomicMax(&ints[3], i - 100);
  atomicAnd(&words[0], ~(1u << (i % 32)) | 1u);
  atomicOr(&words[1], 1u << (i % 32));
  atomicXor(&words[2], 1u << (i % 32));
  atomicInc(&words[3], 9u);
  atomicDec(&words[4], 6u);
  atomicMin(&words[5], 0x80000000u + i);
  atomicMax(&words[6], 0x80000000u + i);
  atomicCAS(&words[7], (unsigned)i, (unsigned)i + 1);
  atomicAdd(&longs[0], 1ull << 33);
  atomicMax(&longs[1], (unsigned long long)i << 40);
  if (i == 5) {
    longs[2] = atomicExch(&longs[3], 77ull);
    __nv_atomic_fetch_add(&longs[4], 3ull, __NV_ATOMIC_RELAXED);
    unsigned long long expected = 3;
    longs[5] =
        __nv_atomic_compare_exchange_n(&longs[4], &expected, 8ull, false, __NV_ATOMIC_ACQ_REL, __NV_ATOMIC_RELAXED);
  }
  atomicAdd(&floats[0], 0.5f);
}

__global__ void bits(const int* in, int* out) {
  const int x = in[threadIdx.x] * 0x01234567;
  int* at = out + threadIdx.x;
  at[0] = __popc(x);
  at[32] = __clz(x);
  at[64] = __ffs(x);
  at[96] = (int)__brev(x);
  at[128] = (int)__byte_perm(x, ~x, 0x3715);
  at[160] = (int)__funnelshift_l(x, ~x, threadIdx.x);
  at[192] = (int)__umulhi(x, 0xdeadbeefu);
  at[224] = min(x, 7u) == (unsigned)min((unsigned)x, 7u);
}

__global__ void small_floats(const float* in, unsigned short* halves, unsigned short* bfloats, float* back) {
  const int i = threadIdx.x;
  const __half h = __float2half(in[i]);
  const __nv_bfloat16 b = __float2bfloat16(in[i]);
  halves[i] = __half_as_ushort(h);
  bfloats[i] = __bfloat16_as_ushort(b);
  back[i] = __half2float(h);
  back[32 + i] = __bfloat162float(b);
}

__global__ void fast_tanh(const float* in, float* out) { out[threadIdx.x] = __tanhf(in[threadIdx.x]); }

__global__ void integers(const float* in, int* rounded, int* down, unsigned* words) {
  const int i = threadIdx.x;
  rounded[i] = __float2int_rn(in[i]);
  down[i] = __float2int_rd(in[i]);
  words[i] = __float2uint_rz(in[i]);
}

__global__ void indices(int* out) {
  const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] =
      blockIdx.z * 100000 + blockIdx.y * 10000 + blockIdx.x * 1000 + threadIdx.z * 100 + threadIdx.y * 10 + threadIdx.x;
}

// Lanes that are together count themselves with one atomic.
__global__ void opportunistic(int* counter, int* out) {
  if (threadIdx.x % 3 == 0) {
    const unsigned together = __activemask();
    const int leader = __ffs(together) - 1, lane = threadIdx.x % 32;
    int base = 0;
    if (lane == leader) base = atomicAdd(counter, __popc(together));
    base = __shfl_sync(together, base, leader);
    out[base + __popc(together & ((1u << lane) - 1))] = 1;
  }
}

struct Pair {
  long long count;
  float scale;
};

__global__ void arguments(Pair pair, unsigned char small, double wide, const int* none, bool flag, int* out) {
  out[0] = (int)pair.count;
  out[1] = (int)(pair.scale * 4);
  out[2] = small;
  out[3] = (int)wide;
  out[4] = none == nullptr;
  out[5] = flag;
}

// Shared memory is each block's own, however the blocks take turns.
__global__ void own_shared(int* out) {
  __shared__ int values[32];
  values[threadIdx.x] = blockIdx.x * 100 + threadIdx.x;
  for (int round = 0; round < 8; ++round) {
    __syncthreads();
    const int next = values[(threadIdx.x + 1) % 32];
    __syncthreads();
    values[threadIdx.x] = next;
  }
  out[blockIdx.x * 32 + threadIdx.x] = values[threadIdx.x];
}
