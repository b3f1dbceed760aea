#pragma once

#include "simt_small_float.h"

SIMT_SMALL_FLOAT(__nv_bfloat16, __nv_bfloat162, bfloat16, simt_bfloat_to_float, simt_float_to_bfloat)
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;
