"""`moeproof lanes`: list what a lanes file declares, or say what is wrong with it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from moeproof.verify.messages import usage

DEFAULT = Path("ci/lanes.toml")


def lanes(
    file: Annotated[Path, typer.Argument(help="Lanes file.")] = DEFAULT,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check a lanes file, its subjects included, and list its lanes."""
    from moeproof.verify.subject import SubjectError

    from .reader import LanesError, load_lanes
    from .resolve import subjects_of

    try:
        found = load_lanes(file)
        subjects = {lane.name: [s.name for s in subjects_of(found, lane)] for lane in found.lanes}
    except (LanesError, SubjectError) as error:
        raise usage(str(error)) from error
    if json_output:
        data = [{**asdict(lane), "subjects": subjects[lane.name]} for lane in found.lanes]
        sys.stdout.write(json.dumps({"lanes": data}, indent=2) + "\n")
        return
    console = Console(soft_wrap=True, markup=False, highlight=False)
    for lane in found.lanes:
        budget = [f"{lane.seconds:g} s"] if lane.seconds else []
        budget += [f"{lane.cases} cases each"] if lane.cases else []
        console.print(
            Text.assemble((lane.name, "bold"), f"  weight {lane.weight:g}, {' and '.join(budget) or 'no limit'}")
        )
        for title, names in (("checks", lane.checks), ("presets", lane.presets), ("subjects", subjects[lane.name])):
            console.print(f"    {title:9} {', '.join(names)}")
