#include "clocks.h"

namespace simt {

std::unordered_map<uint64_t, Handed> handed;

namespace {

// Knowledge of other threads' making is rare: null, or the same for all, costs a comparison a thread.
template <class Each>
void share_know(Each&& each) {
  Know* joined = nullptr;
  bool differ = false, awaited = false;
  Fiber* first = nullptr;
  each([&](Fiber* fiber) {
    if (!first) first = fiber;
    awaited |= fiber->awaited;
    differ |= fiber->know != first->know || fiber->pending;
  });
  if (awaited && launch.overlap) each([](Fiber* fiber) { fiber->awaited = 1; });
  if (!differ) return;
  each([&](Fiber* fiber) {
    learn(joined, fiber->know);
    learn(joined, fiber->pending);
  });
  each([&](Fiber* fiber) {
    drop(fiber->pending);
    drop(fiber->know);
    fiber->know = keep(joined);
  });
  drop(joined);
}

}  // namespace

__attribute__((noinline)) uint32_t unknown_beyond_floors(const Fiber* fiber, uint32_t warp, uint32_t stamp,
                                                         uint32_t mask) {
  if (warp < first_warp) return mask;  // of a launch that may still run
  const Warp* own = fiber->warp;
  if (warp == own->number) {
    mask &= ~(1u << fiber->lane);
    if (!mask) return 0;
    if (own->known)
      for (uint32_t left = mask; left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        if (own->known[fiber->lane][lane] >= stamp) mask &= ~(1u << lane);
      }
  }
  if (!mask || !fiber->know) return mask;
  if (fiber->know->of(OF_BLOCK | ((warp - first_warp) / own->block->warps_used)) >= stamp) return 0;
  if (fiber->know->of(OF_WARP | warp) >= stamp) return 0;
  for (uint32_t left = mask; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    if (fiber->know->of(OF_THREAD | (warp * LANES + lane)) >= stamp) mask &= ~(1u << lane);
  }
  return mask;
}

void synchronise_lanes(Warp* warp, uint32_t mask) {
  const auto each = [&](auto&& visit) {
    for (uint32_t left = mask; left; left &= left - 1) visit(&warp->lanes[__builtin_ctz(left)]);
  };
  share_know(each);
  if ((mask & warp->live) == warp->live) {
    warp->floor = stamp_now;
  } else {
    if (!warp->known) warp->known = (uint32_t(*)[LANES])calloc(LANES, sizeof *warp->known);
    uint32_t joined[LANES] = {};
    each([&](Fiber* fiber) {
      for (unsigned lane = 0; lane < LANES; ++lane)
        joined[lane] = std::max(joined[lane], warp->known[fiber->lane][lane]);
    });
    each([&](Fiber* fiber) { joined[fiber->lane] = fiber->stamp; });
    each([&](Fiber* fiber) { memcpy(warp->known[fiber->lane], joined, sizeof joined); });
  }
  ++stamp_now;
  each([&](Fiber* fiber) { fiber->stamp = stamp_now; });
}

void synchronise_block(Block* block) {
  share_know([&](auto&& visit) {
    for (uint32_t i = 0; i < block->threads; ++i)
      if (block->fibers[i].state != DONE) visit(&block->fibers[i]);
  });
  block->floor = stamp_now++;
  for (uint32_t i = 0; i < block->threads; ++i) block->fibers[i].stamp = stamp_now;
}

Know* cluster_knowledge(const Cluster* cluster) {
  Know* own = new Know;
  std::vector<Know*> further;
  for (const Level level : {OF_BLOCK, OF_WARP, OF_THREAD})
    for (const Block* block : cluster->blocks) {
      if (!block) continue;
      if (level == OF_BLOCK && block->arrived_floor)
        own->entries.push_back({level | block->number, block->arrived_floor});
      for (uint32_t w = 0; level == OF_WARP && w < block->warps_used; ++w)
        if (block->warps[w].arrived_floor)
          own->entries.push_back({level | block->warps[w].number, block->warps[w].arrived_floor});
      for (uint32_t i = 0; level == OF_THREAD && i < block->threads; ++i) {
        const Fiber& fiber = block->fibers[i];
        if (!fiber.arrived) continue;
        own->entries.push_back({level | fiber.number, fiber.arrived_stamp});
        if (fiber.know && (further.empty() || further.back() != fiber.know)) further.push_back(fiber.know);
      }
    }
  std::sort(further.begin(), further.end());
  further.erase(std::unique(further.begin(), further.end()), further.end());
  for (Know* more : further) learn(own, more);
  return own;
}

}  // namespace simt
