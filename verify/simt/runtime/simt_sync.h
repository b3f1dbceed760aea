// Barriers, warp collectives, fences, atomics and cached accesses.
#pragma once

#include "simt_math.h"

#define SIMT_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

SIMT_INLINE void __syncthreads(SIMT_HERE) { simt_barrier(SIMT_BARRIER_SYNC, 0, file, line); }
SIMT_INLINE int __syncthreads_count(int p, SIMT_HERE) { return simt_barrier(SIMT_BARRIER_COUNT, p != 0, file, line); }
SIMT_INLINE int __syncthreads_and(int p, SIMT_HERE) { return simt_barrier(SIMT_BARRIER_AND, p != 0, file, line); }
SIMT_INLINE int __syncthreads_or(int p, SIMT_HERE) { return simt_barrier(SIMT_BARRIER_OR, p != 0, file, line); }
SIMT_INLINE void __syncwarp(unsigned mask = ~0u, SIMT_HERE) { simt_collective(SIMT_SYNC, mask, 0, 0, 32, file, line); }
SIMT_INLINE unsigned __activemask(SIMT_HERE) { return simt_active_mask(file, line); }

template <class T>
SIMT_INLINE uint64_t simt_pack(T value) {
  static_assert(sizeof(T) <= 8, "a shuffled value has at most 8 bytes");
  uint64_t word = 0;
  __builtin_memcpy(&word, &value, sizeof value);
  return word;
}
template <class T>
SIMT_INLINE T simt_unpack(uint64_t word) {
  T value;
  __builtin_memcpy(&value, &word, sizeof value);
  return value;
}

#define SIMT_SHUFFLE_AS(NAME, OP, ARGUMENT)                                                                   \
  template <class T>                                                                                          \
  SIMT_INLINE T NAME(unsigned mask, T value, ARGUMENT argument, int width = 32, SIMT_HERE) {                  \
    return simt_unpack<T>(simt_collective(OP, mask, simt_pack(value), (int)argument, width, file, line));     \
  }
SIMT_SHUFFLE_AS(__shfl_sync, SIMT_SHUFFLE, int)
SIMT_SHUFFLE_AS(__shfl_up_sync, SIMT_SHUFFLE_UP, unsigned)
SIMT_SHUFFLE_AS(__shfl_down_sync, SIMT_SHUFFLE_DOWN, unsigned)
SIMT_SHUFFLE_AS(__shfl_xor_sync, SIMT_SHUFFLE_XOR, int)
#undef SIMT_SHUFFLE_AS

SIMT_INLINE unsigned __ballot_sync(unsigned mask, int p, SIMT_HERE) {
  return (unsigned)simt_collective(SIMT_BALLOT, mask, p != 0, 0, 32, file, line);
}
SIMT_INLINE int __all_sync(unsigned mask, int p, SIMT_HERE) {
  return (int)simt_collective(SIMT_ALL, mask, p != 0, 0, 32, file, line);
}
SIMT_INLINE int __any_sync(unsigned mask, int p, SIMT_HERE) {
  return (int)simt_collective(SIMT_ANY, mask, p != 0, 0, 32, file, line);
}
template <class T>
SIMT_INLINE unsigned __match_any_sync(unsigned mask, T value, SIMT_HERE) {
  return (unsigned)simt_collective(SIMT_MATCH_ANY, mask, simt_pack(value), 0, 32, file, line);
}
template <class T>
SIMT_INLINE unsigned __match_all_sync(unsigned mask, T value, int* predicate, SIMT_HERE) {
  const uint64_t result = simt_collective(SIMT_MATCH_ALL, mask, simt_pack(value), 0, 32, file, line);
  *predicate = (int)(result >> 32);
  return (unsigned)result;
}
#define SIMT_REDUCE(NAME, OP, T)                                              \
  SIMT_INLINE T NAME(unsigned mask, T value, SIMT_HERE) {                     \
    return (T)simt_collective(OP, mask, (unsigned)value, 0, 32, file, line);  \
  }
