// What Python calls.
#include "shadow.h"

using namespace simt;

namespace {

struct VariableDescription {
  uint64_t offset, bytes;
  int32_t dynamic, unused;
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int simt_add_module(uintptr_t low, uintptr_t high, void* (*anchor)(), uint64_t anchor_offset, uint64_t shared_bytes,
                    const VariableDescription* variables, int count, int awaits) {
  Module* added = new Module{low, high, 0, shared_bytes, anchor, anchor_offset, awaits != 0, {}, {}};
  added->variable_of.resize(shared_bytes / 16 + 1);
  for (int i = 0; i < count; ++i) {
    const VariableDescription& v = variables[i];
    added->variables.push_back({v.offset, v.bytes, 2, v.dynamic});
    for (uint64_t at = v.offset / 16; at <= (v.offset + v.bytes - 1) / 16; ++at)
      added->variable_of[at] = (uint16_t)(i + 1);
  }
  modules.push_back(added);
  return (int)modules.size() - 1;
}

// Starts a sequence of launches on one set of buffers.
void simt_begin() {
  ranges.clear();
  for (auto& entry : handed) forget(entry.second);
  handed.clear();
  release_cells();
  forget_lists();
  past.clear();
  inputs_pending = true;
  awaited_before_next = false;
  ++session;
  stamp_now = chain_floor = 0;
}

// Adds a buffer; returns its number, -1 if it is too large to be shadowed.
int simt_add_range(uintptr_t low, uint64_t bytes, const uint8_t* valid,
                                                          uint32_t valid_bytes, int shift, int initialised,
                                                          int read_only) {
  Range range{low, bytes, nullptr, valid, valid_bytes, shift, (uint8_t)initialised, (uint8_t)read_only};
  if (!read_only && !(range.cells = reserve_cells(bytes))) return -1;
  ranges.push_back(range);
  return (int)ranges.size() - 1;
}

// The host has filled a buffer: nobody's access to it counts any more.
void simt_reset_range(int index) {
  Range& range = ranges[(size_t)index];
  range.initialised = 1;
  if (range.cells) range.cells = reserve_cells(range.bytes);
}

int simt_launch(const Launch* what) {
  launch = *what;
  module = modules[(size_t)launch.module];
  module->shared_low = (uintptr_t)module->anchor() - module->anchor_offset;
  return run_launch();
}

const Report* simt_report() { return &report; }
}
#pragma GCC visibility pop
