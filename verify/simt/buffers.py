"""The memory that a kernel may touch: its arguments, and what the host code allocates while it prepares a launch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from moeproof.verify.subject import Unavailable

from .module import runtime
from .schedule import extent

_EMPTY = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")


@dataclass
class Buffer:
    """A tensor that a kernel may touch.

    Attributes
    ----------
    name : str
        What a report calls it.
    tensor : Tensor
        Kept alive while it is registered.
    low, bytes : int
        Address of its first element, and bytes up to the end of its last.
    number : int
        The runtime's number of it.
    """

    name: str
    tensor: torch.Tensor
    low: int
    bytes: int
    number: int

    def element(self, address: int) -> str:
        """Return the element of an address, as it is indexed; how far outside where it is none."""
        item = self.tensor.element_size()
        shape = f"{self.name} of shape {tuple(self.tensor.shape)}"
        if address < self.low:
            return f"{shape}, {_steps(self.low - address, item)} before its start,"
        if address >= self.low + self.bytes:
            return f"{shape}, {_steps(address - self.low - self.bytes + item, item)} past its end,"
        at, byte = divmod(address - self.low, item)
        place = self._index(at)
        if place is None:
            return f"{shape}, {address - self.low} bytes from its start, between its elements,"
        return f"{self.name}{place}" + (f" (byte {byte} of it)" if byte else "")

    def _index(self, at: int) -> str | None:
        shape, strides = self.tensor.shape, self.tensor.stride()
        left, index = at, {}
        for dim in sorted(range(len(shape)), key=lambda d: -strides[d]):
            if strides[dim]:
                index[dim] = min(left // strides[dim], shape[dim] - 1)
                left -= index[dim] * strides[dim]
            else:
                index[dim] = 0
        return None if left else "".join(f"[{index[d]}]" for d in range(len(shape)))


def _steps(bytes_: int, item: int) -> str:
    count = -(-bytes_ // item)
    return f"{count} element{'s' * (count > 1)}"


class Buffers(TorchDispatchMode):
    """Registers buffers with the runtime; while entered, also every CPU tensor that torch makes.

    Attributes
    ----------
    known : list of Buffer
        What is registered.
    """

    def __init__(self) -> None:
        super().__init__()
        runtime().simt_begin()
        self.known: list[Buffer] = []
        self._by_storage: dict[int, list[Buffer]] = {}
        self._sorted = 0
        self._maps: list[torch.Tensor] = []

    def add(self, name: str, tensor: torch.Tensor, *, initialised: bool, read_only: bool) -> None:
        """Let kernels touch a tensor: its own elements, not what lies between them."""
        bytes_ = extent(tensor)
        if not bytes_:
            return
        item = tensor.element_size()
        low = tensor.data_ptr()
        valid = None
        if not tensor.is_contiguous() and bytes_ != tensor.nbytes and 0 not in tensor.stride():
            valid = torch.zeros(bytes_ // item, dtype=torch.uint8)
            valid.as_strided(tensor.shape, tensor.stride()).fill_(1)
            self._maps.append(valid)
        shift = min(3, item.bit_length() - 1)
        address = valid.data_ptr() if valid is not None else None
        number = runtime().simt_add_range(low, bytes_, address, item, shift, int(initialised), int(read_only))
        if number < 0:
            raise Unavailable(f"{name} has {bytes_} bytes; allowed for the SIMT executor: 256 MiB together")
        self.known.append(Buffer(name, tensor, low, bytes_, number))

    def add_memory(self, address: int, bytes_: int) -> None:
        """Let kernels touch a module's own variable."""
        runtime().simt_add_range(address, bytes_, None, 1, 2, 1, 0)

    def near(self, address: int) -> Buffer | None:
        """Return the buffer that an address is in, or else next to."""

        def distance(buffer: Buffer) -> int:
            return max(buffer.low - address, address - (buffer.low + buffer.bytes - 1), 0)

        nearest = min(self.known, key=distance, default=None)
        return nearest if nearest is not None and distance(nearest) <= 1 << 20 else None

    def _in_storage_of(self, tensor: torch.Tensor) -> list[Buffer] | None:
        """Return the buffers in a tensor's storage; None if it has none."""
        # Sorted here, not when added: most launches make no tensor.
        for buffer in self.known[self._sorted :]:
            self._by_storage.setdefault(buffer.tensor.untyped_storage().data_ptr(), []).append(buffer)
        self._sorted = len(self.known)
        return self._by_storage.get(tensor.untyped_storage().data_ptr())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            if tensor.device.type != "cpu" or not tensor.numel():
                continue
            known = self._in_storage_of(tensor)
            name = func.overloadpacket.__name__
            if known is None:
                base = tensor.new_empty(0).set_(tensor.untyped_storage()) if tensor.storage_offset() else tensor
                self.add(f"scratch {len(self.known)}", base, initialised=name not in _EMPTY, read_only=False)
            elif func._schema.is_mutable:
                low, high = tensor.data_ptr(), tensor.data_ptr() + extent(tensor)
                for buffer in known:
                    if low < buffer.low + buffer.bytes and buffer.low < high:
                        runtime().simt_reset_range(buffer.number)
        return made


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
