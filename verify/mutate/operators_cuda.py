"""Faults of parallel code: barriers, fences, shuffles, votes, atomics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .operators import call, call_parts, operator, statement_call
from .source import Source

_BARRIER = re.compile(r"^(__syncthreads|__syncthreads_(count|and|or)|team_sync<.*>|\w+\.(sync|arrive_and_wait))$")
_SHUFFLES = {
    "__shfl_sync": "__shfl_up_sync",
    "__shfl_up_sync": "__shfl_down_sync",
    "__shfl_down_sync": "__shfl_up_sync",
    "__shfl_xor_sync": "__shfl_down_sync",
}
_WARP_WIDE = re.compile(r"^__(shfl|ballot|any|all|reduce|match)\w*_sync$")
_ATOMICS = {
    "atomicAdd": "old + value",
    "atomicSub": "old - value",
    "atomicMin": "old < value ? old : value",
    "atomicMax": "old > value ? old : value",
    "atomicExch": "value",
    "atomicAnd": "old & value",
    "atomicOr": "old | value",
    "atomicXor": "old ^ value",
}


@operator("A block's barrier is gone.", "expression_statement")
def _barrier_removed(node: Any, source: Source) -> Iterator[str]:
    if _BARRIER.match(statement_call(node, source)[0]):
        yield ";"


@operator("A block's barrier holds back single warps only.", "expression_statement")
def _barrier_weakened(node: Any, source: Source) -> Iterator[str]:
    if statement_call(node, source)[0] == "__syncthreads":
        yield "__syncwarp();"


@operator("A warp's barrier is gone.", "expression_statement")
def _warp_sync_removed(node: Any, source: Source) -> Iterator[str]:
    if statement_call(node, source)[0] == "__syncwarp":
        yield ";"


@operator("A warp's barrier makes each lane wait for its own half of the warp only.", "expression_statement")
def _warp_sync_weakened(node: Any, source: Source) -> Iterator[str]:
    if statement_call(node, source)[0] == "__syncwarp":
        yield "__syncwarp(threadIdx.x & 16 ? 0xffff0000u : 0x0000ffffu);"


@operator("A memory fence is gone.", "expression_statement")
def _fence_removed(node: Any, source: Source) -> Iterator[str]:
    if statement_call(node, source)[0].startswith("__threadfence"):
        yield ";"


@operator("A warp-wide operation leaves out the last lane.", "call_expression")
def _warp_mask(node: Any, source: Source) -> Iterator[str]:
    function, arguments = call_parts(node, source)
    if _WARP_WIDE.match(function) and arguments:
        yield call(function, ["0x7fffffffu", *arguments[1:]])


@operator("A shuffle takes the value of the lane beside the right one.", "call_expression")
def _shuffle_lane(node: Any, source: Source) -> Iterator[str]:
    function, arguments = call_parts(node, source)
    if function in _SHUFFLES and len(arguments) >= 3:
        yield call(function, [*arguments[:2], f"({arguments[2]}) + 1", *arguments[3:]])


@operator("A shuffle goes another way.", "call_expression")
def _shuffle_kind(node: Any, source: Source) -> Iterator[str]:
    function, arguments = call_parts(node, source)
    if function in _SHUFFLES:
        yield call(_SHUFFLES[function], arguments)


@operator("An atomic operation becomes a read and a write.", "call_expression")
def _atomic_to_plain(node: Any, source: Source) -> Iterator[str]:
    function, arguments = call_parts(node, source)
    if function in _ATOMICS and len(arguments) == 2:
        place, value = arguments
        new = _ATOMICS[function]
        yield f"[&] {{ auto* at = {place}; auto old = *at, value = {value}; *at = {new}; return old; }}()"
    elif function == "atomicCAS" and len(arguments) == 3:
        place, expected, value = arguments
        yield (f"[&] {{ auto* at = {place}; auto old = *at; if (old == {expected}) *at = {value}; return old; }}()")