SIMT_REDUCE(__reduce_add_sync, SIMT_REDUCE_ADD, unsigned)
SIMT_REDUCE(__reduce_add_sync, SIMT_REDUCE_ADD, int)
SIMT_REDUCE(__reduce_min_sync, SIMT_REDUCE_MIN, unsigned)
SIMT_REDUCE(__reduce_min_sync, SIMT_REDUCE_MIN_SIGNED, int)
SIMT_REDUCE(__reduce_max_sync, SIMT_REDUCE_MAX, unsigned)
SIMT_REDUCE(__reduce_max_sync, SIMT_REDUCE_MAX_SIGNED, int)
SIMT_REDUCE(__reduce_and_sync, SIMT_REDUCE_AND, unsigned)
SIMT_REDUCE(__reduce_or_sync, SIMT_REDUCE_OR, unsigned)
SIMT_REDUCE(__reduce_xor_sync, SIMT_REDUCE_XOR, unsigned)
#undef SIMT_REDUCE

SIMT_INLINE void __threadfence() { simt_fence(SIMT_DEVICE); }
SIMT_INLINE void __threadfence_system() { simt_fence(SIMT_DEVICE); }
SIMT_INLINE void __threadfence_block() { simt_fence(SIMT_BLOCK); }
SIMT_INLINE void __nanosleep(unsigned) { simt_sleep(); }
SIMT_INLINE void __trap(SIMT_HERE) { simt_trap("__trap()", file, line); }
SIMT_INLINE unsigned __clusterRelativeBlockRank() { return simt_cluster_rank(); }
SIMT_INLINE unsigned __clusterSizeInBlocks() { return simt_cluster_size(); }
SIMT_INLINE void __cluster_barrier_arrive(SIMT_HERE) { simt_cluster_arrive(file, line); }
SIMT_INLINE void __cluster_barrier_wait(SIMT_HERE) { simt_cluster_wait(file, line); }
SIMT_INLINE void* __cluster_map_shared_rank(const void* at, unsigned rank) { return simt_cluster_map(at, rank); }

// Launches that overlap: nothing of the launch before is there until a thread has waited for it.
SIMT_INLINE void cudaGridDependencySynchronize() { simt_grid_wait(); }
SIMT_INLINE void cudaTriggerProgrammaticLaunchCompletion() { simt_grid_trigger(); }

SIMT_INLINE long long clock64() { return 0; }
SIMT_INLINE int clock() { return 0; }

// Atomics without an order are relaxed. The integer's width and signedness choose the operation.
#define SIMT_RMW(NAME, OP, SIGNED_OP)                                                                              \
  template <class T>                                                                                               \
  SIMT_INLINE std::enable_if_t<std::is_integral<T>::value, T> simt_##NAME(T* at, T value, int order, int scope) {  \
    const int op = std::is_signed<T>::value ? SIGNED_OP : OP;                                                      \
    return simt_unpack<T>(simt_atomic(op, at, sizeof(T), simt_pack(value), 0, order, scope));                      \
  }
SIMT_RMW(exchange, SIMT_EXCHANGE, SIMT_EXCHANGE)
SIMT_RMW(add, SIMT_ADD, SIMT_ADD)
SIMT_RMW(sub, SIMT_SUB, SIMT_SUB)
SIMT_RMW(and, SIMT_AND, SIMT_AND)
SIMT_RMW(or, SIMT_OR, SIMT_OR)
SIMT_RMW(xor, SIMT_XOR, SIMT_XOR)
SIMT_RMW(min, SIMT_MIN, SIMT_MIN_SIGNED)
SIMT_RMW(max, SIMT_MAX, SIMT_MAX_SIGNED)
SIMT_RMW(increment, SIMT_INCREMENT, SIMT_INCREMENT)
SIMT_RMW(decrement, SIMT_DECREMENT, SIMT_DECREMENT)
#undef SIMT_RMW
template <class T>
SIMT_INLINE std::enable_if_t<std::is_floating_point<T>::value, T> simt_add(T* at, T value, int order, int scope) {
  return simt_unpack<T>(simt_atomic(SIMT_ADD_FLOAT, at, sizeof(T), simt_pack(value), 0, order, scope));
}
template <class T>
SIMT_INLINE std::enable_if_t<std::is_floating_point<T>::value, T> simt_exchange(T* at, T value, int order, int scope) {
  return simt_unpack<T>(simt_atomic(SIMT_EXCHANGE, at, sizeof(T), simt_pack(value), 0, order, scope));
}

