// The least that a kernel of some traffic can take: it reads every byte of its input once, writes every byte of its
// output once, and computes nothing. A thread owns every (grid size)-th group of 4 x 16 bytes.

struct FloorParams {
  const uint4 *input;
  uint4 *output;
  long long reads;   // groups of 16 bytes
  long long writes;  // groups of 16 bytes
};

extern "C" __global__ void __launch_bounds__(512) move_bytes(FloorParams p) {
  const long long stride = (long long)gridDim.x * blockDim.x;
  const long long thread = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  uint4 sum = {0, 0, 0, 0};
  long long i = thread;
  // Four independent loads in flight a thread.
  for (; i + 3 * stride < p.reads; i += 4 * stride) {
    const uint4 a = p.input[i], b = p.input[i + stride], c = p.input[i + 2 * stride], d = p.input[i + 3 * stride];
    sum.x ^= a.x ^ b.x ^ c.x ^ d.x;
    sum.y ^= a.y ^ b.y ^ c.y ^ d.y;
    sum.z ^= a.z ^ b.z ^ c.z ^ d.z;
    sum.w ^= a.w ^ b.w ^ c.w ^ d.w;
  }
  for (; i < p.reads; i += stride) {
    const uint4 a = p.input[i];
    sum.x ^= a.x;
    sum.y ^= a.y;
    sum.z ^= a.z;
    sum.w ^= a.w;
  }
  // Every thread that has read writes what depends on it, or the loads would be dropped.
  for (long long j = thread; j < p.writes; j += stride) p.output[j] = sum;
  if (thread >= p.writes && (sum.x & sum.y & sum.z & sum.w) == 0x5eed5eedu) p.output[0] = sum;
}

extern "C" __global__ void nothing(FloorParams) {}
