// What compiled kernels call in the runtime. Everything here is one C interface, so that kernels and runtime are
// built apart and by different compilers if need be.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define SIMT_CONST __attribute__((const, nothrow))

enum SimtBarrier { SIMT_BARRIER_SYNC, SIMT_BARRIER_COUNT, SIMT_BARRIER_AND, SIMT_BARRIER_OR };

enum SimtCollective {
  SIMT_SYNC,
  SIMT_SHUFFLE,
  SIMT_SHUFFLE_UP,
  SIMT_SHUFFLE_DOWN,
  SIMT_SHUFFLE_XOR,
  SIMT_BALLOT,
  SIMT_ALL,
  SIMT_ANY,
  SIMT_MATCH_ANY,
  SIMT_MATCH_ALL,
  SIMT_REDUCE_ADD,
  SIMT_REDUCE_AND,
  SIMT_REDUCE_OR,
  SIMT_REDUCE_XOR,
  SIMT_REDUCE_MIN,
  SIMT_REDUCE_MAX,
  SIMT_REDUCE_MIN_SIGNED,
  SIMT_REDUCE_MAX_SIGNED,
};

enum SimtAtomic {
  SIMT_LOAD,
  SIMT_STORE,
  SIMT_EXCHANGE,
  SIMT_COMPARE_EXCHANGE,
  SIMT_ADD,
  SIMT_SUB,
  SIMT_AND,
  SIMT_OR,
  SIMT_XOR,
  SIMT_NAND,
  SIMT_MIN,
  SIMT_MAX,
  SIMT_MIN_SIGNED,
  SIMT_MAX_SIGNED,
  SIMT_INCREMENT,  // wraps to 0 past the operand
  SIMT_DECREMENT,  // wraps to the operand at 0 and past it
  SIMT_ADD_FLOAT,
};

enum SimtScope { SIMT_BLOCK, SIMT_DEVICE };
enum SimtOrder { SIMT_RELAXED = 0, SIMT_ACQUIRE = 1, SIMT_RELEASE = 2, SIMT_ACQ_REL = 3 };

#pragma GCC visibility push(default)
extern "C" {
// Of the running thread. Constant as far as a kernel's code can tell: it never changes threads.
unsigned simt_thread_x() SIMT_CONST;
unsigned simt_thread_y() SIMT_CONST;
unsigned simt_thread_z() SIMT_CONST;
unsigned simt_block_x() SIMT_CONST;
unsigned simt_block_y() SIMT_CONST;
unsigned simt_block_z() SIMT_CONST;
unsigned simt_block_dim_x() SIMT_CONST;
unsigned simt_block_dim_y() SIMT_CONST;
unsigned simt_block_dim_z() SIMT_CONST;
unsigned simt_grid_dim_x() SIMT_CONST;
unsigned simt_grid_dim_y() SIMT_CONST;
unsigned simt_grid_dim_z() SIMT_CONST;

int simt_barrier(int op, int predicate, const char* file, int line);
// `width` is a shuffle's; the result of MATCH_ALL holds the predicate in bit 32.
uint64_t simt_collective(int op, unsigned mask, uint64_t value, int argument, int width, const char* file, int line);
unsigned simt_cluster_rank() SIMT_CONST;
unsigned simt_cluster_size() SIMT_CONST;
void simt_cluster_arrive(const char* file, int line);
void simt_cluster_wait(const char* file, int line);
// Where another block of the cluster holds what this one holds at `shared`.
void* simt_cluster_map(const void* shared, unsigned rank);
void simt_grid_wait();
void simt_grid_trigger();
unsigned simt_active_mask(const char* file, int line);
void simt_fence(int scope);
void simt_sleep();
// Returns what was there before. `size` is 1, 2, 4 or 8.
uint64_t simt_atomic(int op, volatile void* at, int size, uint64_t value, uint64_t expected, int order, int scope);
[[noreturn]] void simt_trap(const char* what, const char* file, int line);
void simt_copy(void* to, const void* from, size_t size);
void simt_fill(void* to, int byte, size_t size);
}
#pragma GCC visibility pop
