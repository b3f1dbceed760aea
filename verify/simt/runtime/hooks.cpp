// What the compiler's instrumentation calls before each access, and atomics.
#include "shadow.h"

using namespace simt;

namespace {

uint64_t peek(const volatile void* at, size_t size) {
  uint64_t value = 0;
  if (size <= 8) memcpy(&value, (const void*)at, size);
  return value;
}

// A thread that finds the same value at the same place again is spinning.
bool polls(const volatile void* at, uint64_t value) {
  const bool again = running->polled == (uintptr_t)at && running->polled_value == value;
  running->polled = (uintptr_t)at;
  running->polled_value = value;
  return again;
}

void volatile_read(const void* at, size_t size, const void* code) {
  if (is_own_stack((uintptr_t)at)) return;
  check_read_bounds(at, size, ATOMIC_READ, code);
  yield(polls(at, peek(at, size)), code);
  observe(running, check_atomic(at, size, ATOMIC_READ, true, code), false);
}

void volatile_write(const void* at, size_t size, const void* code) {
  if (is_own_stack((uintptr_t)at)) return;
  publish(running, check_atomic(at, size, ATOMIC_WRITE, false, code), false, false, SIMT_DEVICE);
  spins = 0;
}

template <class T, class F>
T float_sum(uint64_t old, uint64_t value) {
  F a, b;
  memcpy(&a, &old, sizeof a);
  memcpy(&b, &value, sizeof b);
  a += b;
  T bits;
  memcpy(&bits, &a, sizeof bits);
  return bits;
}

int64_t extended(uint64_t value, int size) {
  const int shift = 64 - 8 * size;
  return (int64_t)(value << shift) >> shift;
}

uint64_t combined(int op, uint64_t old, uint64_t value, uint64_t expected, int size) {
  switch (op) {
    case SIMT_LOAD: return old;
    case SIMT_STORE:
    case SIMT_EXCHANGE: return value;
    case SIMT_COMPARE_EXCHANGE: return old == expected ? value : old;
    case SIMT_ADD: return old + value;
    case SIMT_SUB: return old - value;
    case SIMT_AND: return old & value;
    case SIMT_OR: return old | value;
    case SIMT_XOR: return old ^ value;
    case SIMT_NAND: return ~(old & value);
    case SIMT_MIN: return std::min(old, value);
    case SIMT_MAX: return std::max(old, value);
    case SIMT_MIN_SIGNED: return extended(old, size) < extended(value, size) ? old : value;
    case SIMT_MAX_SIGNED: return extended(old, size) > extended(value, size) ? old : value;
    case SIMT_INCREMENT: return old >= value ? 0 : old + 1;
    case SIMT_DECREMENT: return old == 0 || old > value ? value : old - 1;
    default: return size == 4 ? float_sum<uint32_t, float>(old, value) : float_sum<uint64_t, double>(old, value);
  }
}

uint64_t atomic(int op, volatile void* at, int size, uint64_t value, uint64_t expected, int order, int scope,
                const void* code) {
  const uint64_t all = size == 8 ? ~0ull : (1ull << 8 * size) - 1;
  const void* place = (const void*)at;
  value &= all;
  expected &= all;
  if ((uintptr_t)at % (unsigned)size) fail_at(MISALIGNED, (uintptr_t)at, (size_t)size, ACCESS_ATOMIC_WRITE, code);
  check_read_bounds(place, (size_t)size, op == SIMT_LOAD ? ATOMIC_READ : ATOMIC_WRITE, code);
  const bool reads = op != SIMT_STORE;
  uint64_t old = peek(at, (size_t)size);
  const bool unchanged = (combined(op, old, value, expected, size) & all) == old;
  yield(reads && unchanged && polls(at, old), code);
  old = peek(at, (size_t)size);
  const bool writes = op != SIMT_LOAD && (op != SIMT_COMPARE_EXCHANGE || old == expected);
  const uint32_t kind = (writes ? ATOMIC_WRITE : ATOMIC_READ) | (scope == SIMT_BLOCK ? (uint32_t)BLOCK_SCOPE : 0u);
  const uint64_t key = check_atomic(place, (size_t)size, (Kind)kind, reads, code);
  if (reads) observe(running, key, order & SIMT_ACQUIRE);
  if (!writes) return old;
  const uint64_t now = combined(op, old, value, expected, size) & all;
  memcpy((void*)at, &now, (size_t)size);
  publish(running, key, order & SIMT_RELEASE, op != SIMT_STORE, scope);
  if (now != old || op == SIMT_STORE) spins = 0;
  return old;
}

// The compiler's numbering of memory orders: relaxed, consume, acquire, release, acq_rel, seq_cst.
int order_of(int order) {
  return order == 0 ? SIMT_RELAXED : order <= 2 ? SIMT_ACQUIRE : order == 3 ? SIMT_RELEASE : SIMT_ACQ_REL;
}

struct Location {
  const char* file;
  uint32_t line, column;
};

[[noreturn]] void fail_located(Fault fault, const Location* location, uintptr_t at, const char* text) {
  report.address = at;
  fail_here(fault, location->file, (int)location->line, text);
}

}  // namespace

