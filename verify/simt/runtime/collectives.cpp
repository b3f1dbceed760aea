#include "collectives.h"

#include "clocks.h"

namespace simt {

namespace {

constexpr uint64_t GARBAGE = 0xa5a5a5a5a5a5a5a5ull;  // what a shuffle reads of a lane that takes no part

bool same_place(const char* file, int line, const char* other_file, int other_line) {
  return line == other_line && (file == other_file || !strcmp(file, other_file));
}

[[noreturn]] void fail_against(const Fiber* other, const char* text) {
  report.fault = DIVERGENT_BARRIER;
  report.sides = 2;
  const Fiber* both[] = {running, other};
  for (int i = 0; i < 2; ++i) {
    report.side[i] = side_of(both[i]);
    place(report.side[i], both[i]->file, both[i]->line);
  }
  snprintf(report.text, sizeof report.text, "%s", text);
  fail();
}

void open_barrier(Block* block) {
  synchronise_block(block);
  const int result = block->tally;
  block->arrived = 0;
  for (uint32_t i = 0; i < block->threads; ++i) {
    Fiber& fiber = block->fibers[i];
    if (fiber.state != AT_BARRIER) continue;
    fiber.result = (uint64_t)(unsigned)result;
    wake(&fiber);
  }
}

int source_lane(const Fiber& fiber) {
  const int lane = fiber.lane, width = fiber.width, low = lane & ~(width - 1), high = lane | (width - 1);
  const int argument = fiber.argument;
  int source = lane;
  switch (fiber.operation) {
    case SIMT_SHUFFLE: return low | (argument & (width - 1));
    case SIMT_SHUFFLE_UP:
      source = lane - argument;
      return source < low ? lane : source;
    case SIMT_SHUFFLE_DOWN:
      source = lane + argument;
      return source > high ? lane : source;
    default:
      source = lane ^ argument;
      return source > high ? lane : source;
  }
}

template <class Join>
uint64_t fold(const Fiber* lanes, uint32_t mask, Join&& join) {
  uint32_t result = (uint32_t)lanes[__builtin_ctz(mask)].value;
  for (uint32_t left = mask & (mask - 1); left; left &= left - 1)
    result = (uint32_t)join(result, (uint32_t)lanes[__builtin_ctz(left)].value);
  return result;
}

// One number that all lanes get.
uint64_t common_result(const Fiber* lanes, uint32_t mask, int operation) {
  using U = uint32_t;
  switch (operation) {
    case SIMT_REDUCE_ADD: return fold(lanes, mask, [](U a, U b) { return a + b; });
    case SIMT_REDUCE_AND: return fold(lanes, mask, [](U a, U b) { return a & b; });
    case SIMT_REDUCE_OR: return fold(lanes, mask, [](U a, U b) { return a | b; });
    case SIMT_REDUCE_XOR: return fold(lanes, mask, [](U a, U b) { return a ^ b; });
    case SIMT_REDUCE_MIN: return fold(lanes, mask, [](U a, U b) { return a < b ? a : b; });
    case SIMT_REDUCE_MAX: return fold(lanes, mask, [](U a, U b) { return a > b ? a : b; });
    case SIMT_REDUCE_MIN_SIGNED: return fold(lanes, mask, [](U a, U b) { return (int)a < (int)b ? a : b; });
    case SIMT_REDUCE_MAX_SIGNED: return fold(lanes, mask, [](U a, U b) { return (int)a > (int)b ? a : b; });
    default: break;
  }
  uint32_t votes = 0;
  bool alike = true;
  const uint64_t first = lanes[__builtin_ctz(mask)].value;
  for (uint32_t left = mask; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    votes |= (uint32_t)(lanes[lane].value & 1) << lane;
    alike &= lanes[lane].value == first;
  }
  switch (operation) {
    case SIMT_BALLOT: return votes;
    case SIMT_ALL: return votes == mask;
    case SIMT_ANY: return votes != 0;
    default: return alike ? 1ull << 32 | mask : 0;  // MATCH_ALL
  }
}

void give_results(Warp* warp, uint32_t mask, int operation) {
  Fiber* lanes = warp->lanes;
  if (operation == SIMT_SYNC) {
    synchronise_lanes(warp, mask);
  } else if (operation >= SIMT_SHUFFLE && operation <= SIMT_SHUFFLE_XOR) {
    for (uint32_t left = mask; left; left &= left - 1) {
      Fiber& fiber = lanes[__builtin_ctz(left)];
      const int source = source_lane(fiber);
      fiber.result = mask >> source & 1 ? lanes[source].value : GARBAGE ^ launch.seed * 0x9e3779b97f4a7c15ull;
    }
  } else if (operation == SIMT_MATCH_ANY) {
    for (uint32_t left = mask; left; left &= left - 1) {
      Fiber& fiber = lanes[__builtin_ctz(left)];
      uint32_t peers = 0;
      for (uint32_t rest = mask; rest; rest &= rest - 1) {
        const int other = __builtin_ctz(rest);
        peers |= (uint32_t)(lanes[other].value == fiber.value) << other;
      }
      fiber.result = peers;
    }
  } else {
    const uint64_t result = common_result(lanes, mask, operation);
    for (uint32_t left = mask; left; left &= left - 1) lanes[__builtin_ctz(left)].result = result;
  }
  warp->waiting &= ~mask;
  for (uint32_t left = mask; left; left &= left - 1) lanes[__builtin_ctz(left)].state = READY;
  wake_lanes(warp, mask);
}

// Completes the collective that `fiber` waits in, if every lane that it names is there or has ended.
void try_collective(Fiber* fiber) {
  Warp* warp = fiber->warp;
  const uint32_t needed = fiber->mask & warp->live;
  if (needed & ~warp->waiting) return;
  for (uint32_t left = needed; left; left &= left - 1) {
    const Fiber& other = warp->lanes[__builtin_ctz(left)];
    if (other.mask != fiber->mask) return;
    if (other.operation != fiber->operation)
      fail_against(&other, "lanes of one mask are in different warp operations");
  }
  give_results(warp, needed, fiber->operation);
}

void open_cluster(Cluster* cluster) {
  Know* joined = cluster_knowledge(cluster);
  cluster->arrived = 0;
  ++cluster->phase;
  for (Block* block : cluster->blocks)
    for (uint32_t i = 0; block && i < block->threads; ++i) {
      Fiber& fiber = block->fibers[i];
      if (!fiber.arrived || fiber.state == DONE) continue;
      drop(fiber.after_cluster);
      fiber.after_cluster = keep(joined);
      if (fiber.state == AT_CLUSTER) wake(&fiber);
    }
  drop(joined);
}

}  // namespace

void cluster_arrive(const char* file, int line) {
  Fiber* me = running;
  Cluster* cluster = me->block->cluster;
  if (me->arrived) fail_here(DIVERGENT_BARRIER, file, line, "a thread arrives twice at its cluster's barrier");
  me->arrived = 1;
  me->arrived_stamp = me->stamp;
  me->arrived_phase = cluster->phase;
  me->block->arrived_floor = me->block->floor;
  me->warp->arrived_floor = me->warp->floor;
  advance(me);
  if (++cluster->arrived == cluster->live) open_cluster(cluster);
}

void cluster_wait(const char* file, int line) {
  Fiber* me = running;
  if (!me->arrived)
    fail_here(DIVERGENT_BARRIER, file, line, "a thread waits at its cluster's barrier before it arrives");
  me->file = file;
  me->line = line;
  if (me->block->cluster->phase == me->arrived_phase) {
    me->state = AT_CLUSTER;
    wait();
  }
  me->arrived = 0;
  learn(me->know, me->after_cluster);
  drop(me->after_cluster);
}

void finish_waits(Fiber* fiber) {
  Block* block = fiber->block;
  Cluster* cluster = block->cluster;
  if (fiber->arrived && fiber->arrived_phase == cluster->phase) --cluster->arrived;
  --cluster->live;
  if (cluster->arrived && cluster->arrived == cluster->live) open_cluster(cluster);
  if (block->arrived && block->arrived == block->live) open_barrier(block);
  Warp* warp = fiber->warp;
  for (uint32_t left = warp->waiting; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    if (warp->waiting >> lane & 1) try_collective(&warp->lanes[lane]);
  }
}

}  // namespace simt

