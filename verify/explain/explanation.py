"""Explains dispatch: variant, launches, resources, neighbouring thresholds, constants. Pure but for compiling."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

from moeproof.kernels import align_plan, append_shared_experts, gate_plan
from moeproof.kernels.compiler import CompileError
from moeproof.kernels.tuning import gate_tuning
from moeproof.kernels.validate import MAX_EXPERTS, MAX_PLACES
from moeproof.verify.problem import Problem
from moeproof.verify.resources import Resources, measure

from .devices import Device
from .switches import nearest

MAX_TOKENS = 1 << 22
"""How far up changes are looked for."""


@dataclass(frozen=True)
class Query(Problem):
    """What is asked about.

    Attributes
    ----------
    bias : bool
        There is a correction bias (`fused_gate`).
    alignment : int, optional
        Largest power of two, up to 16, that divides the address of every row (`fused_gate`); None: rows are
        contiguous and the first one is aligned.
    unit_stride : bool
        Neighbouring experts are neighbours in memory (`fused_gate`).
    block_size : int
        B (`moe_align_block_size`).
    shared : int
        S (`append_shared_experts`).
    """

    bias: bool = False
    alignment: int | None = None
    unit_stride: bool = True
    block_size: int = 64
    shared: int = 1


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Attributes
    ----------
    file, name : str
        Source file and instantiation.
    grid, block : int
        Blocks, and threads a block.
    shared : int
        Bytes of dynamic shared memory a block.
    """

    file: str
    name: str
    grid: int
    block: int
    shared: int = 0


@dataclass(frozen=True)
class Change:
    """The nearest size at which something else runs.

    Attributes
    ----------
    size : str
        ``"tokens"``, ``"ids"``, ``"experts"`` or ``"topk"``.
    value : int
        The nearest size on one side at which something else runs.
    runs : str
        What runs there.
    """

    size: str
    value: int
    runs: str


@dataclass(frozen=True)
class Explanation:
    """Everything that is said of a query.

    Attributes
    ----------
    query : Query
        As asked.
    device : Device
        For which device.
    variant : str
        Name of the variant.
    choice : dict
        The plan, field by field.
    launches : tuple of Launch
        In order.
    resources : tuple of Resources or str
        Of each launch; a text says why there are none.
    thresholds : dict
        Sizes that the plan declares as switching points, by kind; the fuzzer's strategies test both sides.
    changes : tuple of Change
        What the plan itself says of the neighbourhood.
    constants : dict
        Tuning constants of the plan.
    origin : str
        Where the constants are from.
    """

    query: Query
    device: Device
    variant: str
    choice: dict[str, Any]
    launches: tuple[Launch, ...]
    resources: tuple[Resources | str, ...]
    thresholds: dict[str, tuple[int, ...]]
    changes: tuple[Change, ...]
    constants: dict[str, Any]
    origin: str

    def to_json(self) -> dict[str, Any]:
        """Return the explanation as JSON data."""
        data = asdict(self)
        data["constants"] = {name: _plain(value) for name, value in self.constants.items()}
        return data


def explain(query: Query, device: Device, *, compiled: bool = True) -> Explanation:
    """Explain what a call runs.

    Parameters
    ----------
    query : Query
        The call.
    device : Device
        Where it runs.
    compiled : bool
        Compile its kernels to say what they take.

    Raises
    ------
    ValueError
        If the op does not take such a call; names the argument, its value and what is allowed.
    """
    if query.op not in _OPS:
        raise ValueError(f"op is {query.op!r}; allowed: {', '.join(_OPS)}")
    _check(query)
    variant, choice, launches = _OPS[query.op](query, device)
    module = _MODULES[query.op]
    resources: tuple[Resources | str, ...] = ()
    if compiled:
        resources = tuple(_resources(launch, device) for launch in launches)
    constants = {name: value for name, value in vars(module).items() if _is_constant(name, value)}
    origin = f"kernels/{module.__name__.rpartition('.')[2]}.py, one set for every device"
    if query.op == "fused_gate":
        tuned, source = gate_tuning(device.name)
        constants |= asdict(tuned)
        origin += f"; {source}"
    return Explanation(
        query,
        device,
        variant,
        choice,
        launches,
        resources,
        dict(getattr(module, "THRESHOLDS", {})),
        tuple(_changes(query, device)),
        constants,
        origin,
    )


Planned = tuple[str, dict[str, Any], tuple[Launch, ...]]


def _gate(query: Query, device: Device) -> Planned:
    step = query.experts * (4 if query.dtype == "float32" else 2) if query.tokens > 1 else 16
    chosen = gate_plan.plan(
        query.tokens,
        query.experts,
        dtype=query.dtype,
        scoring=query.scoring,
        biased=query.bias,
        groups=query.groups,
        places=query.topk,
        unit_stride=query.unit_stride,
        alignment=min(16, step & -step) if query.alignment is None else query.alignment,
        sm_count=device.multiprocessors,
        device=device.name,
    )
    launch = Launch(chosen.file, chosen.name, chosen.grid, chosen.block)
    return chosen.variant, asdict(chosen), (launch,)


