// Planted kernels: one that lacks a barrier, one that reads shared memory before anything is written there.

struct PlantedParams {
  int* out;
  long long cycles;
};

// Warp 0 adds up what each warp of the block stores: every warp its number plus one.
__global__ void unordered_sum(PlantedParams p) {
  __shared__ int stored[32];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  if (lane == 0) stored[warp] = 0;
  __syncthreads();
  if (lane == 0) *(volatile int*)&stored[warp] = warp + 1;
  // Here the barrier is missing. Warp 0 is late enough for it not to show, unless the others are delayed.
  for (const long long start = clock64(); clock64() - start < p.cycles;) {}
  if (threadIdx.x == 0) {
    int sum = 0;
    for (int w = 0; w < warps; ++w) sum += *(volatile int*)&stored[w];
    p.out[blockIdx.x] = sum;
  }
}

// Copies 1024 words that nothing has written, of each block.
__global__ void unwritten(PlantedParams p) {
  __shared__ int memory[1024];
  volatile int* words = memory;
  for (int i = threadIdx.x; i < 1024; i += blockDim.x) p.out[blockIdx.x * 1024 + i] = words[i];
}
