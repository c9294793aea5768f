"""Which tokens attend to which in a pack: a single sequence that holds several answers to each of several prompts.

A pack is laid out like this, here with two rows of one prompt and two answers each:

    prompt A | answer A1 | answer A2 | prompt B | answer B1 | answer B2

A token attends to earlier tokens of its own row, but only to those of the prompt (more exactly: of the beginning that
all answers of the row share) and of its own answer. transformers accepts such a mask in place of the usual one: as a
boolean tensor for PyTorch's scaled dot-product attention (SDPA), or as a block mask for FlexAttention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

SHARED = 0  # in `segments`: the token belongs to the beginning that all answers of its row share

# SDPA computes all T x T scores of a pack and a boolean mask takes T x T bytes, so packs are kept shorter than this.
MAX_SDPA_TOKENS = 4096


def dense_mask(rows: Tensor, segments: Tensor) -> Tensor:
    """The mask as a boolean tensor, True where the query (second to last axis) may attend to the key (last axis).

    Args:
        rows: the row that each token of the pack belongs to, shape (T,), integer.
        segments: `SHARED`, or the number of the answer from 1 on that the token belongs to, shape (T,), integer.

    Returns:
        Shape (1, 1, T, T): the same mask for every head.
    """
    same_row = rows[:, None] == rows[None, :]
    visible = (segments[None, :] == SHARED) | (segments[:, None] == segments[None, :])
    return (same_row & visible).tril()[None, None]


def block_mask(rows: Tensor, segments: Tensor) -> BlockMask:
    """The same mask for FlexAttention, which skips blocks of 128 x 128 scores that are masked throughout."""

    def may_attend(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same_row = rows[query] == rows[key]
        visible = (segments[key] == SHARED) | (segments[query] == segments[key])
        return same_row & visible & (query >= key)

    n_tokens = len(rows)
    return create_block_mask(may_attend, None, None, n_tokens, n_tokens, device=rows.device)


def pack_attention(network: Any, device: torch.device) -> str:
    """How packs are computed on this device: "flex_attention" on a GPU of compute capability 8.0 or more, or "sdpa".

    FlexAttention compiles a kernel with Triton, which older GPUs (such as the T4) cannot run.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return "sdpa"
    try:
        network.set_attn_implementation("flex_attention")
    except ValueError:  # transformers says that this architecture has no FlexAttention
        return "sdpa"
    use_plain_attention(network)
    return "flex_attention"


def use_plain_attention(network: Any) -> None:
    """Switch to SDPA, or to transformers' own products for models that SDPA cannot compute (Gemma 2, gpt-oss)."""
    try:
        network.set_attn_implementation("sdpa")
    except ValueError:
        network.set_attn_implementation("eager")
