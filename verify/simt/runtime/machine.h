// The machine that kernels run on: grid, blocks, warps and threads, and what a launch asks for.
//
// A CUDA thread is a fiber; all fibers live on one system thread, and which of them runs next is the schedule's
// choice alone. Threads change at collectives, barriers, atomics and volatile accesses. Whether two accesses race
// does not depend on the order in which they happened to run: clocks say what happened before what.
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "simt_abi.h"

namespace simt {

constexpr unsigned LANES = 32;
constexpr unsigned MAX_THREADS = 1024;              // a block
constexpr unsigned MAX_WARPS = MAX_THREADS / LANES;
constexpr unsigned MAX_RESIDENT = 64;               // blocks that are alive at a time
constexpr size_t STACK_BYTES = 64 << 10;            // a thread
constexpr uint8_t SHARED_POISON = 0xa5;

enum Fault : int32_t {
  NO_FAULT,
  OUT_OF_BOUNDS,
  UNINITIALISED,
  RACE,
  DIVERGENT_BARRIER,
  DEADLOCK,
  MISALIGNED,
  TRAP,
  READ_ONLY,
  TIMEOUT,
  STACK_OVERFLOW,
  BAD_MASK,
  FOREIGN_STACK,
  BAD_LAUNCH,
};

enum Access : int32_t { ACCESS_READ, ACCESS_WRITE, ACCESS_ATOMIC_READ, ACCESS_ATOMIC_WRITE };

struct Index {
  uint32_t x, y, z;
};

// One thread's part in a fault. `code` is an offset into the kernel's module, 0 if `file` and `line` say it.
struct Side {
  Index block, thread;
  uint32_t line;
  int32_t access;
  uint64_t code;
  int32_t module, earlier;  // `earlier`: in a launch before this one
  char file[256];
};

struct Report {
  int32_t fault;
  int32_t sides;
  uint64_t address;
  uint64_t size;        // of the access
  uint64_t shared_low;  // address of shared memory
  Side side[2];
  char text[512];
};

enum Policy : int32_t { ROUND_ROBIN, RANDOM, LONGEST_FIRST, DELAY_WARP, DELAY_BLOCK };

struct Launch {
  void (*entry)(void**);
  void** arguments;
  Index grid, block;
  uint64_t seed;
  uint64_t dynamic_bytes;
  double seconds;  // of this thread's time
  int32_t policy;
  int32_t module;
  int32_t cluster;  // blocks
  int32_t overlap;  // it may start while the launch before it runs, until it waits for it
};

struct Block;
struct Warp;
struct Know;

enum State : uint8_t { READY, AT_BARRIER, IN_COLLECTIVE, IN_ACTIVE_MASK, AT_CLUSTER, DONE };

struct Fiber {
  void* stack_pointer;
  char* stack;
  Block* block;
  Warp* warp;
  Index thread;
  uint32_t number;  // in the launch, by warps of 32: warp * 32 + lane
  uint32_t stamp;   // of its accesses until it next releases
  uint8_t lane, operation;
  State state;
  uint8_t arrived;           // at the cluster's barrier, whose wait is to come
  uint8_t awaited;           // it has waited for the launch before
  uint32_t arrived_stamp, arrived_phase;
  Know* after_cluster;       // what the cluster's barrier has told it
  uint32_t mask;
  int argument, width, line;
  uint64_t value, result;
  const char* file;
  Know *know, *pending, *released, *released_block;
  uintptr_t polled;
  uint64_t polled_value;
};

struct Warp {
  Block* block;
  Fiber* lanes;
  uint32_t number;                     // in the launch
  uint32_t ready, live, waiting, active_waits;  // by lane; `waiting`: in a collective
  uint32_t floor;                      // every lane knows what any did up to it
  uint32_t arrived_floor;              // the floor when a lane last arrived at the cluster's barrier
  uint32_t (*known)[LANES];            // after partial-mask synchronisation: known[a][b], what a knows of b
};

// Blocks that run together and reach into each other's shared memory.
struct Cluster {
  uint32_t arrived, live, phase;
  Block* blocks[MAX_RESIDENT];  // null once ended
};

struct Block {
  Index index;
  uint32_t number, slot, threads, warps_used;
  uint32_t ready_warps, live, arrived, floor, arrived_floor, last_warp, generation;
  uint32_t rank;
  Cluster* cluster;
  uint8_t triggered, awaited;  // lets the next launch start; a thread of it has waited for the launch before
  int barrier_operation, barrier_line, tally;
  const char* barrier_file;
  char* saved;  // its shared memory while another block's is in place
  void* cells;  // shadow of its shared memory
  Fiber* fibers;
  Warp warps[MAX_WARPS];
};

extern Fiber* running;
extern Report report;
extern Launch launch;
extern Block* resident[MAX_RESIDENT];
extern uint32_t stamp_now, launch_floor, chain_floor;
extern uint32_t first_warp;     // number of this launch's first
extern void* main_stack_pointer;
extern bool inputs_pending;     // no launch yet has waited for what came before the session
extern bool awaited_before_next;  // no block lets the next launch start before it has waited for the one before
extern uint64_t spins;  // yields since something last changed

[[noreturn]] void leave_launch();
// A point at which others may run. `spinning`: nothing has changed since this thread last came by.
void yield(bool spinning, const void* code);
void wake(Fiber* fiber);
void wake_lanes(Warp* warp, uint32_t lanes);  // whose state says so already
void wait();  // until somebody wakes the running thread
void check_stack();
void arm(double seconds);  // of this thread's processor time; 0: the launch is over
void report_deadlock();
bool run_launch();
uint32_t random_below(uint32_t n);

inline Side side_of(const Fiber* fiber) {
  Side side{};
  side.module = launch.module;
  side.block = fiber->block->index;
  side.thread = fiber->thread;
  return side;
}

// Ends the launch; the report says why.
[[noreturn]] inline void fail() { leave_launch(); }

inline void place(Side& side, const char* file, int line) {
  snprintf(side.file, sizeof side.file, "%s", file ? file : "");
  side.line = (uint32_t)line;
}

[[noreturn]] inline void fail_here(Fault fault, const char* file, int line, const char* text) {
  report.fault = fault;
  report.sides = 1;
  report.side[0] = side_of(running);
  place(report.side[0], file, line);
  snprintf(report.text, sizeof report.text, "%s", text);
  fail();
}

}  // namespace simt
