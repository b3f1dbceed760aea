// Kernels that disturb others: one that fills shared memory and stays, one that keeps multiprocessors and memory busy.

constexpr int THREADS = 128;

struct PerturbParams {
  unsigned* sink;         // [sink_words]
  long long nanoseconds;  // how long a block stays
  int words;              // dynamic shared memory that a block fills
  unsigned pattern;       // with this
  int sink_words;
};

__device__ __forceinline__ long long now() {
  long long time;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
  return time;
}

__global__ void __launch_bounds__(THREADS) hold(PerturbParams p) {
  extern __shared__ unsigned memory[];
  const long long end = now() + p.nanoseconds;
  volatile unsigned* words = memory;  // stores that the kernel itself does not need
  for (int i = threadIdx.x; i < p.words; i += THREADS) words[i] = p.pattern;
  while (now() < end) __nanosleep(200);
}

// Arithmetic, shared memory and global memory in turn; sums of what was there, so that nothing can be left out.
__global__ void __launch_bounds__(THREADS) busy(PerturbParams p) {
  __shared__ unsigned tile[THREADS];
  const long long end = now() + p.nanoseconds;
  unsigned x = blockIdx.x * THREADS + threadIdx.x;
  tile[threadIdx.x] = x;
  while (now() < end) {
    for (int i = 0; i < 64; ++i) {
      x = x * 1664525u + 1013904223u;
      tile[threadIdx.x] ^= x;
      if (i % 8 == 0) x ^= p.sink[x % p.sink_words];
    }
    p.sink[x % p.sink_words] = tile[threadIdx.x];
  }
}
