#include <cstring>

// Memory that is not there. Each kernel is wrong if WRONG, by one element where that is the point, and right if not.

template <bool WRONG>
__global__ void past_end(int* out, int n) {
  for (int i = threadIdx.x; i < n + WRONG; i += blockDim.x) out[i] = i;
}

template <bool WRONG>
__global__ void before_start(const int* in, int* out, int n) {
  for (int i = threadIdx.x; i < n; i += blockDim.x) out[i] = in[i == 0 && !WRONG ? 0 : i - 1];
}

template <bool WRONG>
__global__ void far_away(const int* in, int* out, int n) {
  const int at = WRONG ? 100000000 : 0;
  if (threadIdx.x == 0)
    for (int i = 0; i < n; ++i) out[i] = in[at];
}

__device__ __noinline__ int element(const int* array, int at) { return array[at]; }

template <bool WRONG>
__global__ void shared_neighbour(int* out, int n) {
  __shared__ int mine[64], neighbour[64];
  mine[threadIdx.x] = threadIdx.x;
  neighbour[threadIdx.x] = -1;
  __syncthreads();
  const int next = WRONG ? threadIdx.x + 1 : min(threadIdx.x + 1, 63u);
  if ((int)threadIdx.x < n) out[threadIdx.x] = element(mine, next) + neighbour[0];
}

template <bool WRONG>
__global__ void shared_index(int* out, int n) {
  __shared__ int rows[4][16];
  rows[threadIdx.x / 16][threadIdx.x % 16] = threadIdx.x;
  __syncthreads();
  // Within the whole array, past the end of its row.
  const int column = threadIdx.x % 16 + (threadIdx.x == 5 && WRONG ? 16 : 0);
  if ((int)threadIdx.x < n) out[threadIdx.x] = rows[threadIdx.x / 16][column];
}

template <bool WRONG>
__global__ void local_index(int* out, int n) {
  int held[4] = {1, 2, 3, 4};
  for (int i = 0; i < n; ++i) held[i % 4] += i;
  if ((int)threadIdx.x < n) out[threadIdx.x] = held[threadIdx.x % 4 + (WRONG && n > 3)];
}

template <int WORDS>
union Loaded {
  int4 vector;
  int words[WORDS];
  __device__ __noinline__ int word(int at) const { return words[at]; }
};

template <bool WRONG>
__global__ void last_member(int* out, int n) {
  Loaded<WRONG ? 3 : 4> loaded;
  loaded.vector = make_int4(1, 2, 3, 4);
  if ((int)threadIdx.x < n) out[threadIdx.x] = loaded.word(threadIdx.x % 4);
}

template <bool WRONG>
__global__ void dynamic_shared(int* out, int n) {
  extern __shared__ int dynamic[];
  dynamic[threadIdx.x + WRONG] = threadIdx.x;
  __syncthreads();
  if ((int)threadIdx.x < n) out[threadIdx.x] = dynamic[threadIdx.x + WRONG];
}

template <bool WRONG>
__global__ void vector_past_end(const int* in, int* out, int n) {
  if (threadIdx.x) return;
  for (int i = 0; WRONG ? i < n : i + 4 <= n; i += 4) {
    const int4 four = *reinterpret_cast<const int4*>(in + i);
    out[i] = four.x + four.y + four.z + four.w;
  }
}

template <bool WRONG>
__global__ void misaligned(const int* in, int* out, int n) {
  const int4* vectors = reinterpret_cast<const int4*>(in + WRONG);
  if (threadIdx.x == 0 && n >= 8) out[0] = vectors[0].x + vectors[0].w;
}

template <bool WRONG>
__global__ void misaligned_shared(int* out, int n) {
  __shared__ __align__(16) float values[64];
  values[threadIdx.x] = threadIdx.x;
  __syncthreads();
  char* bytes = reinterpret_cast<char*>(values) + (WRONG ? 4 : 0);
  if ((int)threadIdx.x < n && threadIdx.x < 8)
    out[threadIdx.x] = (int)*reinterpret_cast<double*>(bytes + 16 * (threadIdx.x % 2));
}

__device__ int table[8];
__device__ int beside[8];

template <bool WRONG>
__global__ void device_variable(int* out, int n) {
  if (threadIdx.x < 8) beside[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    int* at = table;
    for (int i = 0; i < 8 + WRONG; ++i) at[i] = i;
    for (int i = 0; i < n; ++i) out[i] = at[i % 8];
  }
}

template <bool WRONG>
__global__ void input_written(const int* in, int* out, int n) {
  if ((int)threadIdx.x < n) {
    out[threadIdx.x] = in[threadIdx.x];
    if (WRONG && threadIdx.x == 3) const_cast<int*>(in)[threadIdx.x] = -5;
  }
}

template <bool WRONG>
__global__ void half_words(short* out, int n) {
  for (int i = threadIdx.x; i < n + WRONG; i += blockDim.x) out[i] = i;
}

template <bool WRONG>
__global__ void between_rows(const int* in, int* out, int rows, int columns, int stride) {
  for (int r = threadIdx.x; r < rows; r += blockDim.x) {
    int sum = 0;
    for (int c = 0; c < columns + (WRONG && r == 1); ++c) sum += in[r * stride + c];
    out[r] = sum;
  }
}

template <bool WRONG>
__global__ void copied(int* out, int n) {
  int held[24];
  std::memset(held, 0, sizeof held);
  if (threadIdx.x == 0) std::memcpy(out, held, (n + WRONG) * sizeof(int));
}

__device__ __noinline__ void store(int* at, int value) { *at = value; }

template <bool WRONG>
__global__ void foreign_stack(int* out, int n) {
  __shared__ int* lent;
  __shared__ int sum;
  int own = threadIdx.x;
  if (threadIdx.x == 0) {
    lent = &own;
    sum = 0;
  }
  __syncthreads();
  if (threadIdx.x == 40) store(WRONG ? lent : &sum, 7);
  __syncthreads();
  if (threadIdx.x == 0)
    for (int i = 0; i < n; ++i) out[i] = own;
}

template <bool WRONG>
__global__ void atomic_past_end(int* out, int n) {
  if (threadIdx.x < 4) out[threadIdx.x] = 0;
  __syncthreads();
  for (int i = 0; i < n; ++i) atomicAdd(&out[threadIdx.x == 9 && WRONG ? n : i % 4], 1);
}
