// Included before every kernel source: CUDA C++ device code as a host compiler takes it.
#pragma once

#include <assert.h>

#include "simt_sync.h"

// What the C library's assert calls, however often its header is included.
#define __assert_fail(text, file, line, function) simt_trap("assert(" text ")", file, line)
// Calls that the compiler does not see as loads and stores.
#define memcpy(to, from, size) simt_copy(to, from, size)
#define memset(to, byte, size) simt_fill(to, byte, size)
namespace std {
using ::simt_copy;
using ::simt_fill;
}  // namespace std

// A word for each parameter of a kernel: its kind, and its bytes.
template <class T>
constexpr char simt_kind() {
  return std::is_pointer<T>::value          ? 'p'
         : std::is_floating_point<T>::value ? 'f'
         : !std::is_integral<T>::value      ? 's'
         : std::is_signed<T>::value         ? 'i'
                                            : 'u';
}
#define SIMT_OUTSIDE __attribute__((no_sanitize("thread", "undefined")))  // runs outside a launch
template <class... A>
SIMT_OUTSIDE static const char* simt_signature(void (*)(A...)) {
  static char text[16 * sizeof...(A) + 1];
  char* at = text;
  ((at += snprintf(at, 16, "%c%zu ", simt_kind<std::remove_cv_t<A>>(), sizeof(A))), ...);
  return text;
}

// One thread's way into a kernel: arguments as the driver's array of pointers to them.
template <class... A>
struct SimtEntry {
  template <size_t... I>
  SIMT_OUTSIDE static void call(void (*kernel)(A...), void** arguments,
                                                                       std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A>*)arguments[I]...);
  }
};
template <class... A>
SIMT_OUTSIDE static void simt_call(void (*kernel)(A...), void** arguments) {
  SimtEntry<A...>::call(kernel, arguments, std::index_sequence_for<A...>());
}
