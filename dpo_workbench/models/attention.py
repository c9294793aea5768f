"""Which tokens attend to which when a prompt and several answers to it are one sequence.

A row is laid out like this:

    prompt | answer 1 | answer 2

A token attends to earlier tokens, but only to those of the prompt (more exactly: of the beginning that all answers of
the row share) and of its own answer. transformers accepts such a mask in place of the usual one: as a boolean tensor
for PyTorch's scaled dot-product attention (SDPA), or as a block mask for FlexAttention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

SHARED, PADDING = 0, -1  # in `segments`, next to the numbers of the answers, which count from 1


def dense_mask(segments: Tensor) -> Tensor:
    """The mask as a boolean tensor, True where the query (second to last axis) may attend to the key (last axis).

    Args:
        segments: for each token of R rows `SHARED`, `PADDING`, or the number of its answer. Shape (R, T), integer.

    Returns:
        Shape (R, 1, T, T): the same mask for every head. Padding attends to itself, so that no softmax is empty.
    """
    queries, keys = segments[:, :, None], segments[:, None, :]
    return ((keys == SHARED) | (queries == keys)).tril()[:, None]


def block_mask(rows: Tensor, segments: Tensor) -> BlockMask:
    """The mask of several rows in one sequence for FlexAttention, which skips blocks of scores that are all masked.

    Args:
        rows: the number of the row that each token belongs to. Shape (T,), integer.
        segments: as for `dense_mask`. Shape (T,).
    """

    def may_attend(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        visible = (segments[key] == SHARED) | (segments[query] == segments[key])
        return (rows[query] == rows[key]) & visible & (query >= key)

    return create_block_mask(may_attend, None, None, len(rows), len(rows), device=rows.device)


def has_flex_attention(device: torch.device) -> bool:
    """True on a GPU of compute capability 8.0 or more. Its kernel is compiled by Triton, which a T4 cannot run."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def pack_attention(network: Any, device: torch.device) -> str:
    """How packs are computed on this device: "flex_attention" where device and architecture have it, or "sdpa"."""
    if not has_flex_attention(device):
        return "sdpa"
    try:
        network.set_attn_implementation("flex_attention")
    except ValueError:  # transformers says that this architecture has no FlexAttention
        return "sdpa"
    use_plain_attention(network)
    return "flex_attention"


@contextmanager
def flex_attention(network: Any) -> Iterator[None]:
    """Inside, the network computes attention by FlexAttention."""
    config: Any = torch.compiler.config
    # PyTorch compiles a function 8 times, and each model takes 6 of them. After that kernels are slow.
    limit = {"recompile_limit": 64} if hasattr(config, "recompile_limit") else {}
    network.set_attn_implementation("flex_attention")
    try:
        with config.patch(limit):
            yield
    finally:
        use_plain_attention(network)


def use_plain_attention(network: Any) -> None:
    """Switch to SDPA, or to transformers' own products for models that SDPA cannot compute (Gemma 2, gpt-oss)."""
    try:
        network.set_attn_implementation("sdpa")
    except ValueError:
        network.set_attn_implementation("eager")
