"""A page of this process at a fixed address, through which instrumented kernels and the harness talk.

It holds the number of the mutant that is switched on, and a mark for each branch that a case has taken. The kernels
reach it with single instructions in assembly, so no sanitizer sees it and a compiler may read the number once for all.
"""

from __future__ import annotations

import ctypes
import mmap

ADDRESS = 0x5000_0000_0000
"""Where the page is: free in every Linux process, and the same in all, so that builds can be cached."""
FIRST_MARK = 4096
SIZE = 1 << 16
MARKS = SIZE - FIRST_MARK

PROLOGUE = f"""\
#pragma GCC system_header
#ifndef MOEPROOF_FLAGS
#define MOEPROOF_FLAGS
static inline __attribute__((always_inline)) bool moeproof_is(int mutant) {{
  int chosen;
#if defined(__aarch64__)
  asm("ldr %w0, [%1]" : "=r"(chosen) : "r"({ADDRESS:#x}ull));
#else
  asm("movl (%1), %0" : "=r"(chosen) : "r"({ADDRESS:#x}ull));
#endif
  return chosen == mutant;
}}
static inline __attribute__((always_inline)) void moeproof_reach(int mark) {{
#if defined(__aarch64__)
  asm volatile("strb %w1, [%0]" : : "r"({ADDRESS + FIRST_MARK:#x}ull + mark), "r"(1));
#else
  asm volatile("movb $1, (%0)" : : "r"({ADDRESS + FIRST_MARK:#x}ull + mark));
#endif
}}
#endif
#line 1
"""
"""What every instrumented file starts with. No warnings: mutants earn many."""

_FIXED_NOREPLACE = 0x100000


class Flags:
    """The page, mapped; no mutant is on and no mark set."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _FIXED_NOREPLACE
        at = libc.mmap(ADDRESS, SIZE, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if at != ADDRESS:
            raise OSError(ctypes.get_errno(), f"no memory can be mapped at {ADDRESS:#x}")
        self._chosen = ctypes.c_int.from_address(ADDRESS)
        self._marks = (ctypes.c_ubyte * MARKS).from_address(ADDRESS + FIRST_MARK)

    def choose(self, mutant: int) -> None:
        """Switch a mutant on, and all others off; 0: none."""
        self._chosen.value = mutant

    def take(self) -> list[int]:
        """Return the marks that are set, and clear them."""
        found = [at for at, byte in enumerate(bytes(self._marks)) if byte]
        ctypes.memset(ADDRESS + FIRST_MARK, 0, MARKS)
        return found
