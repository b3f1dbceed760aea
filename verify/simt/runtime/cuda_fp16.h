#pragma once

#include "simt_small_float.h"

SIMT_SMALL_FLOAT(__half, __half2, half, simt_half_to_float, simt_float_to_half)
using half = __half;
using half2 = __half2;
