"""What autograd keeps for backward, side by side in a few large blocks that each micro-batch of a step uses anew.

Kept one by one these tensors stand scattered among all that is made and freed beside them, and glibc puts no aligned
tensor into a freed place of the same size: up to half of the memory of a pass was holes (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

BLOCK = 2**27  # bytes of a block; what is never written takes no memory
SMALLEST = 2**10  # bytes of the smallest tensor that is copied


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
        self._block, self._used = 0, 0  # where the next tensor goes
        self._copies: dict[tuple, tuple[StorageWeakRef, Tensor]] = {}

    @contextmanager
    def anew(self) -> Iterator[None]:
        """Inside, a graph may be built. It is written over the one before, whose backward must be done."""
        self._block, self._used = 0, 0
        try:
            with saved_tensors_hooks(self._pack, lambda kept: kept) if self._on_cpu else nullcontext():
                yield
        finally:
            self._copies.clear()

    def _pack(self, tensor: Tensor) -> Tensor:
        size, plain = tensor.numel() * tensor.element_size(), type(tensor) in (Tensor, nn.Parameter)
        if size < SMALLEST or tensor.device.type != "cpu" or tensor.layout != torch.strided or not plain:
            return tensor.detach()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in self._weights:
            return tensor.detach()
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor._version)
        original, copy = self._copies.get(key, (None, tensor))
        if original is None or original.expired():  # else another function keeps the very same tensor
            copy = self._place(tensor.detach(), size)
            self._copies[key] = StorageWeakRef(storage), copy
        return copy

    def _place(self, tensor: Tensor, size: int) -> Tensor:
        """A copy in the blocks, with the tensor's strides where it is dense."""
        while self._block < len(self._blocks) and self._used + size > len(self._blocks[self._block]):
            self._block, self._used = self._block + 1, 0
        if self._block == len(self._blocks):
            self._blocks.append(torch.empty(max(BLOCK, size), dtype=torch.uint8))
        place = self._blocks[self._block][self._used : self._used + size].view(tensor.dtype)
        self._used += -(-size // 64) * 64
        return place.as_strided(tensor.shape, torch.empty_like(tensor, device="meta").stride()).copy_(tensor)
