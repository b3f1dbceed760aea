// Accesses to the same memory with nothing that orders them.

template <bool WRONG>
__global__ void missing_barrier(int* out, int n) {
  __shared__ int values[128];
  values[threadIdx.x] = threadIdx.x;
  if (!WRONG) __syncthreads();
  if ((int)threadIdx.x < n) out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

template <bool WRONG>
__global__ void missing_warp_barrier(int* out, int n) {
  __shared__ int values[32];
  values[threadIdx.x] = threadIdx.x;
  if (!WRONG) __syncwarp();
  if ((int)threadIdx.x < n) out[threadIdx.x] = values[31 - threadIdx.x];
}

// A barrier of half a warp orders that half only.
template <bool WRONG>
__global__ void half_warp(int* out, int n) {
  __shared__ int values[32];
  const unsigned half = threadIdx.x < 16 ? 0xffffu : 0xffff0000u;
  values[threadIdx.x] = threadIdx.x;
  __syncwarp(half);
  if ((int)threadIdx.x < n) out[threadIdx.x] = values[threadIdx.x ^ (WRONG ? 16 : 8)];
}

// What lanes learn through one another, three masks in a row.
template <bool WRONG>
__global__ void chain_of_masks(int* out, int n) {
  __shared__ int value;
  const int lane = threadIdx.x;
  if (lane == 0) value = 5;
  if (lane < 2) __syncwarp(0x3u);
  if (lane == 1 || lane == 2) {
    if (!WRONG) __syncwarp(0x6u);
  }
  if (lane == 2 && n) out[0] = value;
}

template <bool WRONG>
__global__ void reused_too_early(int* out, int n) {
  __shared__ int totals[4];
  const int warp = threadIdx.x / 32;
  int sum = 0;
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x % 32 == 0) totals[warp] = round + warp;
    __syncthreads();
    sum += totals[0] + totals[3];
    if (!WRONG) __syncthreads();
  }
  if ((int)threadIdx.x < n) out[threadIdx.x] = sum;
}

template <bool WRONG>
__global__ void many_writers(int* out, int n) {
  if (WRONG || threadIdx.x == 0) out[0] = n;
}

template <bool WRONG>
__global__ void plain_read_of_counter(int* out, int n) {
  __shared__ int count;
  if (threadIdx.x == 0) count = 0;
  __syncthreads();
  atomicAdd(&count, 1);
  if (!WRONG) __syncthreads();
  if (threadIdx.x == 0 && n) out[0] = count;
}

template <bool WRONG>
__global__ void plain_increment(int* counters, int n) {
  const int at = threadIdx.x % n;
  if (WRONG) ++counters[at];
  else atomicAdd(&counters[at], 1);
}

template <bool WRONG>
__global__ void blocks_overlap(int* out, int n) {
  const int share = n / gridDim.x, begin = blockIdx.x * share;
  for (int i = threadIdx.x; i < share + (WRONG && blockIdx.x == 1); i += blockDim.x)
    if (begin + i < n) out[begin + i] = blockIdx.x;
}

// A shuffle hands over a value, and orders no memory.
template <bool WRONG>
__global__ void shuffle_is_no_barrier(int* out, int n) {
  __shared__ int value;
  int token = threadIdx.x;
  if (threadIdx.x == 0) value = 7;
  token = __shfl_sync(~0u, token, 0);
  if (!WRONG) __syncwarp();
  if ((int)threadIdx.x < n) out[threadIdx.x] = value + token;
}

template <bool WRONG>
__global__ void block_scope(int* counters, int n) {
  if (WRONG) atomicAdd_block(&counters[threadIdx.x % n], 1);
  else atomicAdd(&counters[threadIdx.x % n], 1);
}

// Neighbouring bytes are nobody else's business; the word around them is.
template <bool WRONG>
__global__ void bytes_of_a_word(int* out, int n) {
  __shared__ unsigned words[16];
  unsigned char* bytes = reinterpret_cast<unsigned char*>(words);
  if (threadIdx.x < 16) words[threadIdx.x] = 0;
  __syncthreads();
  bytes[threadIdx.x] = 1;
  if (WRONG && threadIdx.x == 37) words[9] = 0x01010101u;
  __syncthreads();
  if ((int)threadIdx.x < n && threadIdx.x < 16) out[threadIdx.x] = words[threadIdx.x];
}

// Two warps read, one of them writes after a barrier of its own: the other's read counts too.
template <bool WRONG>
__global__ void forgotten_reader(int* out, int n) {
  __shared__ int value;
  if (threadIdx.x == 0) value = 1;
  __syncthreads();
  const int seen = value;
  if (!WRONG) __syncthreads();
  __syncwarp();
  if (threadIdx.x == 0) value = 2;
  if ((int)threadIdx.x < n) out[threadIdx.x] = seen;
}

// A histogram whose first counts may meet the zeroing.
template <bool WRONG>
__global__ void histogram(const int* in, int* out, int n) {
  __shared__ int counts[16];
  for (int i = threadIdx.x; i < 16; i += blockDim.x) counts[i] = 0;
  if (!WRONG) __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) atomicAdd(&counts[in[n - 1 - i] & 15], 1);
  __syncthreads();
  for (int i = threadIdx.x; i < 16 && i < n; i += blockDim.x) out[i] = counts[i];
}

// Dynamic shared memory is as shared as any.
template <bool WRONG>
__global__ void dynamic_race(int* out, int n) {
  extern __shared__ int dynamic[];
  dynamic[threadIdx.x] = threadIdx.x;
  if (!WRONG) __syncthreads();
  if ((int)threadIdx.x < n) out[threadIdx.x] = dynamic[(threadIdx.x + 32) % blockDim.x];
}

// Each thread of a block writes its part; another launch may read them all.
__global__ void first_launch(int* scratch, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) scratch[i] = i;
}
__global__ void second_launch(const int* scratch, int* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = scratch[n - 1 - i];
}
