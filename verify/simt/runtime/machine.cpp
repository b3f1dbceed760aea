// Fibers, blocks and the choice of who runs next.
#include "machine.h"

#include <sys/mman.h>

#include "collectives.h"
#include "shadow.h"
#include "switch.h"

namespace simt {

Fiber* running = nullptr;
Report report;
Launch launch;
Block* resident[MAX_RESIDENT];
uint32_t stamp_now = 0, launch_floor = 0, chain_floor = 0;
uint32_t first_warp = 0;
bool inputs_pending = true, awaited_before_next = false;
void* main_stack_pointer;
uint64_t spins = 0;

namespace {

constexpr uint64_t FAIR_AFTER = 24;        // spins, after which everybody gets a turn
constexpr uint64_t PATIENCE = 4096;        // choices, after which a block or a delayed victim gets a turn anyway
constexpr uint64_t HOPELESS = 20000;       // spins at least, and so many for each live thread, without a change
constexpr uint64_t HOPELESS_EACH = 100;
constexpr uint32_t GUARD = 4096;           // bytes at the end of a stack that nobody should reach
constexpr size_t BELOW = 4 << 20;          // for what one call can overrun before it is noticed

Block* slots[MAX_RESIDENT];
Cluster clusters[MAX_RESIDENT];
uint64_t slot_cells[MAX_RESIDENT];         // bytes of shared memory that a slot's cells cover
Block* current = nullptr;                  // whose shared memory is in place
uint64_t ready_blocks, alive;              // by slot
uint32_t next_block, blocks, resident_wanted, live_threads;
uint64_t random_state, choices, quantum;
uint32_t victim;
Cluster* new_cluster = nullptr;             // whose blocks are being started
uint32_t next_generation = 0;
uint64_t shared_in_use;                     // bytes; dynamic shared memory comes last

uint32_t rotated_bit(uint64_t mask, uint32_t from, uint32_t width) {
  const uint64_t above = mask & ~((1ull << from) - 1);
  return (uint32_t)__builtin_ctzll((from < width && above) ? above : mask);
}

inline uint64_t random_word() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

// The first bit of a mask from a random one on, round the end.
inline uint32_t bit_from(uint32_t mask, uint32_t from) {
  from &= 31;
  return ((uint32_t)__builtin_ctz(mask >> from | mask << (-from & 31)) + from) & 31;
}

inline void mark_ready(Warp* warp, uint32_t lanes) {
  Block* block = warp->block;
  warp->ready |= lanes;
  block->ready_warps |= 1u << (warp - block->warps);
  ready_blocks |= 1ull << block->slot;
}

inline void mark_ready(Fiber* fiber) {
  fiber->state = READY;
  mark_ready(fiber->warp, 1u << fiber->lane);
}

void put_in_place(Block* block) {
  if (block == current) return;
  char* shared = (char*)module->shared_low;
  if (shared_in_use) {
    if (current) memcpy(current->saved, shared, shared_in_use);
    memcpy(shared, block->saved, shared_in_use);
  }
  current = block;
}

void thread_main();

[[noreturn]] void no_memory(const char* what) {
  fprintf(stderr, "the SIMT executor gets no memory for %s\n", what);
  abort();
}

void start_block(uint32_t number) {
  uint32_t slot = 0;
  while (alive >> slot & 1) ++slot;
  const Index& size = launch.block;
  const uint32_t threads = size.x * size.y * size.z;
  if (!slots[slot]) {
    slots[slot] = (Block*)calloc(1, sizeof(Block));
    slots[slot]->slot = slot;
    slots[slot]->fibers = (Fiber*)calloc(MAX_THREADS, sizeof(Fiber));
    char* stacks = (char*)mmap(nullptr, BELOW + STACK_BYTES * MAX_THREADS, PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) no_memory("the threads' stacks");
    for (uint32_t i = 0; i < MAX_THREADS; ++i) slots[slot]->fibers[i].stack = stacks + BELOW + i * STACK_BYTES;
  }
  Block& block = *slots[slot];
  if (module->shared_bytes > slot_cells[slot]) {
    if (slot_cells[slot]) munmap(block.cells, (slot_cells[slot] + 8) * sizeof(Cell));
    free(block.saved);
    slot_cells[slot] = module->shared_bytes;
    block.saved = (char*)malloc(module->shared_bytes);
    block.cells = mmap(nullptr, (slot_cells[slot] + 8) * sizeof(Cell), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block.cells == MAP_FAILED) no_memory("the shadow of shared memory");
  }
  block.number = number;
  block.index = {number % launch.grid.x, number / launch.grid.x % launch.grid.y,
                 number / launch.grid.x / launch.grid.y};
  block.threads = block.live = threads;
  block.warps_used = (threads + LANES - 1) / LANES;
  block.ready_warps = block.arrived = block.floor = block.arrived_floor = block.last_warp = 0;
  block.triggered = 0;
  block.awaited = !launch.overlap;
  block.rank = number % launch.cluster;
  if (!block.rank) {
    new_cluster = &clusters[slot];
    memset(new_cluster, 0, sizeof *new_cluster);
  }
  block.cluster = new_cluster;
  new_cluster->live += threads;
  new_cluster->blocks[block.rank] = &block;
  block.generation = ++next_generation;
  if (shared_in_use) memset(block.saved, SHARED_POISON, shared_in_use);
  resident[slot] = &block;
  alive |= 1ull << slot;
  for (uint32_t w = 0; w < block.warps_used; ++w) {
    Warp& warp = block.warps[w];
    const uint32_t lanes = std::min(threads - w * LANES, LANES);
    free(warp.known);
    warp = {&block, block.fibers + w * LANES, first_warp + number * block.warps_used + w, 0, 0, 0, 0, 0, 0, nullptr};
    warp.ready = warp.live = lanes == LANES ? ~0u : (1u << lanes) - 1;
    block.ready_warps |= 1u << w;
  }
  for (uint32_t i = 0; i < threads; ++i) {
    Fiber& fiber = block.fibers[i];
    fiber.block = &block;
    fiber.warp = &block.warps[i / LANES];
    fiber.lane = i % LANES;
    fiber.number = fiber.warp->number * LANES + fiber.lane;
    fiber.thread = {i % size.x, i / size.x % size.y, i / size.x / size.y};
    fiber.stamp = stamp_now;
    fiber.state = READY;
    fiber.polled = 0;
    fiber.arrived = 0;
    fiber.awaited = !launch.overlap;
    drop(fiber.after_cluster);
    drop(fiber.know);
    drop(fiber.pending);
    drop(fiber.released);
    drop(fiber.released_block);
    // Tops at different offsets in a page, or all threads' frames would compete for the same cache lines.
    char* top = fiber.stack + STACK_BYTES - 64 - i * 7 % 32 * 128;
    fiber.stack_pointer = first_frame(top, thread_main);
  }
  ready_blocks |= 1ull << slot;
  live_threads += threads;
}

bool can_start() {
  return next_block < blocks && (uint32_t)__builtin_popcountll(alive) + (uint32_t)launch.cluster <= MAX_RESIDENT;
}

// Blocks start in order, those of a cluster together.
void start_more() {
  for (int i = 0; i < launch.cluster; ++i) start_block(next_block++);
}

void end_block(Block* block) {
  if (!block->triggered && !block->awaited) awaited_before_next = false;
  block->cluster->blocks[block->rank] = nullptr;
  alive &= ~(1ull << block->slot);
  ready_blocks &= ~(1ull << block->slot);
  resident[block->slot] = nullptr;
  if (current == block) current = nullptr;
}

// Lanes that wait in __activemask() go on together once no other lane of their warp can run.
void release_active(Warp* warp) {
  uint32_t left = warp->active_waits;
  while (left) {
    const Fiber* first = &warp->lanes[__builtin_ctz(left)];
    uint32_t group = 0;
    for (uint32_t rest = left; rest; rest &= rest - 1) {
      const Fiber* fiber = &warp->lanes[__builtin_ctz(rest)];
      if (fiber->line == first->line && fiber->file == first->file) group |= 1u << fiber->lane;
    }
    // Which lanes happen to be converged is nobody's promise.
    if (launch.policy != ROUND_ROBIN && random_below(4) == 0) {
      const uint32_t part = group & (uint32_t)(random_state >> 20);
      if (part) group = part;
    }
    for (uint32_t rest = group; rest; rest &= rest - 1) {
      Fiber* fiber = &warp->lanes[__builtin_ctz(rest)];
      fiber->result = group;
      mark_ready(fiber);
    }
    left &= ~group;
  }
  warp->active_waits = 0;
}

uint32_t choose_block(uint64_t mask) {
  switch (launch.policy) {
    case ROUND_ROBIN: return rotated_bit(mask, current ? (current->slot + 1) % MAX_RESIDENT : 0, MAX_RESIDENT);
    case LONGEST_FIRST: return 63 - (uint32_t)__builtin_clzll(mask);
    default: return rotated_bit(mask, random_below(MAX_RESIDENT), MAX_RESIDENT);
  }
}

uint64_t without_victims(uint64_t mask) {
  if (launch.policy != DELAY_BLOCK || choices % PATIENCE == 0) return mask;
  uint64_t others = mask;
  for (uint64_t left = mask; left; left &= left - 1) {
    const uint32_t slot = (uint32_t)__builtin_ctzll(left);
    if (resident[slot]->number == victim) others &= ~(1ull << slot);
  }
  return others ? others : mask;
}

inline Fiber* take(Block* block, uint32_t index, uint32_t lane) {
  block->last_warp = index;
  Warp& warp = block->warps[index];
  if (!(warp.ready &= ~(1u << lane)))
    if (!(block->ready_warps &= ~(1u << index))) ready_blocks &= ~(1ull << block->slot);
  return &warp.lanes[lane];
}

Block* choose_other_block(bool fair) {
  if ((!ready_blocks || (fair && spins % FAIR_AFTER == 0)) && can_start()) start_more();
  if (!ready_blocks) return nullptr;
  Block* block = fair ? slots[rotated_bit(ready_blocks, current ? (current->slot + 1) % MAX_RESIDENT : 0, MAX_RESIDENT)]
                      : slots[choose_block(without_victims(ready_blocks))];
  quantum = launch.policy == ROUND_ROBIN || launch.policy == LONGEST_FIRST ? PATIENCE : 1 + random_below(256);
  put_in_place(block);
  return block;
}

// Whose turn it is, or null if nobody can run.
Fiber* choose() {
  ++choices;
  const bool fair = spins > FAIR_AFTER;
  Block* block = current;
  if (fair || !block || !block->ready_warps || quantum-- == 0) {
    block = choose_other_block(fair);
    if (!block) return nullptr;
  }
  uint32_t mask = block->ready_warps;
  const uint32_t last = block->last_warp;
  if (fair) {
    const uint32_t warp = bit_from(mask, last + 1);
    return take(block, warp, bit_from(block->warps[warp].ready, random_below(LANES)));
  }
  const uint64_t word = launch.policy == ROUND_ROBIN || launch.policy == LONGEST_FIRST ? 0 : random_word() >> 40;
  switch (launch.policy) {
    case ROUND_ROBIN: {
      const uint32_t warp = bit_from(mask, last);
      return take(block, warp, __builtin_ctz(block->warps[warp].ready));
    }
    case LONGEST_FIRST: {
      const uint32_t warp = mask >> last & 1 ? last : 31 - __builtin_clz(mask);
      return take(block, warp, 31 - __builtin_clz(block->warps[warp].ready));
    }
    case DELAY_WARP:
      if (const uint32_t others = mask & ~(1u << victim % block->warps_used); others && choices % PATIENCE)
        mask = others;
      break;
    default: break;
  }
  // Three times in four the same warp goes on, whose threads are at hand.
  const bool stay = mask >> last & 1 && (word & 3);
  const uint32_t warp = stay ? last : bit_from(mask, (uint32_t)(word >> 2));
  return take(block, warp, bit_from(block->warps[warp].ready, (uint32_t)(word >> 7)));
}

// Leaves the running thread, which someone else wakes, or which is done.
void pass_on() {
  Fiber* me = running;
  Warp* warp = me->warp;
  if (!warp->ready && warp->active_waits) release_active(warp);
  Fiber* next = choose();
  if (next == me) return;
  if (next) {
    running = next;
    simt_switch(&me->stack_pointer, next->stack_pointer);
  } else {
    simt_switch(&me->stack_pointer, main_stack_pointer);
  }
}

void thread_main() {
  launch.entry(launch.arguments);
  Fiber* me = running;
  me->state = DONE;
  spins = 0;
  --live_threads;
  Warp* warp = me->warp;
  Block* block = me->block;
  warp->live &= ~(1u << me->lane);
  --block->live;
  finish_waits(me);
  if (block->live == 0) simt_switch(&me->stack_pointer, main_stack_pointer);  // its stacks get new owners
  pass_on();
  abort();
}

void run_blocks() {
  while (!report.fault) {
    while ((uint32_t)__builtin_popcountll(alive) < resident_wanted && can_start()) start_more();
    if (!alive) return;
    Fiber* next = choose();
    if (!next) {
      report_deadlock();
      return;
    }
    running = next;
    simt_switch(&main_stack_pointer, next->stack_pointer);
    for (Block* block : resident)
      if (block && block->live == 0) end_block(block);
  }
}

}  // namespace

void check_stack() {
  if ((uintptr_t)__builtin_frame_address(0) - (uintptr_t)running->stack < GUARD ||
      (uintptr_t)__builtin_frame_address(0) < (uintptr_t)running->stack)
    fail_here(STACK_OVERFLOW, "", 0, "a thread needs more than 64 KiB of local memory");
}

void* mapped_to_rank(uintptr_t at, uint32_t rank) {
  Block* own = running->block;
  if (rank == own->rank) return (void*)at;
  Block* other = rank < (uint32_t)launch.cluster ? own->cluster->blocks[rank] : nullptr;
  return other ? other->saved + (at - module->shared_low) : nullptr;
}

Block* block_that_saves(uintptr_t at) {
  for (Block* block : running->block->cluster->blocks)
    if (block && block != running->block && at - (uintptr_t)block->saved < module->shared_bytes) return block;
  return nullptr;
}

bool is_some_stack(uintptr_t at) {
  for (const Block* slot : slots)
    if (slot && at - (uintptr_t)slot->fibers[0].stack < STACK_BYTES * MAX_THREADS) return true;
  return false;
}

uint32_t random_below(uint32_t n) { return (uint32_t)((random_word() >> 32) * n >> 32); }

void wake(Fiber* fiber) { mark_ready(fiber); }

void wake_lanes(Warp* warp, uint32_t lanes) { mark_ready(warp, lanes); }

void wait() { pass_on(); }

void yield(bool spinning, const void* code) {
  if (spinning) {
    if (++spins > HOPELESS + HOPELESS_EACH * live_threads) {
      report.fault = DEADLOCK;
      report.sides = 1;
      report.side[0] = side_of(running);
      report.side[0].code = (uint64_t)((uintptr_t)code - module->low);
      snprintf(report.text, sizeof report.text,
               "every thread that can run waits in a loop for a change that nobody makes");
      fail();
    }
  } else if (launch.policy == ROUND_ROBIN || random_below(4)) {
    return;
  }
  mark_ready(running);
  pass_on();
}

void leave_launch() {
  void* here = nullptr;
  simt_switch(&here, main_stack_pointer);
  abort();
}

// Runs `launch`; false if a fault ended it, which `report` describes.
bool run_launch() {
  memset(&report, 0, sizeof report);
  report.shared_low = module->shared_low;
  const Index& grid = launch.grid;
  const Index& size = launch.block;
  const uint64_t threads = (uint64_t)size.x * size.y * size.z;
  const uint64_t grid_blocks = (uint64_t)grid.x * grid.y * grid.z;
  if (!threads || threads > MAX_THREADS || !grid_blocks || grid_blocks > UINT32_MAX / MAX_WARPS) {
    report.fault = BAD_LAUNCH;
    snprintf(report.text, sizeof report.text, "a block of %ux%ux%u threads in a grid of %ux%ux%u; allowed: 1 to 1024",
             size.x, size.y, size.z, grid.x, grid.y, grid.z);
    return false;
  }
  if (launch.cluster < 1 || launch.cluster > 16 || grid.x % (uint32_t)launch.cluster) {
    report.fault = BAD_LAUNCH;
    snprintf(report.text, sizeof report.text, "a grid of %u blocks in clusters of %d; allowed: up to 16, a divisor",
             grid.x, launch.cluster);
    return false;
  }
  blocks = (uint32_t)grid_blocks;
  next_block = 0;
  alive = ready_blocks = 0;
  live_threads = 0;
  spins = choices = quantum = 0;
  current = nullptr;
  memset(resident, 0, sizeof resident);
  random_state = (launch.seed + 0x9e3779b97f4a7c15ull) * 0xbf58476d1ce4e5b9ull;
  random_state ^= random_state >> 31;
  if (!random_state) random_state = 1;
  for (int i = 0; i < 4; ++i) random_below(2);
  resident_wanted = launch.policy == ROUND_ROBIN ? 1 : launch.policy == RANDOM ? 4 : 8;
  victim = launch.policy == DELAY_BLOCK ? random_below(std::min(blocks, 8u)) : random_below(MAX_WARPS);
  const uint32_t before = launch_floor;
  launch_floor = stamp_now++;
  launch.overlap = launch.overlap && module->awaits;
  if (!launch.overlap) {
    chain_floor = launch_floor;
    inputs_pending = false;
  } else if (awaited_before_next) {
    chain_floor = before;
    inputs_pending = false;
  }
  awaited_before_next = true;
  first_warp = past.empty() ? 0 : past.back().first_warp + past.back().warps;
  const uint32_t warps_each = (uint32_t)((threads + LANES - 1) / LANES);
  past.push_back({first_warp, blocks * warps_each, launch.grid, launch.block, launch.module});
  shared_in_use = 0;
  for (const Variable& variable : module->variables)
    shared_in_use = std::max(shared_in_use, variable.offset + extent(variable));
  arm(launch.seconds);
  run_blocks();
  running = nullptr;
  arm(0);
  return report.fault == NO_FAULT;
}

}  // namespace simt
