// Protocols between threads that no barrier joins: flags, tickets, locks, look-back. Right ones must stay silent.

// Block 0 hands a value to block 1.
template <bool WRONG>
__global__ void release_fence(int* data, int* flag, int* out) {
  volatile int* watched = flag;
  if (threadIdx.x) return;
  if (blockIdx.x == 0) {
    *data = 42;
    if (!WRONG) __threadfence();
    *watched = 1;
  } else {
    while (!*watched) {
    }
    __threadfence();
    out[0] = *data;
  }
}

template <bool WRONG>
__global__ void acquire_fence(int* data, int* flag, int* out) {
  volatile int* watched = flag;
  if (threadIdx.x) return;
  if (blockIdx.x == 0) {
    *data = 42;
    __threadfence();
    *watched = 1;
  } else {
    while (!*watched) __nanosleep(100);
    if (!WRONG) __threadfence();
    out[0] = *data;
  }
}

// The same with ordered atomics and no fence.
template <bool WRONG>
__global__ void ordered_atomics(int* data, int* flag, int* out) {
  if (threadIdx.x) return;
  if (blockIdx.x == 0) {
    *data = 42;
    __nv_atomic_store_n(flag, 1, WRONG ? __NV_ATOMIC_RELAXED : __NV_ATOMIC_RELEASE, __NV_THREAD_SCOPE_DEVICE);
  } else {
    while (!__nv_atomic_load_n(flag, __NV_ATOMIC_ACQUIRE, __NV_THREAD_SCOPE_DEVICE)) {
    }
    out[0] = *data;
  }
}

template <bool WRONG>
__global__ void builtin_atomics(int* data, int* flag, int* out) {
  if (threadIdx.x) return;
  if (blockIdx.x == 0) {
    *data = 42;
    __atomic_store_n(flag, 1, __ATOMIC_RELEASE);
  } else {
    while (!__atomic_load_n(flag, WRONG ? __ATOMIC_RELAXED : __ATOMIC_ACQUIRE)) {
    }
    out[0] = *data;
  }
}

template <bool WRONG>
__global__ void plain_flag(int* data, int* flag, int* out) {
  if (threadIdx.x) return;
  if (blockIdx.x == 0) {
    *data = 42;
    __threadfence();
    if (WRONG) *flag = 1;
    else atomicExch(flag, 1);
  } else {
    while (!atomicAdd(flag, 0)) {
    }
    __threadfence();
    out[0] = *data;
  }
}

// A fence for the block does not reach another block.
template <bool WRONG>
__global__ void fence_scope(int* data, int* flag, int* out) {
  if (threadIdx.x) return;
  if (blockIdx.x == 0) {
    *data = 42;
    if (WRONG) __threadfence_block();
    else __threadfence();
    atomicExch(flag, 1);
  } else {
    while (!atomicAdd(flag, 0)) {
    }
    __threadfence();
    out[0] = *data;
  }
}

// One warp hands shared memory to another by a flag.
template <bool WRONG>
__global__ void warp_to_warp(int* out, int n) {
  __shared__ int value;
  __shared__ int flag;
  if (threadIdx.x == 0) flag = 0;
  __syncthreads();
  volatile int* watched = &flag;
  if (threadIdx.x == 32) {
    value = 9;
    if (!WRONG) __threadfence_block();
    *watched = 1;
  }
  if (threadIdx.x == 0) {
    while (!*watched) {
    }
    __threadfence_block();
    if (n) out[0] = value;
  }
}

