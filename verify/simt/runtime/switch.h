// The hand-written switch between fibers: saves what a call preserves, swaps stack pointers, restores.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" void simt_switch(void** from, void* to);

namespace simt {

// Words that a new fiber's stack starts with: zeroes to restore, then where to go.
#if defined(__x86_64__)
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");

inline void* first_frame(char* top, void (*start)()) {
  uint64_t* frame = (uint64_t*)top - 2;  // a function starts 8 bytes off a multiple of 16
  frame[0] = (uint64_t)(uintptr_t)start;
  frame[1] = 0;
  frame -= 6;
  for (int i = 0; i < 6; ++i) frame[i] = 0;
  return frame;
}
#elif defined(__aarch64__)
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, %function
simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size simt_switch, .-simt_switch
)");

inline void* first_frame(char* top, void (*start)()) {
  uint64_t* frame = (uint64_t*)top - 20;
  for (int i = 0; i < 20; ++i) frame[i] = 0;
  frame[11] = (uint64_t)(uintptr_t)start;  // x30
  return frame;
}
#else
#error "the switch between fibers is written for x86-64 and AArch64"
#endif

}  // namespace simt
