"""Planted wrong subjects, each of which must be found, and right ones, none of which may be flagged."""

from . import align_wrong, append_wrong, gate_memory, gate_selection, gate_values, variance
from .entry import Entry
from .right import RIGHT

WRONG: list[Entry] = [
    entry
    for module in (gate_selection, gate_values, gate_memory, align_wrong, append_wrong, variance)
    for entry in module.WRONG
]

__all__ = ["RIGHT", "WRONG", "Entry"]
