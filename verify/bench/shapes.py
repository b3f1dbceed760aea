"""What is measured: shapes, and the suites that they form."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, replace
from typing import Any

from moeproof.strategies.case import Case, CaseError, TensorSpec
from moeproof.strategies.domain import AlignDomain, AppendDomain, Domain, GateDomain
from moeproof.strategies.domain_check import why_outside
from moeproof.verify.problem import Problem

DTYPES = ("float32", "bfloat16", "float16")
NAMES = {"gate": "fused_gate", "align": "moe_align_block_size", "append": "append_shared_experts"}
"""Short names of the ops, as in labels and on the command line."""
_KEYS = {
    "E": "experts",
    "T": "tokens",
    "ids": "tokens",
    "k": "topk",
    "dtype": "dtype",
    "scoring": "scoring",
    "groups": "groups",
    "kept": "kept",
    "bias": "bias",
    "block": "block",
    "shared": "shared",
    "skewed": "skewed",
}
_CONTRACT: dict[str, Domain] = {"gate": GateDomain(), "align": AlignDomain(), "append": AppendDomain()}
_OF_OP = {
    "gate": ("E", "T", "k", "dtype", "scoring", "groups", "kept", "bias"),
    "align": ("E", "ids", "T", "k", "block", "skewed"),
    "append": ("E", "T", "k", "dtype", "shared", "skewed"),
}


class ShapeError(ValueError):
    """A shape that can't be read or makes no sense; names the part, its value and what is allowed."""


@dataclass(frozen=True)
class Shape(Problem):
    """One problem size of an op, which is a key of `NAMES`.

    Attributes
    ----------
    kept : int
        g (`gate`).
    bias : bool
        There is a correction bias, float32 (`gate`).
    block : int
        Block size (`align`).
    shared : int
        Shared experts (`append`).
    skewed : bool
        Ids follow a power law, a few experts being busy, instead of being equally likely (`align`, `append`).
    """

    kept: int = 1
    bias: bool = True
    block: int = 64
    shared: int = 1
    skewed: bool = False

    @property
    def series(self) -> str:
        """Everything but the size along the plot's axis, in words: shapes that share it make one plot."""
        parts = [f"{self.op} E={self.experts}"]
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        names = [n for n in _OF_OP[self.op] if _KEYS[n] not in ("experts", "tokens")]
        for name in names:
            value = getattr(self, _KEYS[name])
            if value != defaults[_KEYS[name]] or name == "block":
                parts.append(f"{name}={int(value) if isinstance(value, bool) else value}")
        return " ".join(parts)

    @property
    def axis(self) -> str:
        """What the plot's axis counts: ids for `align`, else tokens."""
        return "ids" if self.op == "align" else "T"

    @property
    def size(self) -> int:
        """The place on the plot's axis."""
        return self.tokens * (self.topk if self.op == "align" else 1)

    @property
    def label(self) -> str:
        """The shape in words; `parse` reads it back if a colon follows the op and commas the parts."""
        return f"{self.series} {self.axis}={self.size}"

    def case(self) -> Case:
        """Return a case of these sizes, for domains and oracles; its contents are not what is measured."""
        tokens, experts, topk = self.tokens, self.experts, self.topk
        if self.op == "gate":
            scores = {"kind": "scores", "seed": 0, "edits": [], "blocks": [_NORMAL]}
            tensors = {"logits": TensorSpec(self.dtype, (tokens, experts), recipe=scores)}
            if self.bias:
                tensors["bias"] = TensorSpec("float32", (experts,), recipe=scores)
            params: dict[str, Any] = {"topk": topk, "scoring": self.scoring, "renormalize": True}
            if self.groups > 1:
                params |= {"num_expert_group": self.groups, "topk_group": self.kept}
            return Case(NAMES[self.op], params, tensors, self.label)
        recipe = {"kind": "ids", "seed": 0, "num_experts": experts, "edits": [], "blocks": [{"pattern": "distinct"}]}
        tensors = {"topk_ids": TensorSpec("int32", (tokens, topk), recipe=recipe)}
        if self.op == "align":
            return Case(NAMES[self.op], {"num_experts": experts, "block_size": self.block}, tensors, self.label)
        weights = {"kind": "scores", "seed": 0, "edits": [], "blocks": [_NORMAL]}
        tensors["topk_weights"] = TensorSpec(self.dtype, (tokens, topk), recipe=weights)
        tensors["shared_weights"] = TensorSpec(self.dtype, (tokens, self.shared), recipe=weights)
        params = {"num_experts": experts, "num_fused_shared_experts": self.shared}
        return Case(NAMES[self.op], params, tensors, self.label)


