"""Puts a wrong row of fused_gate into words."""

from __future__ import annotations

import math

import torch


def explain_ids(ids: list[int], logical: list[int], gold: list[int], c: torch.Tensor, valid: bool) -> str:
    """Say what is wrong with a row's ids.

    Parameters
    ----------
    ids : list of int
        All ids of the row as returned.
    logical, gold : list of int
        Routed ids after undoing the expert map, and those expected.
    c : Tensor
        ``[E]`` float64 ranking scores.
    valid : bool
        The row is not padding.
    """
    if not valid:
        return f"a padded row holds ids {ids}, expected all -1"
    experts = len(c)
    if any(not 0 <= i < experts for i in logical):
        return f"ids {ids}: a routed id is not one of the {experts} experts; expected experts {gold}"
    if len(set(logical)) < len(logical):
        return f"ids {ids} repeat an expert; expected experts {gold}"
    if logical == gold:
        return f"ids {ids}: the shared places are wrong"
    place = next(p for p, (a, b) in enumerate(zip(logical, gold, strict=True)) if a != b)
    got, want = logical[place], gold[place]
    return (
        f"experts {logical}, expected {gold}: place {place} holds expert {got} (score {_show(c[got])}) "
        f"where expert {want} (score {_show(c[want])}) belongs"
    )


def explain_weight(weights: list[float], low: list[float], high: list[float], ids: list[int], valid: bool) -> str:
    """Say which weight of a row is out of its bounds."""
    if not valid:
        return f"a padded row holds weights {weights}, expected all 0"
    for place, (w, lo, hi) in enumerate(zip(weights, low, high, strict=True)):
        if not lo <= w <= hi and not (math.isinf(lo) and math.isinf(hi)):
            middle = (lo + hi) / 2
            off = f", {w / middle:.6g} times it" if middle > 0 and math.isfinite(w) else ""
            return (
                f"weight {w:.9g} at place {place} (id {ids[place]}), expected {middle:.9g} "
                f"(between {lo:.9g} and {hi:.9g}){off}"
            )
    return f"weights {weights}"


def _show(value: torch.Tensor) -> str:
    return f"{float(value):.9g}"
