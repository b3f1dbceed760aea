"""What is common to a shape that is measured and to one that is explained."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A call of an op, by its sizes.

    Attributes
    ----------
    op : str
        Which op.
    tokens, experts, topk : int
        T, E and k.
    dtype : str
        Of the logits (`fused_gate`) or of the weights (`append_shared_experts`).
    scoring : str
        Scoring function (`fused_gate`).
    groups : int
        G (`fused_gate`).
    """

    op: str
    tokens: int
    experts: int
    topk: int = 8
    dtype: str = "float32"
    scoring: str = "sigmoid"
    groups: int = 1
