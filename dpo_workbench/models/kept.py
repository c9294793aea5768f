"""What autograd keeps for backward, side by side in a few large blocks that each micro-batch of a step uses anew.

Kept one by one these tensors stand scattered among all that is made and freed beside them, and glibc puts no aligned
tensor into a freed place of the same size: up to half of the memory of a pass was holes (docs/performance.md).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

BLOCK = 2**27  # bytes of a block; what is never written takes no memory
SMALLEST = 2**10  # bytes of the smallest tensor that is copied
_current: Kept | None = None  # of the graph that is being built


def room(shape: Sequence[int], like: Tensor) -> Tensor:
    """An empty tensor for what a graph will keep, in `like`'s dtype: in the blocks, so that it is not copied there."""
    if _current is None:
        return like.new_empty(shape)
    empty = torch.empty(shape, dtype=like.dtype, device="meta")
    return _current._place(empty, empty.numel() * like.element_size())


class Kept:
    """Room for one graph at a time. With weights on a GPU, whose allocator fills its holes, nothing is done.

    Args:
        network: what the graphs are of; its weights are not copied.
    """

    def __init__(self, network: nn.Module) -> None:
        weights = list(network.parameters())
        self._on_cpu = all(p.device.type == "cpu" for p in weights)
        self._weights = {p.untyped_storage().data_ptr() for p in weights} if self._on_cpu else set()
        self._blocks: list[Tensor] = []
        self._in_blocks: set[int] = set()  # their storages
        self._block, self._used = 0, 0  # where the next tensor goes
        self._copies: dict[tuple, tuple[StorageWeakRef, Tensor]] = {}

    @contextmanager
    def anew(self) -> Iterator[None]:
        """Inside, a graph may be built. It is written over the one before, whose backward must be done."""
        global _current
        self._block, self._used = 0, 0
        _current = self if self._on_cpu else None
        try:
            with saved_tensors_hooks(self._pack, lambda kept: kept) if self._on_cpu else nullcontext():
                yield
        finally:
            _current = None
            self._copies.clear()

    def release(self) -> None:
        """Give the blocks back. The next graph makes them anew."""
        self._blocks, self._in_blocks = [], set()

    def _pack(self, tensor: Tensor) -> Tensor:
        size, plain = tensor.numel() * tensor.element_size(), type(tensor) in (Tensor, nn.Parameter)
        if size < SMALLEST or tensor.device.type != "cpu" or tensor.layout != torch.strided or not plain:
            return tensor.detach()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._weights or storage.data_ptr() in self._in_blocks:
            return tensor.detach()
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor._version)
        original, copy = self._copies.get(key, (None, tensor))
        if original is None or original.expired():  # else another function keeps the very same tensor
            copy = self._place(tensor.detach(), size).copy_(tensor.detach())
            self._copies[key] = StorageWeakRef(storage), copy
        return copy

    def _place(self, tensor: Tensor, size: int) -> Tensor:
        """A place in the blocks, with the tensor's strides where it is dense."""
        while self._block < len(self._blocks) and self._used + size > len(self._blocks[self._block]):
            self._block, self._used = self._block + 1, 0
        if self._block == len(self._blocks):
            self._blocks.append(_block(max(BLOCK, size)))
            self._in_blocks.add(self._blocks[-1].untyped_storage().data_ptr())
        block, start = self._blocks[self._block].untyped_storage(), self._used // tensor.element_size()
        self._used += -(-size // 64) * 64
        # no view: to autograd each is a tensor of its own
        place, strides = torch.empty(0, dtype=tensor.dtype), torch.empty_like(tensor, device="meta").stride()
        return place.set_(block, start, tensor.shape, strides)


def _block(size: int) -> Tensor:
    """Empty bytes in pages of the usual size: the first touch of huge ones can cost seven times as much (a virtual
    machine gives large free pieces back to its host), and blocks have no holes that huge pages would close."""
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return torch.empty(size, dtype=torch.uint8)
    try:
        return torch.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)
    except OSError as error:
        raise MemoryError(f"no room for {size} bytes of activations") from error
