// Kernels that disturb others: one that fills shared memory and stays, one that keeps multiprocessors and memory busy.

constexpr int THREADS = 128;

struct PerturbParams {
  unsigned* sink;         // [sink_words]
  int* released;          // a word of the host's memory
  long long nanoseconds;  // how long a block stays at most
  int words;              // dynamic shared memory that a block fills
  unsigned pattern;       // with this
  int sink_words;
  int ticket;  // a block goes once the word has come to this; NEVER: it has to wait for its time
};

constexpr int NEVER = 0x7fffffff;

__device__ __forceinline__ long long now() {
  long long time;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
  return time;
}

__device__ __forceinline__ bool stays(const PerturbParams& p, long long end) {
  return now() < end && (p.ticket == NEVER || *(volatile int*)p.released < p.ticket);
}

__global__ void __launch_bounds__(THREADS) hold(PerturbParams p) {
  extern __shared__ unsigned memory[];
  const long long end = now() + p.nanoseconds;
  volatile unsigned* words = memory;  // stores that the kernel itself does not need
  for (int i = threadIdx.x; i < p.words; i += THREADS) words[i] = p.pattern;
  if (threadIdx.x == 0) {  // one thread a block asks the host's memory, which is far away
    while (stays(p, end)) __nanosleep(200);
  }
  __syncthreads();  // the others keep the block's place too
}

// Arithmetic, shared memory and global memory in turn; sums of what was there, so that nothing can be left out.
__global__ void __launch_bounds__(THREADS) busy(PerturbParams p) {
  __shared__ unsigned tile[THREADS];
  const bool asks = threadIdx.x == 0;
  const long long end = now() + p.nanoseconds;
  unsigned x = blockIdx.x * THREADS + threadIdx.x;
  tile[threadIdx.x] = x;
  while (__syncthreads_or(asks && stays(p, end))) {
    for (int i = 0; i < 64; ++i) {
      x = x * 1664525u + 1013904223u;
      tile[threadIdx.x] ^= x;
      if (i % 8 == 0) x ^= p.sink[x % p.sink_words];
    }
    p.sink[x % p.sink_words] = tile[threadIdx.x];
  }
}
