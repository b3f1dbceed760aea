"""What a subject claims to support, as data: strategies draw inside it, checks test its edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .case import Case

FLOATS = ("float32", "bfloat16", "float16")
LAYOUTS = ("contiguous", "row_stride", "offset", "transposed", "broadcast")
SCORINGS = ("sigmoid", "softmax", "sqrtsoftplus")

Extra = Callable[["Case"], str | None]


@dataclass(frozen=True)
class GateDomain:
    """Cases of `fused_gate` that a subject claims to support.

    Attributes
    ----------
    experts : sequence of int
        Allowed E; a `range` for an interval, a tuple for a list.
    topk : range
        Allowed k, shared places included.
    logits_dtypes, bias_dtypes : tuple of str
        Allowed dtypes, without the ``torch.`` prefix.
    bias_same_dtype : bool
        The bias must have the dtype of the logits.
    bias : str
        ``"optional"``, ``"required"`` or ``"none"``.
    scorings : tuple of str
        Allowed scoring functions.
    groups : str or tuple of (G, g)
        ``"any"``, ``"none"`` (G = 1 only) or the allowed pairs.
    max_experts_per_group, max_groups : int
        Bounds that go with ``groups="any"``.
    max_routed : callable, optional
        Returns the most routed places for G and g, where those are fewer than the experts kept.
    shared : range
        Allowed S.
    renormalize, scale_on_output : tuple of bool
        Allowed values of the flags.
    scale : bool
        A `routed_scaling_factor` other than 1 is supported.
    padding, expert_map : bool
        The optional tensors are supported.
    layouts : tuple of str
        Memory layouts of `logits`: see `LAYOUTS`.
    nan, inf : bool
        Rows with NaN or infinite logits (or bias) are supported.
    tokens : range
        Allowed T.
    thresholds : dict
        Sizes at which the subject switches path, by ``"tokens"``, ``"experts"`` or ``"topk"``.
    extra : callable, optional
        Says why a case is outside the domain where the fields above can't, or None.
    """

    experts: Sequence[int] = range(1, 4097)
    topk: range = range(1, 33)
    logits_dtypes: tuple[str, ...] = FLOATS
    bias_dtypes: tuple[str, ...] = FLOATS
    bias_same_dtype: bool = False
    bias: str = "optional"
    scorings: tuple[str, ...] = SCORINGS
    groups: str | tuple[tuple[int, int], ...] = "any"
    max_experts_per_group: int = 4096
    max_groups: int = 4096
    max_routed: Callable[[int, int], int] | None = None
    shared: range = range(9)
    renormalize: tuple[bool, ...] = (True, False)
    scale_on_output: tuple[bool, ...] = (False, True)
    scale: bool = True
    padding: bool = True
    expert_map: bool = True
    layouts: tuple[str, ...] = LAYOUTS
    nan: bool = True
    inf: bool = True
    tokens: range = range(2**31)
    thresholds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    extra: Extra | None = None


@dataclass(frozen=True)
class AlignDomain:
    """Cases of `moe_align_block_size` that a subject claims to support.

    Attributes
    ----------
    experts : sequence of int
        Allowed E.
    block_sizes : sequence of int
        Allowed B.
    topk : range
        Allowed k.
    ids_dtypes : tuple of str
        Allowed dtypes of `topk_ids`.
    minus_one : bool
        Ids of −1 are supported.
    out_of_range : bool
        Ids outside [−1, E−1] are supported (dropped).
    expert_map : bool
        The optional tensor is supported.
    layouts : tuple of str
        Memory layouts of `topk_ids`.
    tokens : range
        Allowed T.
    max_ids : int
        Largest T·k.
    thresholds : dict
        Sizes at which the subject switches path, by ``"ids"`` or ``"experts"``.
    extra : callable, optional
        Says why a case is outside the domain where the fields above can't, or None.
    """

    experts: Sequence[int] = range(1, 4097)
    block_sizes: Sequence[int] = range(1, 1025)
    topk: range = range(1, 33)
    ids_dtypes: tuple[str, ...] = ("int32", "int64")
    minus_one: bool = True
    out_of_range: bool = True
    expert_map: bool = True
    layouts: tuple[str, ...] = LAYOUTS
    tokens: range = range(2**31)
    max_ids: int = 2**30
    thresholds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    extra: Extra | None = None


@dataclass(frozen=True)
class AppendDomain:
    """Cases of `append_shared_experts` that a subject claims to support.

    Attributes
    ----------
    topk, shared : range
        Allowed k and S.
    ids_dtypes, weights_dtypes, shared_dtypes : tuple of str
        Allowed dtypes.
    shared_forms : tuple of str
        Allowed forms of `shared_weights`: ``"matrix"`` ([T, S]), ``"vector"`` ([T]), ``"scalar"``.
    padding : bool
        `num_token_non_padded` is supported.
    layouts : tuple of str
        Memory layouts of the inputs.
    tokens : range
        Allowed T.
    thresholds : dict
        Sizes at which the subject switches path, by ``"tokens"``.
    extra : callable, optional
        Says why a case is outside the domain where the fields above can't, or None.
    """

    topk: range = range(1, 33)
    shared: range = range(1, 9)
    ids_dtypes: tuple[str, ...] = ("int32", "int64")
    weights_dtypes: tuple[str, ...] = FLOATS
    shared_dtypes: tuple[str, ...] = FLOATS
    shared_forms: tuple[str, ...] = ("matrix", "vector", "scalar")
    padding: bool = True
    layouts: tuple[str, ...] = LAYOUTS
    tokens: range = range(2**31)
    thresholds: dict[str, tuple[int, ...]] = field(default_factory=dict)
    extra: Extra | None = None


Domain = GateDomain | AlignDomain | AppendDomain