#define SIMT_ATOMIC_SCOPED(NAME, OP, T, SUFFIX, SCOPE) \
  SIMT_INLINE T NAME##SUFFIX(T* at, T value) { return simt_##OP(at, value, SIMT_RELAXED, SCOPE); }
#define SIMT_ATOMIC(NAME, OP, T)                         \
  SIMT_ATOMIC_SCOPED(NAME, OP, T, , SIMT_DEVICE)         \
  SIMT_ATOMIC_SCOPED(NAME, OP, T, _block, SIMT_BLOCK)    \
  SIMT_ATOMIC_SCOPED(NAME, OP, T, _system, SIMT_DEVICE)
#define SIMT_ATOMIC_INTEGERS(NAME, OP)        \
  SIMT_ATOMIC(NAME, OP, int)                  \
  SIMT_ATOMIC(NAME, OP, unsigned)             \
  SIMT_ATOMIC(NAME, OP, unsigned long long)
SIMT_ATOMIC_INTEGERS(atomicAdd, add)
SIMT_ATOMIC(atomicAdd, add, float)
SIMT_ATOMIC(atomicAdd, add, double)
SIMT_ATOMIC(atomicSub, sub, int)
SIMT_ATOMIC(atomicSub, sub, unsigned)
SIMT_ATOMIC_INTEGERS(atomicExch, exchange)
SIMT_ATOMIC(atomicExch, exchange, float)
SIMT_ATOMIC_INTEGERS(atomicMin, min)
SIMT_ATOMIC(atomicMin, min, long long)
SIMT_ATOMIC_INTEGERS(atomicMax, max)
SIMT_ATOMIC(atomicMax, max, long long)
SIMT_ATOMIC_INTEGERS(atomicAnd, and)
SIMT_ATOMIC_INTEGERS(atomicOr, or)
SIMT_ATOMIC_INTEGERS(atomicXor, xor)
SIMT_ATOMIC(atomicInc, increment, unsigned)
SIMT_ATOMIC(atomicDec, decrement, unsigned)
#undef SIMT_ATOMIC_INTEGERS
#undef SIMT_ATOMIC
#undef SIMT_ATOMIC_SCOPED

template <class T>
SIMT_INLINE T simt_compare_exchange(T* at, T expected, T value, int order, int scope) {
  const uint64_t old =
      simt_atomic(SIMT_COMPARE_EXCHANGE, at, sizeof(T), simt_pack(value), simt_pack(expected), order, scope);
  return simt_unpack<T>(old);
}
#define SIMT_CAS(T)                                                                                              \
  SIMT_INLINE T atomicCAS(T* at, T expected, T value) {                                                          \
    return simt_compare_exchange(at, expected, value, SIMT_RELAXED, SIMT_DEVICE);                                \
  }                                                                                                              \
  SIMT_INLINE T atomicCAS_system(T* at, T expected, T value) { return atomicCAS(at, expected, value); }          \
  SIMT_INLINE T atomicCAS_block(T* at, T expected, T value) {                                                    \
    return simt_compare_exchange(at, expected, value, SIMT_RELAXED, SIMT_BLOCK);                                 \
  }
SIMT_CAS(int)
SIMT_CAS(unsigned)
SIMT_CAS(unsigned short)
SIMT_CAS(unsigned long long)
#undef SIMT_CAS

