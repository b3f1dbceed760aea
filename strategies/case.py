"""A case: one concrete input of an op, as data that JSON can hold and that is replayed for ever.

A case knows nothing of Hypothesis. Its tensors are either literal (a few rows, repeated if need be) or a recipe
that `expand` turns into the same bits on every device and with every version of torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from .expand import check_recipe, expand

FORMAT = 1
OPS = ("fused_gate", "moe_align_block_size", "append_shared_experts")
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int32": torch.int32,
    "int64": torch.int64,
}
MAX_BYTES = 8 << 30
"""Largest storage that a case may ask for, all its tensors together."""
MAX_LITERALS = 1 << 20
"""Largest number of literal values in one tensor."""
GUARD_BYTES = 512
"""Bait before and after each input: keeps the allocation's alignment, catches reads and writes past the end."""
BAIT = {torch.int32: 1, torch.int64: 1}
BAIT_FLOAT = 12352.0
"""Fills the memory around a float input. Exact in every dtype and larger than any sane logit, so reading it shows."""

_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class CaseError(ValueError):
    """A case that is malformed, or too large to be built."""


@dataclass(frozen=True)
class TensorSpec:
    """One input tensor.

    Attributes
    ----------
    dtype : str
        A key of `DTYPES`.
    shape : tuple of int
        Shape, up to two dimensions.
    rows : tuple, optional
        Literal contents: a flat tuple of numbers for a 1-d or 0-d tensor, a tuple of rows for a 2-d one. Fewer
        entries than ``shape[0]`` are repeated cyclically.
    recipe : mapping, optional
        Contents as `expand` makes them. Exactly one of `rows` and `recipe` is given.
    strides : tuple of int, optional
        Strides in elements; None is contiguous. Stride 0 on the first dimension repeats row 0.
    offset : int
        Elements between an aligned address and the first element.
    """

    dtype: str
    shape: tuple[int, ...]
    rows: tuple[Any, ...] | None = None
    recipe: Mapping[str, Any] | None = None
    strides: tuple[int, ...] | None = None
    offset: int = 0

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        if self.dtype not in DTYPES:
            raise CaseError(f"dtype is {self.dtype!r}; allowed: {', '.join(DTYPES)}")
        if len(self.shape) > 2 or any(not _is_int(n) or n < 0 for n in self.shape):
            raise CaseError(f"shape is {self.shape!r}; allowed: at most two sizes, none negative")
        if (self.rows is None) == (self.recipe is None):
            raise CaseError("a tensor has either rows or a recipe, exactly one of them")
        if not _is_int(self.offset) or self.offset < 0:
            raise CaseError(f"offset is {self.offset!r}; allowed: an int >= 0")
        if self.strides is not None and (
            len(self.strides) != len(self.shape) or any(not _is_int(s) or s < 0 for s in self.strides)
        ):
            raise CaseError(f"strides are {self.strides!r}; allowed: one int >= 0 for each of {self.shape}")
        if self.storage_elements * DTYPES[self.dtype].itemsize > MAX_BYTES:
            raise CaseError(f"a tensor of shape {self.shape} needs more than the {MAX_BYTES} bytes allowed")
        if self.rows is not None:
            self._check_rows(self.rows)
        else:
            try:
                check_recipe(self.recipe or {})
            except ValueError as error:
                raise CaseError(str(error)) from error

    def _check_rows(self, rows: tuple[Any, ...]) -> None:
        width = self.shape[1] if len(self.shape) == 2 else 1
        if len(rows) * max(width, 1) > MAX_LITERALS:
            raise CaseError(f"{len(rows)} literal rows of {width}; allowed: {MAX_LITERALS} values")
        if math.prod(self.shape) and not rows:
            raise CaseError(f"rows are empty; allowed for shape {self.shape}: at least one")
        for row in rows:
            values = row if len(self.shape) == 2 else (row,)
            if not isinstance(values, tuple) or len(values) != width:
                raise CaseError(f"a literal row is {row!r:.80}; allowed: {width} numbers")
            for value in values:
                if type(value) not in (int, float):
                    raise CaseError(f"a literal is {value!r:.80}; allowed: a number, 'nan', 'inf' or '-inf'")
                if not self.dtype.startswith("f") and not self.dtype.startswith("b") and not _is_int(value):
                    raise CaseError(f"a literal is {value!r}; allowed for {self.dtype}: an int")

    @property
    def storage_elements(self) -> int:
        """Elements from the aligned address to one past the last element that the tensor reaches."""
        if not math.prod(self.shape):
            return self.offset
        strides = self.strides if self.strides is not None else contiguous_strides(self.shape)
        return self.offset + 1 + sum((n - 1) * s for n, s in zip(self.shape, strides, strict=True))

    def contents(self, device: torch.device | str) -> torch.Tensor:
        """Return a contiguous tensor of `shape` with the contents, on `device`."""
        dtype = DTYPES[self.dtype]
        if self.recipe is not None:
            return expand(self.recipe, self.shape, dtype, torch.device(device))
        if not math.prod(self.shape):
            return torch.empty(self.shape, dtype=dtype, device=device)
        # float64 holds every literal of the float dtypes exactly.
        wide = torch.float64 if dtype.is_floating_point else torch.int64
        block = torch.tensor(self.rows, dtype=wide).to(dtype).to(device)
        if not self.shape:
            return block.reshape(())
        block = block.reshape(-1, *self.shape[1:])
        if len(block) == self.shape[0]:
            return block
        index = torch.arange(self.shape[0], device=device) % block.shape[0]
        return block[index].contiguous()

    def build(self, device: torch.device | str, guard: int = GUARD_BYTES) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tensor as the subject sees it, and the storage that holds it with `guard` bytes around it."""
        dtype = DTYPES[self.dtype]
        guard //= dtype.itemsize
        bait = BAIT_FLOAT if dtype.is_floating_point else BAIT[dtype]
        storage = torch.full((guard + self.storage_elements + guard,), bait, dtype=dtype, device=device)
        strides = self.strides if self.strides is not None else contiguous_strides(self.shape)
        view = storage.as_strided(self.shape, strides, guard + self.offset)
        contents = self.contents(device)
        if math.prod(self.shape):
            if 0 in strides and len(self.shape) == 2 and strides[0] == 0:
                storage.as_strided(self.shape[1:], strides[1:], guard + self.offset).copy_(contents[0])
            else:
                view.copy_(contents)
        return view, storage

    def to_json(self) -> dict[str, Any]:
        """Return the spec as JSON data."""
        data: dict[str, Any] = {"dtype": self.dtype, "shape": list(self.shape)}
        if self.rows is not None:
            data["rows"] = plain(self.rows)
        else:
            data["recipe"] = plain(dict(self.recipe or {}))
        if self.strides is not None:
            data["strides"] = list(self.strides)
        if self.offset:
            data["offset"] = self.offset
        return data

    @classmethod
    def from_json(cls, data: Any) -> TensorSpec:
        """Read a spec from JSON data, refusing what is malformed."""
        fields = _fields(data, "tensor", {"dtype", "shape"}, {"rows", "recipe", "strides", "offset"})
        for name in ("shape", "rows", "strides"):
            if name in fields:
                if not isinstance(fields[name], list):
                    raise CaseError(f"{name} is {fields[name]!r:.80}; allowed: a list")
                fields[name] = _frozen(fields[name])
        if "recipe" in fields:
            if not isinstance(fields["recipe"], dict):
                raise CaseError(f"recipe is {fields['recipe']!r:.80}; allowed: an object")
            fields["recipe"] = _revived(fields["recipe"])
        return cls(**fields)


@dataclass(frozen=True)
class Case:
    """One concrete input of an op.

    Attributes
    ----------
    op : str
        One of `OPS`.
    params : mapping
        The op's plain arguments, by name, as docs/contracts.md lists them.
    tensors : mapping of str to TensorSpec
        The op's tensor arguments, by name; an optional one that is absent is not passed.
    note : str
        What the case is for, one line.
    """

    op: str
    params: Mapping[str, bool | int | float | str]
    tensors: Mapping[str, TensorSpec]
    note: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise CaseError(f"op is {self.op!r}; allowed: {', '.join(OPS)}")
        size = sum(t.storage_elements * DTYPES[t.dtype].itemsize for t in self.tensors.values())
        if size > MAX_BYTES:
            raise CaseError(f"the case needs {size} bytes of input; allowed: {MAX_BYTES}")

    @property
    def main(self) -> TensorSpec:
        """The tensor with a row for each token that every case of the op has."""
        return self.tensors["logits" if self.op == "fused_gate" else "topk_ids"]

    def but(self, **changes: Any) -> Case:
        """Return a copy with params or tensors replaced by name; a tensor set to None is left out."""
        params, tensors = dict(self.params), dict(self.tensors)
        for name, value in changes.items():
            if isinstance(value, TensorSpec):
                tensors[name] = value
            elif value is None:
                tensors.pop(name, None)
            else:
                params[name] = value
        return replace(self, params=params, tensors=tensors)

    def to_json(self) -> dict[str, Any]:
        """Return the case as JSON data."""
        data: dict[str, Any] = {"moeproof_case": FORMAT, "op": self.op}
        if self.note:
            data["note"] = self.note
        data["params"] = plain(dict(self.params))
        data["tensors"] = {name: spec.to_json() for name, spec in self.tensors.items()}
        return data

    def dumps(self) -> str:
        """Return the case as JSON text, one tensor row a line."""
        return _pretty(self.to_json()) + "\n"

    @classmethod
    def from_json(cls, data: Any) -> Case:
        """Read a case from JSON data, refusing what is malformed or too large."""
        fields = _fields(data, "case", {"moeproof_case", "op", "params", "tensors"}, {"note"})
        version = fields.pop("moeproof_case")
        if version != FORMAT:
            raise CaseError(f"moeproof_case is {version!r}; this version reads format {FORMAT}")
        params, tensors = fields["params"], fields["tensors"]
        if not isinstance(params, dict) or not isinstance(tensors, dict):
            raise CaseError("params and tensors must be objects")
        for name, value in params.items():
            if type(value) not in (bool, int, float, str):
                raise CaseError(f"params.{name} is {value!r:.80}; allowed: a bool, number or string")
        if not isinstance(fields.get("note", ""), str):
            raise CaseError("note must be a string")
        fields["params"] = {name: _revived(value) for name, value in params.items()}
        fields["tensors"] = {name: TensorSpec.from_json(spec) for name, spec in tensors.items()}
        return cls(**fields)

    @classmethod
    def loads(cls, text: str) -> Case:
        """Read a case from JSON text."""
        try:
            data = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise CaseError(f"not JSON: {error}") from error
        return cls.from_json(data)

    def build(
        self, device: torch.device | str, guard: int = GUARD_BYTES
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return the tensors as the subject sees them, and their storages with bait around them, by name."""
        built = {name: spec.build(device, guard) for name, spec in self.tensors.items()}
        return {n: view for n, (view, _) in built.items()}, {n: storage for n, (_, storage) in built.items()}


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a contiguous tensor of `shape`."""
    return tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))


def literal(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return a tensor's contents as `TensorSpec.rows` holds them."""
    values = tensor.detach().cpu()
    wide = values.double() if values.is_floating_point() else values
    listed = wide.reshape(-1).tolist() if wide.dim() < 2 else wide.tolist()
    return _frozen(listed)