using namespace simt;

extern "C" int simt_barrier(int op, int predicate, const char* file, int line) {
  Fiber* me = running;
  Block* block = me->block;
  me->file = file;
  me->line = line;
  if (!block->arrived) {
    block->barrier_operation = op;
    block->barrier_file = file;
    block->barrier_line = line;
    block->tally = op == SIMT_BARRIER_AND;
  } else if (!same_place(file, line, block->barrier_file, block->barrier_line)) {
    const Fiber* other = block->fibers;
    while (other->state != AT_BARRIER) ++other;
    fail_against(other, "threads of one block wait at different barriers");
  }
  if (op == SIMT_BARRIER_COUNT) block->tally += predicate;
  else if (op == SIMT_BARRIER_AND) block->tally &= predicate;
  else if (op == SIMT_BARRIER_OR) block->tally |= predicate;
  me->state = AT_BARRIER;
  if (++block->arrived == block->live) open_barrier(block);
  wait();
  return (int)me->result;
}

extern "C" uint64_t simt_collective(int op, unsigned mask, uint64_t value, int argument, int width, const char* file,
                                    int line) {
  Fiber* me = running;
  if (!(mask >> me->lane & 1)) fail_here(BAD_MASK, file, line, "a lane is not in the mask that it gives");
  me->mask = mask;
  me->value = value;
  me->argument = argument;
  me->width = width;
  me->operation = (uint8_t)op;
  me->file = file;
  me->line = line;
  me->state = IN_COLLECTIVE;
  Warp* warp = me->warp;
  warp->waiting |= 1u << me->lane;
  if (!(mask & warp->live & ~warp->waiting)) try_collective(me);
  wait();
  return me->result;
}

extern "C" unsigned simt_active_mask(const char* file, int line) {
  Fiber* me = running;
  me->file = file;
  me->line = line;
  me->state = IN_ACTIVE_MASK;
  me->warp->active_waits |= 1u << me->lane;
  wait();
  return (unsigned)me->result;
}

extern "C" void simt_cluster_arrive(const char* file, int line) { cluster_arrive(file, line); }

extern "C" void simt_cluster_wait(const char* file, int line) { cluster_wait(file, line); }

extern "C" unsigned simt_cluster_rank() { return running->block->rank; }

extern "C" unsigned simt_cluster_size() { return (unsigned)launch.cluster; }

extern "C" void simt_grid_wait() { running->awaited = running->block->awaited = 1; }

// The first trigger of a block lets the next launch start, as far as this block goes.
extern "C" void simt_grid_trigger() {
  Block* block = running->block;
  if (!block->triggered && !running->awaited) awaited_before_next = false;
  block->triggered = 1;
}