// The block that takes the last ticket adds up what all have written.
template <bool WRONG>
__global__ void last_block_sums(int* parts, unsigned* tickets, int* out) {
  __shared__ bool last;
  parts[blockIdx.x * blockDim.x + threadIdx.x] = blockIdx.x + threadIdx.x;
  if (!WRONG) __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    last = atomicInc(tickets, gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  if (threadIdx.x == 0 && last) {
    int sum = 0;
    for (unsigned i = 0; i < gridDim.x * blockDim.x; ++i) sum += parts[i];
    out[0] = sum;
  }
}

// As NVIDIA's threadFenceReduction sample: each thread fences its own part, a barrier follows the ticket.
template <bool WRONG>
__global__ void ticket_of_thread_0(int* parts, unsigned* tickets, int* out) {
  __shared__ bool last;
  if (threadIdx.x == 0) {
    parts[blockIdx.x] = blockIdx.x + 1;
    if (!WRONG) __threadfence();
    last = atomicInc(tickets, gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (last && threadIdx.x == 1) {
    int sum = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) sum += parts[i];
    out[0] = sum;
  }
}

// Decoupled look-back: a block's prefix is the sum of what the blocks before it have published. Status and value
// are one word, so that it takes no fence; WRONG has two words and none.
enum Status { NOTHING = 0, AGGREGATE = 1, PREFIX = 2 };

template <bool WRONG>
__global__ void look_back(const int* in, int* out, unsigned long long* words, int* values, int n) {
  __shared__ int before;
  const int i = blockIdx.x;
  if (threadIdx.x == 0) {
    const int own = in[i];
    volatile unsigned long long* status = words;
    if (WRONG) {
      values[i] = own;
      status[i] = AGGREGATE;
    } else {
      status[i] = (unsigned long long)(unsigned)own << 32 | (i ? AGGREGATE : PREFIX);
    }
    int sum = 0;
    for (int j = i - 1; j >= 0; --j) {
      unsigned long long word;
      while (((word = status[j]) & 3) == NOTHING) {
      }
      sum += WRONG ? values[j] : (int)(word >> 32);
      if ((word & 3) == PREFIX) break;
    }
    if (!WRONG && i) status[i] = (unsigned long long)(unsigned)(sum + own) << 32 | PREFIX;
    before = sum;
  }
  __syncthreads();
  if ((int)threadIdx.x == 0 && i < n) out[i] = before;
}

// The same with aggregates and prefixes in arrays of their own, and fences; a whole warp looks back.
template <bool WRONG>
__global__ void warp_look_back(const int* in, int* out, int* status, int* aggregates, int* prefixes) {
  const int i = blockIdx.x, lane = threadIdx.x;
  volatile int* watched = status;
  if (lane == 0) {
    aggregates[i] = in[i];
    if (i == 0) prefixes[0] = in[0];
    __threadfence();
    watched[i] = i ? AGGREGATE : PREFIX;
  }
  int sum = 0;
  for (int end = i; end > 0; end -= 32) {
    const int j = end - 1 - lane;
    int seen = PREFIX;
    if (j >= 0)
      while ((seen = watched[j]) == NOTHING) {
      }
    if (!WRONG) __threadfence();
    const unsigned whole = __ballot_sync(~0u, j >= 0 && seen == PREFIX);
    const int stop = whole ? __ffs(whole) - 1 : 32;
    int value = 0;
    if (j >= 0 && lane < stop) value = aggregates[j];
    if (j >= 0 && lane == stop) value = prefixes[j];
    sum += __reduce_add_sync(~0u, value);
    if (whole) break;
  }
  if (lane == 0) {
    out[i] = sum;
    if (i) {
      prefixes[i] = sum + in[i];
      __threadfence();
      watched[i] = PREFIX;
    }
  }
}

// A spin lock around a plain counter.
template <bool WRONG>
__global__ void spin_lock(int* lock, int* counter, int* out) {
  if (threadIdx.x % 32 == 0) {
    while (atomicCAS(lock, 0, 1)) __nanosleep(20);
    __threadfence();
    *counter += 1;
    if (!WRONG) __threadfence();
    atomicExch(lock, 0);
  }
  if (out && blockIdx.x == 0 && threadIdx.x == 0) out[0] = 1;
}

// A barrier of the whole grid, made of an atomic counter.
template <bool WRONG>
__global__ void grid_barrier(int* data, unsigned* arrived, int* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x, n = gridDim.x * blockDim.x;
  data[i] = i;
  __syncthreads();
  if (threadIdx.x == 0) {
    if (!WRONG) __threadfence();
    atomicAdd(arrived, 1u);
    while (atomicAdd(arrived, 0u) < gridDim.x) {
    }
    __threadfence();
  }
  __syncthreads();
  out[i] = data[n - 1 - i];
}

// Release sequence: the reader sees a later read-modify-write of another thread.
template <bool WRONG>
__global__ void through_an_exchange(int* data, int* flag, int* out) {
  if (threadIdx.x) return;
  if (blockIdx.x == 0) {
    *data = 42;
    __threadfence();
    atomicAdd(flag, 1);
  } else if (blockIdx.x == 1) {
    while (!atomicAdd(flag, 0)) {
    }
    if (WRONG) __nv_atomic_store_n(flag, 2, __NV_ATOMIC_RELAXED, __NV_THREAD_SCOPE_DEVICE);
    else atomicAdd(flag, 1);
  } else {
    while (__nv_atomic_load_n(flag, __NV_ATOMIC_ACQUIRE, __NV_THREAD_SCOPE_DEVICE) < 2) {
    }
    out[0] = *data;
  }
}