def _is_int(value: object) -> bool:
    return type(value) is int


def _fields(data: Any, what: str, required: set[str], optional: set[str]) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise CaseError(f"a {what} is {data!r:.80}; allowed: an object")
    if missing := required - data.keys():
        raise CaseError(f"a {what} lacks {', '.join(sorted(missing))}")
    if unknown := data.keys() - required - optional:
        raise CaseError(f"a {what} has unknown fields: {', '.join(sorted(map(str, unknown)))}")
    return dict(data)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else _revived(value)


def _revived(value: Any) -> Any:
    """Turn the strings that stand for NaN and infinities back into floats, in lists and objects too."""
    if isinstance(value, dict):
        return {k: _revived(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_revived(v) for v in value]
    return _SPECIAL.get(value, value) if isinstance(value, str) else value


def plain(value: Any) -> Any:
    """Return JSON data for a value: NaN and infinities become strings, whole floats keep their point."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def _pretty(value: Any, indent: str = "") -> str:
    """Format JSON with objects spread over lines and lists of scalars kept on one."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        items = [f"{inner}{json.dumps(k)}: {_pretty(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + indent + "}"
    if isinstance(value, list) and any(isinstance(v, list | dict) for v in value):
        return "[\n" + ",\n".join(inner + _pretty(v, inner) for v in value) + "\n" + indent + "]"
    return json.dumps(value)
