"""`Buffer`: a layer's keys and values for generation, written in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

GROW = 64  # places that are cleared at one time


class Buffer(DynamicLayer):
    """A layer's keys and values in one buffer that is written in place, where the default one is copied each token.

    Each row's tokens lie at their positions, so rows may be of different lengths and a wrong guess is written over.
    Memory that no answer has reached is not touched: the system hands it out by and by.
    """

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.length, self.clean = capacity, 0, 0
        self.places: Tensor | None = None  # (R, new): where the next keys go; None = after the last

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        n_rows, _, new, _ = key_states.shape
        if not self.is_initialized:
            self._make(n_rows, key_states)
        if self.places is None:
            part = slice(self.length, self.length + new)
            self.keys[:, :, part], self.values[:, :, part] = key_states, value_states
            self.length = self.clean = part.stop
        else:
            self._clear()
            rows = torch.arange(n_rows, device=key_states.device)[:, None]
            self.keys[rows, :, self.places] = key_states.transpose(1, 2)
            self.values[rows, :, self.places] = value_states.transpose(1, 2)
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length

    def _make(self, n_rows: int, like: Tensor) -> None:
        self.dtype, self.device, self.is_initialized = like.dtype, like.device, True
        shape = (n_rows, like.shape[1], self.capacity, like.shape[3])
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)

    def _clear(self) -> None:
        """Zeros up to `length`, some places at a time: what is masked must be finite."""
        if self.length > self.clean:
            part = slice(self.clean, self.length + GROW)
            self.keys[:, :, part], self.values[:, :, part] = 0, 0
            self.clean = part.stop

    def lay(self, read: Buffer, lengths: list[int], first: int, n_rows: int, samples: int) -> None:
        """Copy freshly read prompts into the rows from `first`, `samples` times each."""
        if not self.is_initialized:
            self._make(n_rows, read.keys)
        self.length = max(self.length, *lengths)
        self._clear()
        for r, n in enumerate(lengths):
            rows = slice(first + r * samples, first + (r + 1) * samples)
            self.keys[rows, :, :n] = read.keys[r, :, :n]
            self.values[rows, :, :n] = read.values[r, :, :n]

    def take(self, rows: list[int]) -> None:
        """Keep the named rows, in rising order: they move up in place, since new memory costs more than the copy."""
        if not self.is_initialized:
            return  # no row has a token of its own yet
        for name in ("keys", "values"):
            old = getattr(self, name)
            for to, row in enumerate(rows):
                if to != row:
                    old[to, :, : self.length] = old[row, :, : self.length]
            setattr(self, name, old[: len(rows)])