#define CODE __builtin_return_address(0)

#pragma GCC visibility push(default)
extern "C" {

#define ACCESS(N)                                                                       \
  void __tsan_read##N(void* at) { check_read(at, N, CODE); }                            \
  void __tsan_write##N(void* at) { check_write(at, N, CODE); }                          \
  void __tsan_unaligned_read##N(void* at) { check_read(at, N, CODE); }                  \
  void __tsan_unaligned_write##N(void* at) { check_write(at, N, CODE); }                \
  void __tsan_volatile_read##N(void* at) { volatile_read(at, N, CODE); }                \
  void __tsan_volatile_write##N(void* at) { volatile_write(at, N, CODE); }              \
  void __tsan_unaligned_volatile_read##N(void* at) { volatile_read(at, N, CODE); }      \
  void __tsan_unaligned_volatile_write##N(void* at) { volatile_write(at, N, CODE); }    \
  void __tsan_read_write##N(void* at) {                                                 \
    check_read(at, N, CODE);                                                            \
    check_write(at, N, CODE);                                                           \
  }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
#undef ACCESS

void __tsan_read_range(void* at, size_t size) {
  if (size) check_read(at, size, CODE);
}
void __tsan_write_range(void* at, size_t size) {
  if (size) check_write(at, size, CODE);
}
void __tsan_init() {}
void __tsan_func_entry(void*) { check_stack(); }
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

void simt_copy(void* to, const void* from, size_t size) {
  if (size) {
    check_read(from, size, CODE);
    check_write(to, size, CODE);
  }
  memmove(to, from, size);
}

void simt_fill(void* to, int byte, size_t size) {
  if (size) check_write(to, size, CODE);
  memset(to, byte, size);
}

void* __tsan_memcpy(void* to, const void* from, size_t size) {
  simt_copy(to, from, size);
  return to;
}
void* __tsan_memmove(void* to, const void* from, size_t size) {
  simt_copy(to, from, size);
  return to;
}
void* __tsan_memset(void* to, int byte, size_t size) {
  simt_fill(to, byte, size);
  return to;
}

#define ATOMICS(BITS, T)                                                                                           \
  T __tsan_atomic##BITS##_load(const volatile T* at, int order) {                                                  \
    return (T)atomic(SIMT_LOAD, (volatile void*)at, sizeof(T), 0, 0, order_of(order), SIMT_DEVICE, CODE);          \
  }                                                                                                                \
  void __tsan_atomic##BITS##_store(volatile T* at, T value, int order) {                                           \
    atomic(SIMT_STORE, at, sizeof(T), (uint64_t)value, 0, order_of(order), SIMT_DEVICE, CODE);                     \
  }                                                                                                                \
  RMW(BITS, T, exchange, SIMT_EXCHANGE)                                                                            \
  RMW(BITS, T, fetch_add, SIMT_ADD)                                                                                \
  RMW(BITS, T, fetch_sub, SIMT_SUB)                                                                                \
  RMW(BITS, T, fetch_and, SIMT_AND)                                                                                \
  RMW(BITS, T, fetch_or, SIMT_OR)                                                                                  \
  RMW(BITS, T, fetch_xor, SIMT_XOR)                                                                                \
  RMW(BITS, T, fetch_nand, SIMT_NAND)                                                                              \
  CAS(BITS, T, strong)                                                                                             \
  CAS(BITS, T, weak)                                                                                               \
  T __tsan_atomic##BITS##_compare_exchange_val(volatile T* at, T expected, T value, int order, int) {              \
    return (T)atomic(SIMT_COMPARE_EXCHANGE, at, sizeof(T), (uint64_t)value, (uint64_t)expected, order_of(order),   \
                     SIMT_DEVICE, CODE);                                                                           \
  }
