// Barriers and warp collectives: who has arrived, and what they get.
#pragma once

#include "machine.h"

namespace simt {

// A thread has ended: what waits for it need not any more.
void finish_waits(Fiber* fiber);
void cluster_arrive(const char* file, int line);
void cluster_wait(const char* file, int line);

}  // namespace simt
