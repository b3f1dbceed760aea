// What is known of each piece of memory: whether it may be touched, whether it was written, who touched it last.
#pragma once

#include <vector>

#include "clocks.h"

namespace simt {

// Accesses of some lanes of one warp between the same two releases, of one kind, that no later one stands for.
struct Group {
  uint32_t warp, stamp, mask;
  uint32_t site;  // code offset | kind << 28
};

enum Kind : uint32_t { READ = 0, ATOMIC_READ = 1, ATOMIC_WRITE = 2, BLOCK_SCOPE = 4, WRITE = 8 };
constexpr uint32_t SITE = (1u << 28) - 1;
constexpr uint32_t MANY = ~0u;  // Group.warp of a cell whose groups are in a list of their own

// Shadow of one granule. A generation tells whose it is, so that nothing has to be cleared.
struct Cell {
  uint32_t generation;
  uint32_t writer;  // thread number + 1 of the last plain write, 0: none
  uint32_t stamp;
  uint32_t site;    // code offset | initialised << 31
  Group group;      // mask 0: none
};
constexpr uint32_t INITIALISED = 1u << 31;

// A buffer, or a variable of a module. Granules are as large as the smallest access so far.
struct Range {
  uintptr_t low;
  uint64_t bytes;
  Cell* cells;           // null: nobody may write, so nobody races
  const uint8_t* valid;  // by unit of `valid_bytes`; null: all of it may be touched
  uint32_t valid_bytes;
  int32_t shift;         // of a granule
  uint8_t initialised, read_only;
};

// A shared array: its place in the block's shared memory.
struct Variable {
  uint64_t offset, bytes;
  int32_t shift;
  int32_t dynamic;  // its size is the launch's
};

inline uint64_t extent(const Variable& variable) { return variable.dynamic ? launch.dynamic_bytes : variable.bytes; }

struct Module {
  uintptr_t low, high;  // of its code and data
  uintptr_t shared_low;  // of the system thread that launches
  uint64_t shared_bytes;
  void* (*anchor)();  // something `anchor_offset` bytes into shared memory
  uint64_t anchor_offset;
  bool awaits;  // its kernels wait for the launch before where they may overlap it
  std::vector<Variable> variables;
  std::vector<uint16_t> variable_of;  // by 16 bytes: index + 1
};

extern std::vector<Module*> modules;
extern Module* module;
extern std::vector<Range> ranges;
extern uint32_t session;  // generation of the ranges' cells

void check_read(const void* at, size_t size, const void* code);
void check_write(const void* at, size_t size, const void* code);
// Only whether memory is there, for a look at it that is no access of the kernel's.
void check_read_bounds(const void* at, size_t size, uint32_t kind, const void* code);
// Returns the key under which an atomic's synchronisation is kept.
uint64_t check_atomic(const void* at, size_t size, Kind kind, bool reads, const void* code);
bool is_own_stack(uintptr_t at);
bool is_some_stack(uintptr_t at);
// Shared memory of other blocks of the cluster lies where it is saved while it is not in place.
void* mapped_to_rank(uintptr_t at, uint32_t rank);
Block* block_that_saves(uintptr_t at);

// Launches of the session so far, this one last.
struct Past {
  uint32_t first_warp, warps;
  Index grid, block;
  int32_t module;
};
extern std::vector<Past> past;
[[noreturn]] void fail_at(Fault fault, uintptr_t at, size_t size, Access access, const void* code);
Cell* reserve_cells(uint64_t bytes);
void release_cells();
void forget_lists();

}  // namespace simt
