// Ends launches that would not end: a timer for threads that compute for ever, a report for threads that wait.
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "shadow.h"
#include "switch.h"

namespace simt {

namespace {

constexpr double TRY_AGAIN = 0.001;  // seconds
timer_t timer;
int timer_thread = 0;

void set_timer(double seconds) {
  struct itimerspec when = {};
  when.it_value.tv_sec = (time_t)seconds;
  when.it_value.tv_nsec = (long)((seconds - (double)(time_t)seconds) * 1e9);
  timer_settime(timer, 0, &when, nullptr);
}

// Leaves the launch from wherever the kernel is; the runtime itself, which may hold a lock, is let finish first.
void on_timer(int, siginfo_t*, void* context) {
  if (!running || report.fault) return;
  const mcontext_t& machine = ((ucontext_t*)context)->uc_mcontext;
#if defined(__x86_64__)
  const uintptr_t at = (uintptr_t)machine.gregs[REG_RIP];
#else
  const uintptr_t at = (uintptr_t)machine.pc;
#endif
  if (at - module->low >= module->high - module->low) {
    set_timer(TRY_AGAIN);
    return;
  }
  report.fault = TIMEOUT;
  report.sides = 1;
  report.side[0] = side_of(running);
  report.side[0].code = at - module->low;
  void* here = nullptr;
  simt_switch(&here, main_stack_pointer);
}

const char* wait_of(const Fiber* fiber) {
  return fiber->state == AT_BARRIER ? "__syncthreads()"
         : fiber->state == AT_CLUSTER ? "the cluster's barrier"
                                      : "a warp collective";
}

}  // namespace

void arm(double seconds) {
  const int thread = (int)syscall(SYS_gettid);
  if (timer_thread != thread) {
    if (timer_thread) timer_delete(timer);
    struct sigaction action = {};
    action.sa_sigaction = on_timer;
    // The handler never returns once it has left a thread.
    action.sa_flags = SA_NODEFER | SA_RESTART | SA_SIGINFO;
    sigaction(SIGRTMIN + 7, &action, nullptr);
    struct sigevent event = {};
    event.sigev_notify = SIGEV_THREAD_ID;
    event.sigev_signo = SIGRTMIN + 7;
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif
    event.sigev_notify_thread_id = thread;
    if (timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer)) return;
    timer_thread = thread;
  }
  set_timer(seconds);
}

void report_deadlock() {
  report.fault = DEADLOCK;
  uint32_t at_barrier = 0, in_collective = 0;
  const Fiber *first = nullptr, *second = nullptr;
  for (const Block* block : resident)
    for (uint32_t i = 0; block && i < block->threads; ++i) {
      const Fiber* fiber = &block->fibers[i];
      if (fiber->state == DONE) continue;
      at_barrier += fiber->state == AT_BARRIER;
      in_collective += fiber->state == IN_COLLECTIVE;
      if (!first) first = fiber;
      else if (!second && fiber->block == first->block &&
               (fiber->line != first->line || fiber->state != first->state || fiber->mask != first->mask))
        second = fiber;
    }
  snprintf(report.text, sizeof report.text,
           "nobody can go on: %u threads wait at a barrier, %u in a warp collective; the first is in %s%s%s",
           at_barrier, in_collective, wait_of(first), second ? ", another in " : "", second ? wait_of(second) : "");
  report.sides = second ? 2 : 1;
  for (int i = 0; i < report.sides; ++i) {
    const Fiber* fiber = i ? second : first;
    report.side[i] = side_of(fiber);
    place(report.side[i], fiber->file, fiber->line);
  }
}

}  // namespace simt
