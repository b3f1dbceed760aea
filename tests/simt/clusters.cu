// Blocks of a cluster in each other's shared memory, and launches that overlap.

template <bool WRONG>
__global__ void __cluster_dims__(4, 1, 1) exchange(int* out, int n) {
  __shared__ int mine[32];
  const unsigned rank = __clusterRelativeBlockRank();
  mine[threadIdx.x] = rank * 32 + threadIdx.x;
  __cluster_barrier_arrive();
  if (!WRONG) __cluster_barrier_wait();
  const int* theirs = static_cast<int*>(__cluster_map_shared_rank(mine, (rank + 1) % 4));
  const int value = theirs[31 - threadIdx.x];
  if (WRONG) __cluster_barrier_wait();
  __cluster_barrier_arrive();
  __cluster_barrier_wait();  // nobody leaves while its memory is read
  const int i = blockIdx.x * 32 + threadIdx.x;
  if (i < n) out[i] = value;
}

// Between arriving and waiting a thread is not among friends yet.
template <bool WRONG>
__global__ void __cluster_dims__(2) written_between(int* out, int n) {
  __shared__ int first[32], second[32];
  first[threadIdx.x] = 1;
  if (!WRONG) second[threadIdx.x] = 2;
  __cluster_barrier_arrive();
  if (WRONG) second[threadIdx.x] = 2;
  __cluster_barrier_wait();
  const unsigned other = 1 - __clusterRelativeBlockRank();
  const int sum = static_cast<int*>(__cluster_map_shared_rank(first, other))[threadIdx.x] +
                  static_cast<int*>(__cluster_map_shared_rank(second, other))[threadIdx.x ^ 1];
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
  const int i = blockIdx.x * 32 + threadIdx.x;
  if (i < n) out[i] = sum;
}

template <bool WRONG>
__global__ void __cluster_dims__(2) remote_past_end(int* out, int n) {
  __shared__ int values[32];
  values[threadIdx.x] = threadIdx.x;
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
  const int* theirs = static_cast<int*>(__cluster_map_shared_rank(values, 1 - __clusterRelativeBlockRank()));
  const int value = theirs[WRONG ? threadIdx.x + 1 : threadIdx.x];
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
  const int i = blockIdx.x * 32 + threadIdx.x;
  if (i < n) out[i] = value;
}

template <bool WRONG>
__global__ void __cluster_dims__(2) left_too_early(int* out, int n) {
  __shared__ int values[32];
  values[threadIdx.x] = threadIdx.x;
  __cluster_barrier_arrive();
  __cluster_barrier_wait();
  int value = 0;
  if (__clusterRelativeBlockRank() == 0) value = static_cast<int*>(__cluster_map_shared_rank(values, 1))[threadIdx.x];
  if (!WRONG) {
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
  }
  const int i = blockIdx.x * 32 + threadIdx.x;
  if (i < n) out[i] = value;
}

__global__ void produce(int* data, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) data[i] = i;
}

template <bool WRONG>
__global__ void consume(const int* data, int* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (!WRONG) cudaGridDependencySynchronize();
  if (i < n) out[i] = data[n - 1 - i];
  if (WRONG) cudaGridDependencySynchronize();
}

// Lets the next launch start once it has waited itself, or WRONG, before. LEAVES: a block ends instead of saying so.
template <bool WRONG, bool LEAVES>
__global__ void relay(int* data, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (WRONG) cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
  if (i < n) data[i] = i;
  if (LEAVES && blockIdx.x == 0) return;
  cudaTriggerProgrammaticLaunchCompletion();
}
