// Memory that is read before anything is written to it.

template <bool WRONG>
__global__ void shared_tail(int* out, int n) {
  __shared__ int sums[32];
  if (threadIdx.x < (WRONG ? 31 : 32)) sums[threadIdx.x] = threadIdx.x;
  __syncthreads();
  int sum = 0;
  for (int i = 0; i < 32; ++i) sum += sums[i];
  if ((int)threadIdx.x < n) out[threadIdx.x] = sum;
}

template <bool WRONG>
__global__ void output_first(int* out, int n) {
  if ((int)threadIdx.x >= n) return;
  if (!WRONG) out[threadIdx.x] = 0;
  out[threadIdx.x] += threadIdx.x;
}

template <bool WRONG>
__global__ void counter(int* out, int n) {
  __shared__ int count;
  if (threadIdx.x == 0 && !WRONG) count = 0;
  __syncthreads();
  atomicAdd(&count, 1);
  __syncthreads();
  if ((int)threadIdx.x < n) out[threadIdx.x] = count;
}

template <bool WRONG>
__global__ void half_of_a_word(int* out, int n) {
  __shared__ int words[64];
  short* halves = reinterpret_cast<short*>(words);
  halves[2 * threadIdx.x] = threadIdx.x;
  if (!WRONG) halves[2 * threadIdx.x + 1] = 0;
  __syncthreads();
  if ((int)threadIdx.x < n) out[threadIdx.x] = words[threadIdx.x];
}

// Two launches: the second reads what the first has left.
template <bool WRONG>
__global__ void leave_scratch(int* scratch, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n - WRONG) scratch[i] = i;
}

__global__ void read_scratch(const int* scratch, int* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = scratch[i];
}

// A block's shared memory is not what the block before it has left.
template <bool WRONG>
__global__ void last_block(int* out, int n) {
  __shared__ int left;
  if (threadIdx.x == 0 && (blockIdx.x == 0 || !WRONG)) left = blockIdx.x;
  __syncthreads();
  if (threadIdx.x == 0 && (int)blockIdx.x < n) out[blockIdx.x] = left;
}
