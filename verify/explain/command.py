"""The command `moeproof explain`."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from moeproof.verify.messages import usage

if TYPE_CHECKING:
    from .explanation import Explanation


_out = Console(soft_wrap=True, markup=False, highlight=False)


def explain(
    op: Annotated[str, typer.Argument(help="fused_gate, moe_align_block_size or append_shared_experts.")],
    experts: Annotated[int, typer.Option("--experts", "-E", help="Number of experts.")] = 256,
    tokens: Annotated[int, typer.Option("--tokens", "-T", help="Number of tokens.")] = 1,
    topk: Annotated[int, typer.Option("--topk", "-k", help="Places a token.")] = 8,
    dtype: Annotated[str, typer.Option(help="Dtype of the logits.")] = "float32",
    scoring: Annotated[str, typer.Option(help="sigmoid, softmax or sqrtsoftplus.")] = "sigmoid",
    groups: Annotated[int, typer.Option(help="Groups of experts.")] = 1,
    bias: Annotated[bool, typer.Option("--bias/--no-bias", help="There is a correction bias.")] = True,
    alignment: Annotated[
        int | None, typer.Option(help="Bytes, up to 16, that divide the address of every row. Default: contiguous.")
    ] = None,
    strided: Annotated[bool, typer.Option("--strided", help="Neighbouring logits are apart in memory.")] = False,
    block_size: Annotated[int, typer.Option(help="Block size of the alignment.")] = 64,
    shared: Annotated[int, typer.Option(help="Shared experts to append.")] = 1,
    device: Annotated[
        str | None, typer.Option(help="GPU, or multiprocessors. Default: this machine's, else h100.")
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Compile, for registers and spills.")] = True,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say which kernel an own op runs for a shape, with what launch, and where that changes."""
    from .devices import find_device
    from .explanation import Query
    from .explanation import explain as explain_query

    query = Query(op, tokens, experts, topk, dtype, scoring, groups, bias, alignment, not strided, block_size, shared)
    try:
        found = explain_query(query, find_device(device), compiled=compiled)
    except ValueError as error:
        raise usage(str(error)) from error
    if json_output:
        sys.stdout.write(json.dumps(found.to_json(), indent=2) + "\n")
    else:
        _out.print("\n".join(_lines(found)))


def _lines(found: Explanation) -> list[str]:
    query, device = found.query, found.device
    lines = [f"{query.op}, {query.tokens} tokens, {query.experts} experts, k={query.topk}"]
    lines += [f"  device     {device.name} ({device.arch}, {device.multiprocessors} multiprocessors)"]
    lines += [f"  variant    {found.variant}"]
    for number, launch in enumerate(found.launches):
        lines.append(f"  launch     {launch.name} of kernels/{launch.file}")
        dynamic = f", {launch.shared} bytes of dynamic shared memory" if launch.shared else ""
        lines.append(f"             {launch.grid} blocks of {launch.block} threads{dynamic}")
        if found.resources:
            lines.append(f"             {_taken(found.resources[number])}")
    chosen = ", ".join(f"{k} {v}" for k, v in found.choice.items() if k not in ("file", "name", "place", "histogram"))
    lines.append(f"  choice     {chosen}")
    if found.changes:
        lines.append("  changes at (nearest size on either side)")
        lines += [f"    {c.size:8} {c.value}: {c.runs}" for c in found.changes]
    for size, values in found.thresholds.items():
        lines.append(f"  declared   {size} {', '.join(map(str, values))}")
    lines.append(f"  constants  {found.origin}")
    lines += [f"    {name} = {value}" for name, value in found.constants.items()]
    return lines


def _taken(resources: object) -> str:
    from moeproof.verify.resources import Resources

    if not isinstance(resources, Resources):
        return str(resources)
    spilled = f"spills {resources.spill_store_bytes}+{resources.spill_load_bytes} bytes"
    return (
        f"{resources.arch}: {resources.registers} registers, {resources.shared_bytes} bytes of static shared memory, "
        f"{spilled if resources.spills else 'no spills'}"
    )
