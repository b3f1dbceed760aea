// Groups flat indices of (token, place) pairs by expert, each group padded to a multiple of the block size: a stable
// counting sort. Everything is bitwise repeatable: the only atomics add integers or set bits, whose order doesn't show.
//
//   few       one launch; every block counts all ids.                      align_few.cuh
//   scanned   tile_histogram, scan_tiles, place_ids, which overlap.        align_scanned.cuh
//
// align_plan.py says which runs when, and with what numbers.
#include "align_common.cuh"
#include "align_few.cuh"
#include "align_scanned.cuh"
