// What orders a kernel among others on its stream, where launches may overlap (see launcher.py).
#pragma once

// Lets the next kernel be launched, which waits in its turn, and waits until all kernels before have ended and their
// writes can be seen. Every thread calls it before it touches global memory.
__device__ __forceinline__ void after_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#elif defined(__CUDACC_SIMT__)
  cudaGridDependencySynchronize();
#endif
}
