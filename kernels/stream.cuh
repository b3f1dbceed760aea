// What orders a kernel among others on its stream, where launches may overlap (see launcher.py).
#pragma once

// Lets the next kernel be launched. It waits for all of this one, so the earlier the better.
__device__ __forceinline__ void start_next() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#elif defined(__CUDACC_SIMT__)
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// Waits until all kernels before have ended and their writes can be read.
__device__ __forceinline__ void await_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#elif defined(__CUDACC_SIMT__)
  cudaGridDependencySynchronize();
#endif
}

// Both, for a kernel with nothing to do before. Every thread calls it before it touches global memory. EARLY hides more
// of the next launch, but lets launches pile up, which then get uneven shares of the multiprocessors.
__device__ __forceinline__ void after_previous(bool early) {
  if (early) start_next();
  await_previous();
  start_next();  // the first call counts
}
