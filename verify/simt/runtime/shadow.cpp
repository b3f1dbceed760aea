#include "shadow.h"

#include <sys/mman.h>

namespace simt {

std::vector<Module*> modules;
Module* module = nullptr;
std::vector<Range> ranges;
uint32_t session = 0;
std::vector<Past> past;

namespace {

constexpr uint64_t ARENA = 8ull << 30;  // of address space: a cell for each byte of the largest buffers
char* arena = nullptr;
uint64_t arena_used = 0, arena_touched = 0;
constexpr size_t PRUNED_FROM = 16;

// Groups of one cell.
struct List {
  std::vector<Group> groups;
  bool atomics = false;             // some are of atomics
  size_t prune_at = PRUNED_FROM;    // groups, at which those that a later one stands for are looked for

  void add(const Group& group) {
    groups.push_back(group);
    atomics |= group.site >> 28 != READ;
  }
};
std::vector<List> lists;
uint32_t lists_used = 0;

uint32_t new_list() {
  if (lists_used == lists.size()) lists.emplace_back();
  List& list = lists[lists_used];
  list.groups.clear();
  list.atomics = false;
  list.prune_at = PRUNED_FROM;
  return lists_used++;
}

uint32_t code_of(const void* code) { return (uint32_t)((uintptr_t)code - module->low) & SITE; }

Access access_of(uint32_t kind) {
  return kind & WRITE          ? ACCESS_WRITE
         : kind & ATOMIC_WRITE ? ACCESS_ATOMIC_WRITE
         : kind & ATOMIC_READ  ? ACCESS_ATOMIC_READ
                               : ACCESS_READ;
}

Fiber* thread_of(uint32_t number) {
  for (Block* block : resident)
    if (block && number / LANES - block->warps[0].number < block->warps_used)
      return &block->fibers[number - block->warps[0].number * LANES];
  return nullptr;
}

// Where a thread is in the grid, alive or not.
Side side_by_number(uint32_t number, uint32_t site, uint32_t kind) {
  Side side{};
  if (const Fiber* fiber = thread_of(number)) {
    side = side_of(fiber);
  } else {
    const Past* of = &past.back();
    while (of->first_warp * LANES > number) --of;
    const Index &grid = of->grid, &size = of->block;
    number -= of->first_warp * LANES;
    const uint32_t stride = (size.x * size.y * size.z + LANES - 1) / LANES * LANES;
    const uint32_t block = number / stride, thread = number % stride;
    side.block = {block % grid.x, block / grid.x % grid.y, block / grid.x / grid.y};
    side.thread = {thread % size.x, thread / size.x % size.y, thread / size.x / size.y};
    side.module = of->module;
    side.earlier = of != &past.back();
  }
  side.code = site & SITE;
  side.access = access_of(kind);
  return side;
}

[[noreturn]] void fail_race(uintptr_t at, size_t size, uint32_t kind, const void* code, uint32_t other,
                            uint32_t other_site, uint32_t other_kind) {
  report.sides = 2;
  report.side[1] = side_by_number(other, other_site, other_kind);
  fail_at(RACE, at, size, access_of(kind), code);
}

bool conflicts(uint32_t mine, uint32_t theirs, uint32_t warp) {
  if (mine & WRITE) return true;
  const uint32_t a = mine & 3, b = theirs & 3;
  if ((a == READ && b == ATOMIC_WRITE) || (a == ATOMIC_WRITE && b == READ)) return true;
  const bool other_block = warp - running->block->warps[0].number >= running->block->warps_used;
  return ((mine | theirs) & BLOCK_SCOPE) && (a == ATOMIC_WRITE || b == ATOMIC_WRITE) && other_block;
}

// A later access of kind `mine` conflicts with all that one of kind `theirs` does, so it can stand for both.
bool stands_for(uint32_t mine, uint32_t theirs) {
  const uint32_t a = mine & 3, b = theirs & 3;
  return (mine & BLOCK_SCOPE) == (theirs & BLOCK_SCOPE) && (a == b || b == ATOMIC_READ);
}

bool same_stretch(const Group& group, uint32_t kind) {
  return group.warp == running->warp->number && group.stamp == running->stamp && group.site >> 28 == kind;
}

void meet(const Group& group, uint32_t kind, uintptr_t at, size_t size, const void* code) {
  const uint32_t theirs = group.site >> 28;
  if (!conflicts(kind, theirs, group.warp)) return;
  if (const uint32_t lanes = unknown(running, group.warp, group.stamp, group.mask))
    fail_race(at, size, kind, code, group.warp * LANES + __builtin_ctz(lanes), group.site, theirs);
}

void add_group(Cell& cell, uint32_t kind, uintptr_t at, size_t size, const void* code) {
  const Group mine{running->warp->number, running->stamp, 1u << running->lane, code_of(code) | kind << 28};
  if (cell.group.warp != MANY || !cell.group.mask) {
    Group& group = cell.group;
    if (group.mask) {
      meet(group, kind, at, size, code);
      if (same_stretch(group, kind)) {
        group.mask |= mine.mask;
        group.site = mine.site;
        return;
      }
      const bool known = stands_for(kind, group.site >> 28) &&
                         !unknown(running, group.warp, group.stamp, group.mask);
      if (!known) {
        const uint32_t index = new_list();
        lists[index].add(group);
        lists[index].add(mine);
        group = {MANY, index, 1, 0};
        return;
      }
    }
    group = mine;
    return;
  }
  List& list = lists[cell.group.stamp];
  std::vector<Group>& groups = list.groups;
  // Reads do not conflict with reads.
  if (kind != READ || list.atomics)
    for (const Group& group : groups) meet(group, kind, at, size, code);
  // Lanes of a warp read together, so theirs is among the last.
  for (size_t i = groups.size(), end = i - std::min<size_t>(i, 8); i-- > end;)
    if (same_stretch(groups[i], kind)) {
      groups[i].mask |= mine.mask;
      groups[i].site = mine.site;
      return;
    }
  if (groups.size() >= list.prune_at || kind != READ) {
    size_t kept = 0;
    for (const Group& group : groups)
      if (!stands_for(kind, group.site >> 28) || unknown(running, group.warp, group.stamp, group.mask))
        groups[kept++] = group;
    groups.resize(kept);
    list.prune_at = std::max(PRUNED_FROM, 2 * kept);
  }
  list.add(mine);
}

// One access to one granule. `kind` is WRITE, READ or an atomic's; `reads`: the value that was there matters.
inline __attribute__((always_inline)) void touch(Cell& cell, uint32_t generation, bool initialised, uint32_t kind,
                                                 bool reads, uintptr_t at, size_t size, const void* code) {
  if (cell.generation != generation) {
    cell.generation = generation;
    cell.writer = 0;
    cell.site = initialised ? INITIALISED : 0;
    cell.group.mask = 0;
  }
  // Nobody has written it since this lane last read it, and found all well.
  if (kind == READ && cell.group.mask >> running->lane & 1 && same_stretch(cell.group, READ)) return;
  if (reads && !(cell.site & INITIALISED)) fail_at(UNINITIALISED, at, size, access_of(kind), code);
  if (cell.writer && cell.writer != running->number + 1) {
    const uint32_t writer = cell.writer - 1;
    if (unknown(running, writer / LANES, cell.stamp, 1u << writer % LANES))
      fail_race(at, size, kind, code, writer, cell.site, WRITE);
  }
  if (kind == WRITE) {
    if (cell.group.mask) {
      if (cell.group.warp != MANY) meet(cell.group, kind, at, size, code);
      else
        for (const Group& group : lists[cell.group.stamp].groups) meet(group, kind, at, size, code);
      cell.group.mask = 0;
    }
    cell.writer = running->number + 1;
    cell.stamp = running->stamp;
    cell.site = code_of(code) | INITIALISED;
    return;
  }
  if (kind & ATOMIC_WRITE) cell.site |= INITIALISED;
  if (cell.group.mask && cell.group.warp != MANY && same_stretch(cell.group, kind)) {
    cell.group.mask |= 1u << running->lane;
    return;
  }
  add_group(cell, kind, at, size, code);
}

void split_cells(Cell* cells, uint64_t bytes, uint32_t from, uint32_t to) {
  const uint64_t count = (bytes + (1u << from) - 1) >> from;
  for (uint64_t i = count; i-- > 0;) {
    const Cell cell = cells[i];
    for (uint64_t part = 0; part < 1ull << (from - to); ++part) {
      Cell& copy = cells[(i << (from - to)) + part];
      copy = cell;
      if (cell.group.mask && cell.group.warp == MANY) {  // a list belongs to one cell
        const List list = lists[cell.group.stamp];
        copy.group.stamp = new_list();
        lists[copy.group.stamp] = list;
      }
    }
  }
}

int32_t granule_for(uint64_t offset, size_t size) {
  return __builtin_ctzll(offset | size | 8);
}

inline __attribute__((always_inline)) void touch_all(Cell* cells, int32_t shift, uint64_t offset, uint32_t generation,
                                                     bool initialised, uint32_t kind, bool reads, uintptr_t at,
                                                     size_t size, const void* code) {
  const uint64_t last = (offset + size - 1) >> shift;
  for (uint64_t i = offset >> shift; i <= last; ++i)
    touch(cells[i], generation, initialised, kind, reads, at, size, code);
}

bool is_valid(const Range& range, uint64_t offset, size_t size) {
  if (offset + size > range.bytes) return false;
  if (range.valid)
    for (uint64_t i = offset / range.valid_bytes; i <= (offset + size - 1) / range.valid_bytes; ++i)
      if (!range.valid[i]) return false;
  return true;
}

inline __attribute__((always_inline)) Variable& shared_variable(uint64_t offset, size_t size, uintptr_t at,
                                                                uint32_t kind, const void* code) {
  const uint16_t index = module->variable_of[offset >> 4];
  Variable* variable = index ? &module->variables[index - 1] : nullptr;
  if (!variable || offset < variable->offset || offset + size > variable->offset + extent(*variable))
    fail_at(OUT_OF_BOUNDS, at, size, access_of(kind), code);
  return *variable;
}

// A smaller access than any before has come to a shared array.
__attribute__((noinline)) void split_shared(Variable& variable, int32_t shift) {
  for (Block* block : resident)
    if (block) split_cells((Cell*)block->cells + variable.offset, extent(variable), variable.shift, shift);
  variable.shift = shift;
}

// Shared memory: of the running thread's block, or of another of its cluster.
inline __attribute__((always_inline)) uint64_t check_shared(Block* owner, uint64_t offset, size_t size, uint32_t kind,
                                                            bool reads, const void* code) {
  const uintptr_t at = module->shared_low + offset;
  Variable& variable = shared_variable(offset, size, at, kind, code);
  const uint64_t inside = offset - variable.offset;
  if ((inside | size) & ((1u << variable.shift) - 1)) split_shared(variable, granule_for(inside, size));
  touch_all((Cell*)owner->cells + variable.offset, variable.shift, inside, owner->generation, false, kind, reads, at,
            size, code);
  return (uint64_t)(owner->number + 1) << 48 ^ at;
}

// Everything that is not the thread's own stack. `kind` decides; returns the key of atomics.
inline __attribute__((always_inline)) uint64_t check(const void* pointer, size_t size, uint32_t kind, bool reads,
                                                     const void* code) {
  const uintptr_t at = (uintptr_t)pointer;
  const uint64_t shared_at = at - module->shared_low;
  if (shared_at < module->shared_bytes) return check_shared(running->block, shared_at, size, kind, reads, code);
  if (is_own_stack(at)) return at;
  for (Range& range : ranges) {
    const uint64_t offset = at - range.low;
    if (offset >= range.bytes) continue;
    if (!is_valid(range, offset, size)) fail_at(OUT_OF_BOUNDS, at, size, access_of(kind), code);
    if (inputs_pending && !running->awaited) {
      snprintf(report.text, sizeof report.text, "the launch before may still run, and nothing has waited for it");
      fail_at(RACE, at, size, access_of(kind), code);
    }
    if (range.read_only) {
      if (kind & (WRITE | ATOMIC_WRITE)) fail_at(READ_ONLY, at, size, access_of(kind), code);
      return at;
    }
    if ((offset | size) & ((1u << range.shift) - 1)) {
      const int32_t shift = granule_for(offset, size);
      split_cells(range.cells, range.bytes, range.shift, shift);
      range.shift = shift;
    }
    touch_all(range.cells, range.shift, offset, session, range.initialised, kind, reads, at, size, code);
    return at;
  }
  if (launch.cluster > 1)
    if (Block* owner = block_that_saves(at))
      return check_shared(owner, at - (uintptr_t)owner->saved, size, kind, reads, code);
  if (is_some_stack(at)) {
    const bool overflow = (uintptr_t)__builtin_frame_address(0) < (uintptr_t)running->stack;
    fail_at(overflow ? STACK_OVERFLOW : FOREIGN_STACK, at, size, access_of(kind), code);
  }
  const bool constant = at - module->low < module->high - module->low && !(kind & (WRITE | ATOMIC_WRITE));
  if (!constant) fail_at(OUT_OF_BOUNDS, at, size, access_of(kind), code);
  return at;
}

}  // namespace

bool is_own_stack(uintptr_t at) { return at - (uintptr_t)running->stack < STACK_BYTES; }

void fail_at(Fault fault, uintptr_t at, size_t size, Access access, const void* code) {
  report.fault = fault;
  report.address = at;
  report.size = size;
  if (report.sides < 1) report.sides = 1;
  report.side[0] = side_of(running);
  report.side[0].access = access;
  report.side[0].code = code_of(code);
  fail();
}

void check_read(const void* at, size_t size, const void* code) { check(at, size, READ, true, code); }

void check_write(const void* at, size_t size, const void* code) {
  check(at, size, WRITE, false, code);
  if (!is_own_stack((uintptr_t)at)) spins = 0;
}

void check_read_bounds(const void* pointer, size_t size, uint32_t kind, const void* code) {
  const uintptr_t at = (uintptr_t)pointer;
  if (at - module->shared_low < module->shared_bytes) {
    shared_variable(at - module->shared_low, size, at, kind, code);
    return;
  }
  if (is_own_stack(at) || at - module->low < module->high - module->low) return;
  for (const Range& range : ranges)
    if (at - range.low < range.bytes && is_valid(range, at - range.low, size)) return;
  if (launch.cluster > 1 && block_that_saves(at)) return;
  fail_at(OUT_OF_BOUNDS, at, size, access_of(kind), code);
}

uint64_t check_atomic(const void* at, size_t size, Kind kind, bool reads, const void* code) {
  return check(at, size, kind, reads, code);
}

Cell* reserve_cells(uint64_t bytes) {
  if (!arena) {
    arena = (char*)mmap(nullptr, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED) {
      arena = nullptr;
      return nullptr;
    }
  }
  const uint64_t size = (bytes + 8) * sizeof(Cell);
  if (arena_used + size > ARENA) return nullptr;
  Cell* cells = (Cell*)(arena + arena_used);
  arena_used += (size + 63) / 64 * 64;
  arena_touched = std::max(arena_touched, arena_used);
  return cells;
}

void release_cells() {
  constexpr uint64_t WORTH_KEEPING = 256 << 20;
  if (arena_touched > WORTH_KEEPING) {
    madvise(arena, arena_touched, MADV_DONTNEED);
    arena_touched = 0;
  }
  arena_used = 0;
}

void forget_lists() { lists_used = 0; }

}  // namespace simt