_NORMAL = {"pattern": "normal", "center": 0.0, "scale": 1.0, "quantised": False}


def _grid(op: str, experts: tuple[int, ...], tokens: tuple[int, ...], **rest: Any) -> tuple[Shape, ...]:
    return tuple(Shape(op, t, e, **rest) for e in experts for t in tokens)


SUITES: dict[str, tuple[Shape, ...]] = {
    "gate": (
        *_grid("gate", (256, 384), (1, 8, 64, 512, 4096, 16384, 65536)),
        *_grid("gate", (256, 384), (16384, 65536), dtype="bfloat16"),
        *_grid("gate", (1024, 4096), (1, 16384)),
        # DeepSeek-V3's routing.
        *_grid("gate", (256,), (1, 512, 16384, 65536), groups=8, kept=4),
    ),
    "softmax": _grid("gate", (128,), (1, 512, 65536), scoring="softmax", bias=False),
    "align": _grid("align", (64, 256, 384, 1024, 4095), (1, 64, 1024, 8192, 65536)),
    "append": _grid("append", (256,), (1, 512, 65536)),
}
"""Shapes by suite."""


def suite(names: list[str] | tuple[str, ...]) -> list[Shape]:
    """Return the shapes of some suites, of all for none.

    Raises
    ------
    ShapeError
        If there is no such suite.
    """
    for name in names:
        if name not in SUITES:
            raise ShapeError(f"suite is {name!r}; allowed: {', '.join(SUITES)}")
    return [shape for name in dict.fromkeys(names or SUITES) for shape in SUITES[name]]


def parse(text: str) -> list[Shape]:
    """Read ``op:key=value,…``, where ``a/b`` for a value gives a shape with each.

    Parameters
    ----------
    text : str
        Such as ``gate:E=256/384,T=1`` or ``align:E=64,ids=8192``. What is not given is as in `Shape`.

    Raises
    ------
    ShapeError
        If it can't be read, or no kernel could run it.
    """
    op, _, rest = text.partition(":")
    if op not in NAMES:
        raise ShapeError(f"shape is {text!r}; allowed: OP:KEY=VALUE,… with OP one of {', '.join(NAMES)}")
    given: dict[str, list[str]] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in _OF_OP[op]:
            raise ShapeError(f"{key!r} in shape {text!r}; allowed for {op}: {', '.join(_OF_OP[op])}")
        given[key] = value.split("/")
    size = next((key for key in ("ids", "T") if key in given), None)
    if "E" not in given or size is None:
        raise ShapeError(f"shape is {text!r}; allowed: one with E and {' or '.join(('ids', 'T')[op != 'align' :])}")
    shapes = []
    for values in itertools.product(*given.values()):
        fields = {_KEYS[k]: _value(k, v) for k, v in zip(given, values, strict=True)}
        shape = Shape(op, **fields)
        if size == "ids":
            if shape.tokens % shape.topk:
                raise ShapeError(f"ids is {shape.tokens}; allowed: a multiple of k={shape.topk}")
            shape = replace(shape, tokens=shape.tokens // shape.topk)
        _check(shape)
        shapes.append(shape)
    return shapes


def _value(key: str, text: str) -> Any:
    if key == "dtype":
        if text not in DTYPES:
            raise ShapeError(f"dtype is {text!r}; allowed: {', '.join(DTYPES)}")
        return text
    if key == "scoring":
        return text
    if not text.isdecimal():
        raise ShapeError(f"{key} is {text!r}; allowed: an int")
    return bool(int(text)) if key in ("bias", "skewed") else int(text)


def _check(shape: Shape) -> None:
    if shape.tokens < 1 or shape.experts < 1 or not 1 <= shape.topk <= shape.experts:
        raise ShapeError(f"shape is {shape.label!r}; allowed: at least one token, and k from 1 to E")
    try:
        reason = why_outside(shape.case(), _CONTRACT[shape.op])
    except CaseError as error:
        reason = str(error)
    if reason is not None:
        raise ShapeError(f"shape is {shape.label!r}: {reason}")
