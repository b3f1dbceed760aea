// Happens-before, without a clock for each pair of threads.
//
// A stamp is the number of the release after which an access was made; stamps grow over the launch. What a thread
// knows of another is the last stamp whose accesses happened before. Most of it is known by whole blocks (barriers)
// and warps (__syncwarp), which keep one number each, a floor; the rest, learnt through atomics and fences, is a list.
#pragma once

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "machine.h"

namespace simt {

enum Level : uint64_t { OF_BLOCK = 1ull << 40, OF_WARP = 2ull << 40, OF_THREAD = 3ull << 40 };

struct Known {
  uint64_t who;  // level | number
  uint32_t stamp;
};

// Immutable, shared by those who learnt it together.
struct Know {
  uint32_t references = 1;
  std::vector<Known> entries;  // by `who`

  uint32_t of(uint64_t who) const {
    auto at = std::lower_bound(entries.begin(), entries.end(), who,
                               [](const Known& entry, uint64_t key) { return entry.who < key; });
    return at != entries.end() && at->who == who ? at->stamp : 0;
  }
};

inline Know* keep(Know* know) {
  if (know) ++know->references;
  return know;
}

inline void drop(Know*& know) {
  if (know && --know->references == 0) delete know;
  know = nullptr;
}

// Adds `more` to `known`; `more` stays the caller's.
inline void learn(Know*& known, Know* more) {
  if (!more || more == known) return;
  if (!known) {
    known = keep(more);
    return;
  }
  Know* joined = new Know;
  joined->entries.reserve(known->entries.size() + more->entries.size());
  auto a = known->entries.begin(), a_end = known->entries.end();
  auto b = more->entries.begin(), b_end = more->entries.end();
  while (a != a_end || b != b_end) {
    if (b == b_end || (a != a_end && a->who < b->who)) {
      joined->entries.push_back(*a++);
    } else if (a == a_end || b->who < a->who) {
      joined->entries.push_back(*b++);
    } else {
      joined->entries.push_back({a->who, std::max(a->stamp, b->stamp)});
      ++a, ++b;
    }
  }
  drop(known);
  known = joined;
}

// All that a thread knows, itself included.
inline Know* snapshot(const Fiber* fiber) {
  Know* own = new Know;
  const Warp* warp = fiber->warp;
  if (fiber->block->floor) own->entries.push_back({OF_BLOCK | fiber->block->number, fiber->block->floor});
  if (warp->floor) own->entries.push_back({OF_WARP | warp->number, warp->floor});
  for (unsigned lane = 0; lane < LANES; ++lane) {
    if (lane == fiber->lane) own->entries.push_back({OF_THREAD | fiber->number, fiber->stamp});
    else if (warp->known && warp->known[fiber->lane][lane])
      own->entries.push_back({OF_THREAD | (warp->number * LANES + lane), warp->known[fiber->lane][lane]});
  }
  learn(own, fiber->know);
  return own;
}

// Starts a new stretch of a thread's accesses, which those that know the old one do not know.
inline void advance(Fiber* fiber) { fiber->stamp = ++stamp_now; }

// As `unknown`, where no floor says that all is known.
uint32_t unknown_beyond_floors(const Fiber* fiber, uint32_t warp, uint32_t stamp, uint32_t mask);

// Of the lanes `mask` of a warp, those whose accesses up to `stamp` did not certainly happen before.
inline uint32_t unknown(const Fiber* fiber, uint32_t warp, uint32_t stamp, uint32_t mask) {
  if (stamp <= (fiber->awaited ? launch_floor : chain_floor)) return 0;
  const Warp* own = fiber->warp;
  if (warp == own->number && stamp <= own->floor) return 0;
  const Block* block = own->block;
  if (warp - block->warps[0].number < block->warps_used && stamp <= block->floor) return 0;
  return unknown_beyond_floors(fiber, warp, stamp, mask);
}

// What a write to an address by an atomic hands to those who read it.
struct Handed {
  Know *device = nullptr, *block = nullptr;  // through fences of that scope
  uint32_t of_block = 0;
};

extern std::unordered_map<uint64_t, Handed> handed;

inline void forget(Handed& gift) {
  drop(gift.device);
  drop(gift.block);
}

// A fence: what was read through relaxed atomics counts from here on, and later relaxed writes hand on what is known.
inline void fence(Fiber* fiber, int scope) {
  if (fiber->pending) {
    learn(fiber->know, fiber->pending);
    drop(fiber->pending);
  }
  Know*& released = scope == SIMT_BLOCK ? fiber->released_block : fiber->released;
  drop(released);
  released = snapshot(fiber);
  advance(fiber);
}

// An atomic read of `key`. Until a fence the knowledge is pending, unless the read acquires.
inline void observe(Fiber* fiber, uint64_t key, bool acquires) {
  if (handed.empty()) return;
  const auto found = handed.find(key);
  if (found == handed.end()) return;
  Know*& target = acquires ? fiber->know : fiber->pending;
  learn(target, found->second.device);
  if (found->second.of_block == fiber->block->number) learn(target, found->second.block);
}

// An atomic write to `key`; an exchange of any kind (`keeps`) carries on what earlier writes handed over.
inline void publish(Fiber* fiber, uint64_t key, bool releases, bool keeps, int scope) {
  if (!releases && !fiber->released && !fiber->released_block) {
    if (!keeps && !handed.empty()) {
      const auto found = handed.find(key);
      if (found != handed.end()) {
        forget(found->second);
        handed.erase(found);
      }
    }
    return;
  }
  Handed& gift = handed[key];
  if (!keeps) forget(gift);
  if (gift.of_block != fiber->block->number) drop(gift.block);
  gift.of_block = fiber->block->number;
  learn(gift.device, fiber->released);
  learn(gift.block, fiber->released_block);
  if (releases) {
    Know* own = snapshot(fiber);
    learn(scope == SIMT_BLOCK ? gift.block : gift.device, own);
    drop(own);
    advance(fiber);
  }
}

// Every lane of `mask` learns what any of them knows.
void synchronise_lanes(Warp* warp, uint32_t mask);
void synchronise_block(Block* block);
// What a thread that waits at its cluster's barrier learns: what each knew when it arrived.
Know* cluster_knowledge(const Cluster* cluster);

}  // namespace simt