// CUDA 12.8's atomic functions with an order and a scope.
#define __NV_ATOMIC_RELAXED 0
#define __NV_ATOMIC_CONSUME 1
#define __NV_ATOMIC_ACQUIRE 2
#define __NV_ATOMIC_RELEASE 3
#define __NV_ATOMIC_ACQ_REL 4
#define __NV_ATOMIC_SEQ_CST 5
#define __NV_THREAD_SCOPE_THREAD 0
#define __NV_THREAD_SCOPE_BLOCK 1
#define __NV_THREAD_SCOPE_CLUSTER 2
#define __NV_THREAD_SCOPE_DEVICE 3
#define __NV_THREAD_SCOPE_SYSTEM 4
SIMT_INLINE int simt_order(int order) {
  return order == __NV_ATOMIC_RELAXED   ? SIMT_RELAXED
         : order == __NV_ATOMIC_RELEASE ? SIMT_RELEASE
         : order <= __NV_ATOMIC_ACQUIRE ? SIMT_ACQUIRE
                                        : SIMT_ACQ_REL;
}
SIMT_INLINE int simt_scope(int scope) { return scope <= __NV_THREAD_SCOPE_BLOCK ? SIMT_BLOCK : SIMT_DEVICE; }
template <class T>
SIMT_INLINE T __nv_atomic_load_n(T* at, int order, int scope = __NV_THREAD_SCOPE_SYSTEM) {
  return simt_unpack<T>(
      simt_atomic(SIMT_LOAD, (volatile void*)at, sizeof(T), 0, 0, simt_order(order), simt_scope(scope)));
}
template <class T>
SIMT_INLINE void __nv_atomic_store_n(T* at, T value, int order, int scope = __NV_THREAD_SCOPE_SYSTEM) {
  simt_atomic(SIMT_STORE, at, sizeof(T), simt_pack(value), 0, simt_order(order), simt_scope(scope));
}
#define SIMT_NV_ATOMIC(NAME, OP)                                                              \
  template <class T>                                                                          \
  SIMT_INLINE T NAME(T* at, T value, int order, int scope = __NV_THREAD_SCOPE_SYSTEM) {       \
    return simt_##OP(at, value, simt_order(order), simt_scope(scope));                        \
  }
SIMT_NV_ATOMIC(__nv_atomic_exchange_n, exchange)
SIMT_NV_ATOMIC(__nv_atomic_fetch_add, add)
SIMT_NV_ATOMIC(__nv_atomic_fetch_sub, sub)
SIMT_NV_ATOMIC(__nv_atomic_fetch_and, and)
SIMT_NV_ATOMIC(__nv_atomic_fetch_or, or)
SIMT_NV_ATOMIC(__nv_atomic_fetch_xor, xor)
SIMT_NV_ATOMIC(__nv_atomic_fetch_min, min)
SIMT_NV_ATOMIC(__nv_atomic_fetch_max, max)
#undef SIMT_NV_ATOMIC
template <class T>
SIMT_INLINE bool __nv_atomic_compare_exchange_n(T* at, T* expected, T value, bool, int order, int,
                                                int scope = __NV_THREAD_SCOPE_SYSTEM) {
  const T wanted = *expected;
  *expected = simt_compare_exchange(at, wanted, value, simt_order(order), simt_scope(scope));
  return *expected == wanted;
}
SIMT_INLINE void __nv_atomic_thread_fence(int, int scope = __NV_THREAD_SCOPE_SYSTEM) { simt_fence(simt_scope(scope)); }

// Cache hints change no meaning: plain loads and stores, but for `cv` and `wt`, which are volatile.
#define SIMT_CACHED_LOAD(NAME) \
  template <class T>           \
  SIMT_INLINE T NAME(const T* at) { return *at; }
SIMT_CACHED_LOAD(__ldg)
SIMT_CACHED_LOAD(__ldca)
SIMT_CACHED_LOAD(__ldcg)
SIMT_CACHED_LOAD(__ldcs)
SIMT_CACHED_LOAD(__ldlu)
#undef SIMT_CACHED_LOAD
template <class T>
SIMT_INLINE T __ldcv(const T* at) {
  return *(const volatile T*)at;
}
#define SIMT_CACHED_STORE(NAME) \
  template <class T>            \
  SIMT_INLINE void NAME(T* at, T value) { *at = value; }
SIMT_CACHED_STORE(__stwb)
SIMT_CACHED_STORE(__stcg)
SIMT_CACHED_STORE(__stcs)
#undef SIMT_CACHED_STORE
template <class T>
SIMT_INLINE void __stwt(T* at, T value) {
  *(volatile T*)at = value;
}
