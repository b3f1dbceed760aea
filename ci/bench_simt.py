"""Measures the SIMT executor: gate examples a second of one core's time, fully checked.

Usage: bench_simt.py [--cases N] [--out FILE.json]

An example is a generated case: two launches with different poisons and schedules, every access checked, judged by
the oracle. `launches` counts launches alone, `judged` examples as the harness runs them, `loop` also draws them.
Kernels are built before anything is timed. Processor time is counted, so a busy machine does not show.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moeproof.strategies.case import Case
from moeproof.strategies.domain import GateDomain
from moeproof.verify.contract import arguments, output_specs
from moeproof.verify.execute import Runner
from moeproof.verify.explore import explore, inside
from moeproof.verify.guard import POISONS, carve
from moeproof.verify.simt import own, toolchain

SHAPES = {"T<=8 E=64": (range(1, 9), 64), "T=32 E=384": (range(32, 33), 384)}
WANTED = {"T<=8 E=64": 300, "T=32 E=384": 60}
"""Examples a second that the loop is built for."""
WARM_UP = 8


def usual(domain: GateDomain) -> GateDomain:
    """Return the part of a domain that models use: k = 8, contiguous float32 and bfloat16 logits, all flags."""
    return replace(domain, topk=range(8, 9), shared=range(2), layouts=("contiguous",), groups=((1, 1), (8, 4)))


def measure(domain: GateDomain, tokens: range, experts: int, count: int) -> dict[str, float]:
    """Return launches, judged examples and loop turns a second of processor time."""
    subject = own("fused_gate")
    runner = Runner(subject, torch.device("cpu"))
    strategy = inside("fused_gate", replace(domain, tokens=tokens, experts=(experts,)), max_elements=1 << 15)
    cases: list[Case] = []
    explore(strategy, cases.append, start=1, count=count + WARM_UP)
    for case in cases:
        outcome = runner.run(case)
        if outcome.violations:
            raise SystemExit(f"a case fails: {outcome.violations[0]}\n{case.dumps()}")
    begin = time.process_time()
    for case in cases:
        runner.run(case)
    judged = len(cases) / (time.process_time() - begin)
    built = []
    for case in cases:
        tensors, _ = case.build("cpu")
        built.append((arguments(case, tensors), carve(output_specs(case, subject), "cpu", POISONS[0]).outputs))
    begin = time.process_time()
    for args, outputs in built:
        runner.call(args, outputs)
    launches = len(cases) / (time.process_time() - begin)
    begin = time.process_time()
    explore(strategy, runner.run, start=1, count=count + WARM_UP)
    loop = len(cases) / (time.process_time() - begin)
    return {"launches": round(launches, 1), "judged": round(judged, 1), "loop": round(loop, 1)}


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    whole = own("fused_gate").domain
    assert isinstance(whole, GateDomain)
    results: list[dict[str, Any]] = []
    for name, (tokens, experts) in SHAPES.items():
        for kind, domain in (("usual", usual(whole)), ("any", whole)):
            rates = measure(domain, tokens, experts, options.cases)
            results.append({"shape": name, "cases": kind, **rates, "wanted": WANTED[name]})
    print(f"{platform.machine()}, {toolchain.compiler().version}, torch {torch.__version__}, a second of one core")
    print(f"{'shape':12} {'cases':6} {'launches':>9} {'judged':>8} {'loop':>8} {'wanted':>8}")
    for r in results:
        print(f"{r['shape']:12} {r['cases']:6} {r['launches']:9} {r['judged']:8} {r['loop']:8} {r['wanted']:8}")
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