#define RMW(BITS, T, NAME, OP)                                                                                     \
  T __tsan_atomic##BITS##_##NAME(volatile T* at, T value, int order) {                                             \
    return (T)atomic(OP, at, sizeof(T), (uint64_t)value, 0, order_of(order), SIMT_DEVICE, CODE);                   \
  }
#define CAS(BITS, T, STRENGTH)                                                                                     \
  int __tsan_atomic##BITS##_compare_exchange_##STRENGTH(volatile T* at, T* expected, T value, int order, int) {    \
    const T old = (T)atomic(SIMT_COMPARE_EXCHANGE, at, sizeof(T), (uint64_t)value, (uint64_t)*expected,            \
                            order_of(order), SIMT_DEVICE, CODE);                                                   \
    const int same = old == *expected;                                                                             \
    *expected = old;                                                                                               \
    return same;                                                                                                   \
  }
ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
#undef CAS
#undef RMW
#undef ATOMICS
void __tsan_atomic_thread_fence(int) { fence(running, SIMT_DEVICE); }
void __tsan_atomic_signal_fence(int) {}

uint64_t simt_atomic(int op, volatile void* at, int size, uint64_t value, uint64_t expected, int order, int scope) {
  return atomic(op, at, size, value, expected, order, scope, CODE);
}
void simt_fence(int scope) { fence(running, scope); }
void* simt_cluster_map(const void* shared, unsigned rank) {
  const uintptr_t at = (uintptr_t)shared;
  if (at - module->shared_low >= module->shared_bytes)
    fail_at(OUT_OF_BOUNDS, at, 1, ACCESS_READ, CODE);
  if (void* mapped = mapped_to_rank(at, rank)) return mapped;
  snprintf(report.text, sizeof report.text, "block %u of the cluster does not exist, or has ended", rank);
  fail_at(OUT_OF_BOUNDS, at, 1, ACCESS_READ, CODE);
}
void simt_sleep() { yield(true, CODE); }
void simt_trap(const char* what, const char* file, int line) { fail_here(TRAP, file, line, what); }

void __ubsan_handle_out_of_bounds(void* data, uintptr_t index) {
  struct Type {
    uint16_t kind, info;
    char name[1];
  };
  struct Data {
    Location location;
    const Type *array, *index;
  };
  const Data* where = (const Data*)data;
  char text[256];
  snprintf(text, sizeof text, "index %lld of an array of type %s", (long long)index, where->array->name);
  fail_located(OUT_OF_BOUNDS, &where->location, 0, text);
}
void __ubsan_handle_out_of_bounds_abort(void* data, uintptr_t index) { __ubsan_handle_out_of_bounds(data, index); }
void __ubsan_handle_type_mismatch_v1(void* data, uintptr_t at) {
  struct Type {
    uint16_t kind, info;
    char name[1];
  };
  struct Data {
    Location location;
    const Type* type;
    uint8_t log_alignment, check;
  };
  const Data* where = (const Data*)data;
  char text[256];
  snprintf(text, sizeof text, "address %#llx for %s, which needs a multiple of %u", (unsigned long long)at,
           where->type->name, 1u << where->log_alignment);
  fail_located(MISALIGNED, &where->location, at, text);
}
void __ubsan_handle_type_mismatch_v1_abort(void* data, uintptr_t at) { __ubsan_handle_type_mismatch_v1(data, at); }

#define INDEX(NAME, EXPRESSION) \
  unsigned simt_##NAME() { return EXPRESSION; }
INDEX(thread_x, running->thread.x)
INDEX(thread_y, running->thread.y)
INDEX(thread_z, running->thread.z)
INDEX(block_x, running->block->index.x)
INDEX(block_y, running->block->index.y)
INDEX(block_z, running->block->index.z)
INDEX(block_dim_x, launch.block.x)
INDEX(block_dim_y, launch.block.y)
INDEX(block_dim_z, launch.block.z)
INDEX(grid_dim_x, launch.grid.x)
INDEX(grid_dim_y, launch.grid.y)
INDEX(grid_dim_z, launch.grid.z)
#undef INDEX
}
#pragma GCC visibility pop
