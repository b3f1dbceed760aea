// append_shared_experts, right and with one planted fault each. One block of 64 threads a token; weights go through
// shared memory, so that there is a barrier to leave out.

struct Append {
    const int* ids;
    const float* weights;
    const float* shared;
    int* out_ids;
    float* out_weights;
    int tokens, topk, extra, experts;
};

constexpr int WIDTH = 64;

__device__ void copy_ids(const Append& p) {
    const int width = p.topk + p.extra;
    for (int i = threadIdx.x; i < width; i += WIDTH) {
        const int id = i < p.topk ? p.ids[blockIdx.x * p.topk + i] : p.experts + i - p.topk;
        p.out_ids[blockIdx.x * width + i] = id;
    }
}

// The weight of place i of this block's token; the barrier, where one is needed, is the caller's.
__device__ void stage(const Append& p, float* staged) {
    const int width = p.topk + p.extra;
    const int i = threadIdx.x;
    if (i < width) {
        staged[i] = i < p.topk ? p.weights[blockIdx.x * p.topk + i] : p.shared[blockIdx.x * p.extra + i - p.topk];
    }
}

__device__ void write_back(const Append& p, const float* staged) {
    const int width = p.topk + p.extra;
    const int i = width - 1 - static_cast<int>(threadIdx.x);  // another thread's
    if (i >= 0) p.out_weights[blockIdx.x * width + i] = staged[i];
}

__global__ void append_right(Append p) {
    __shared__ float staged[WIDTH];
    copy_ids(p);
    stage(p, staged);
    __syncthreads();
    write_back(p, staged);
}

__global__ void append_past_end(Append p) {
    __shared__ float staged[WIDTH];
    copy_ids(p);
    stage(p, staged);
    __syncthreads();
    write_back(p, staged);
    const int width = p.topk + p.extra;
    if (blockIdx.x == p.tokens - 1 && threadIdx.x == 0) p.out_weights[p.tokens * width] = 0.0f;
}

__global__ void append_no_barrier(Append p) {
    __shared__ float staged[WIDTH];
    copy_ids(p);
    stage(p, staged);
    write_back(p, staged);
}

__global__ void append_reads_output(Append p) {
    __shared__ float staged[WIDTH];
    copy_ids(p);
    stage(p, staged);
    __syncthreads();
    const int place = blockIdx.x * (p.topk + p.extra) + threadIdx.x;
    const bool odd = static_cast<int>(threadIdx.x) < p.topk + p.extra && p.out_weights[place] == -1.25e30f;
    __syncthreads();
    if (!odd) write_back(p, staged);
}

__global__ void append_divergent_barrier(Append p) {
    __shared__ float staged[WIDTH];
    copy_ids(p);
    stage(p, staged);
    __syncthreads();
    write_back(p, staged);
    // Both halves of a warp are at a barrier, but not at the same one; the text keeps the compiler from making it one.
    if (threadIdx.x % 32 < 16) {
        asm volatile("bar.sync 0;  // lower" ::: "memory");
        if (staged[threadIdx.x % p.topk] == -1.25e30f) p.out_ids[0] = -2;
    } else {
        asm volatile("bar.sync 0;  // upper" ::: "memory");
    }
}