def _align(query: Query, device: Device) -> Planned:
    file, threads = "align_block_size.cu", align_plan.THREADS
    chosen = align_plan.plan(
        query.tokens * query.topk,
        query.experts,
        query.block_size,
        sm_count=device.multiprocessors,
        capability=device.capability,
    )
    launches = [Launch(file, chosen.place, chosen.grid, threads, chosen.shared)]
    if chosen.histogram:
        blocks = -(-query.experts // align_plan.SCAN_EXPERTS)
        launches.insert(0, Launch(file, "scan_tiles", blocks, align_plan.SCAN_THREADS))
        launches.insert(0, Launch(file, chosen.histogram, chosen.tiles, threads, chosen.histogram_shared))
    return chosen.variant, asdict(chosen), tuple(launches)


def _append(query: Query, device: Device) -> Planned:
    rows = append_shared_experts.rows_per_program(query.tokens)
    launch = Launch("append_kernel.py", "append_rows", -(-query.tokens // rows), 128)
    variant = "few" if rows == append_shared_experts.FEW_ROWS else "many"
    return variant, {"rows_a_program": rows, "places_at_a_time": append_shared_experts.PLACES}, (launch,)


_OPS: dict[str, Callable[[Query, Device], Planned]] = {
    "fused_gate": _gate,
    "moe_align_block_size": _align,
    "append_shared_experts": _append,
}
_MODULES: dict[str, ModuleType] = {
    "fused_gate": gate_plan,
    "moe_align_block_size": align_plan,
    "append_shared_experts": append_shared_experts,
}


def _check(query: Query) -> None:
    """Refuse what the op refuses."""
    bounds = {"tokens": (1, None), "experts": (1, MAX_EXPERTS), "block_size": (1, None), "shared": (1, None)}
    bounds["topk"] = (1, min(query.experts, MAX_PLACES) if query.op == "fused_gate" else None)
    for name, (low, high) in bounds.items():
        value = getattr(query, name)
        if value < low or (high is not None and value > high):
            allowed = f"at least {low}" if high is None else f"{low} to {high}"
            raise ValueError(f"{name} is {value}; allowed: {allowed}")
    for name, allowed_values in (("dtype", gate_plan.DTYPES), ("scoring", gate_plan.SCORINGS)):
        if getattr(query, name) not in allowed_values:
            raise ValueError(f"{name} is {getattr(query, name)!r}; allowed: {', '.join(allowed_values)}")
    if query.groups < 1 or query.experts % query.groups:
        raise ValueError(f"groups is {query.groups}; allowed: a divisor of {query.experts} experts")
    if query.alignment is not None and query.alignment not in (1, 2, 4, 8, 16):
        raise ValueError(f"alignment is {query.alignment}; allowed: 1, 2, 4, 8, 16")


def _resources(launch: Launch, device: Device) -> Resources | str:
    if not launch.file.endswith(".cu"):
        return "compiled by Triton at the first call"
    try:
        return measure(launch.file, launch.name, device.arch)
    except CompileError as error:
        return str(error)


def _changes(query: Query, device: Device) -> list[Change]:
    """Return the nearest changes below and above, for each size that the plan looks at.

    Numbers of experts are tried that vectors of the same length divide: others take another path at once.
    """
    _, choice, _ = _OPS[query.op](query, device)
    alike = math.lcm(query.groups, choice.get("vector", 1))

    def runs(size: str, value: int) -> Hashable | None:
        there = replace(query, **{size: value})  # type: ignore[arg-type]
        try:
            _check(there)
            variant, _, launches = _OPS[query.op](there, device)
        except ValueError:
            return None
        # Teams of another size run the same code: what changes is the block, not the grid.
        return ", then ".join(f"{launch.name} ({variant}, {launch.block} threads)" for launch in launches)

    sizes: dict[str, tuple[int, int, int]] = {"tokens": (1, MAX_TOKENS, 1)}
    if query.op != "append_shared_experts":
        sizes["experts"] = (1, MAX_EXPERTS, alike)
    if query.op == "fused_gate":
        sizes["topk"] = (1, min(query.experts, MAX_PLACES), 1)
    found = []
    for size, (first, last, step) in sizes.items():
        at = getattr(query, size)
        for end in (first, last):
            switch = nearest(partial(runs, size), at, end, step)
            if switch is not None:
                found.append(Change(size, switch.size, str(switch.choice)))
    return found


def _is_constant(name: str, value: object) -> bool:
    """Tell tuning constants from a module's other names: numbers, or tables of numbers."""
    if not name.isupper() or name.startswith("_") or name == "THRESHOLDS":
        return False
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, tuple) else (value,)
    return all(isinstance(part, int | tuple) for part in parts)


def _plain(value: Any) -> Any:
    return {str(k): _plain(v) for k, v in value.items()} if isinstance(value, dict) else value
