// The runtime in one translation unit, so that the checks of an access are inlined into its hook.
#include "clocks.cpp"
#include "collectives.cpp"
#include "machine.cpp"
#include "watchdog.cpp"
#include "shadow.cpp"
#include "hooks.cpp"
#include "api.cpp"
