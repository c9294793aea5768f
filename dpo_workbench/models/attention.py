"""The attention of all models here: a pack of rows costs what its rows cost, and grouped heads read each key once.

`use_attention` hangs `attention` into transformers' attention interface. Without a `Layout` it computes what SDPA does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "dpo_workbench"
BLOCK = 96  # queries at a time on a CPU: their scores stay in its cache, and what they cannot see is not computed
FOLD = 8  # query tokens a row up to which the heads of a group are laid side by side (generation)


class _Block(NamedTuple):
    """Queries first..stop-1, which see the keys row..shared-1, and own.. up to themselves. Places in the pack."""

    row: int
    shared: int
    own: int
    first: int
    stop: int


@dataclass(frozen=True)
class Layout:
    """Where the rows of a pack lie: each one's first place, its shared tokens, and the tokens of each answer's rest."""

    rows: tuple[tuple[int, int, tuple[int, ...]], ...]

    @cached_property
    def parts(self) -> list[_Block]:
        """One block for each row's shared part, and one for each answer's rest, in the order of their places."""
        found = []
        for row, shared, rests in self.rows:
            start = row + shared
            found.append(_Block(row, row, row, row, start))
            for rest in rests:
                if rest:
                    found.append(_Block(row, row + shared, start, start, start + rest))
                start += rest
        return found

    @cached_property
    def blocks(self) -> list[_Block]:
        """`parts` in pieces of about `BLOCK` queries."""
        found = []
        for part in self.parts:
            n = max(1, round((part.stop - part.first) / BLOCK))
            edges = [part.first + (part.stop - part.first) * i // n for i in range(n + 1)]
            found += [part._replace(first=a, stop=b) for a, b in zip(edges, edges[1:], strict=False)]
        return found


@dataclass
class Front:
    """Beginnings that rows of a batch share, as samples share a prompt: each is kept and read once for all its rows."""

    keys: list[Tensor]  # for each layer (P, key heads, L, D), a beginning's tokens first
    values: list[Tensor]
    lengths: Tensor  # (P,) tokens of each beginning
    rows: Tensor  # (P, most rows of one beginning): numbers of rows in rising order; -1: none

    def keep(self, rows: Tensor) -> None:
        """Go on with the named rows, in rising order; beginnings that none of them has are dropped, in place."""
        self.rows = torch.where((self.rows[..., None] == rows).any(-1), torch.searchsorted(rows, self.rows), -1)
        used = (self.rows >= 0).any(1).nonzero()[:, 0]
        self.rows, self.lengths = self.rows[used], self.lengths[used]
        longest = int(self.lengths.max()) if len(used) else 0
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                for to, place in enumerate(used.tolist()):
                    if to != place:
                        old[to, :, :longest] = old[place, :, :longest]
                tensors[layer] = old[: len(used), :, :longest]

    def read(self, query: Tensor, layer: int, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
        """What its rows, in their order, take from it: `_softmax_part` of (R, key heads, n, D), R of the batch."""
        there = self.rows >= 0
        heads, n, size = query.shape[1:]
        asked = query[self.rows.clamp(min=0)].transpose(1, 2).reshape(len(there), heads, -1, size)
        tokens = torch.arange(self.keys[layer].shape[2], device=query.device)
        seen = (tokens < self.lengths[:, None])[:, None, None]
        parts = _softmax_part(asked, self.keys[layer], self.values[layer], seen, scale, softcap)
        out, norm = (x.unflatten(2, (-1, n)).transpose(1, 2)[there] for x in parts)
        return out, norm


def use_attention() -> str:
    """Make `attention` known to transformers; returns the name to load a model with."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME


def attention(
    module: nn.Module,
    query: Tensor,  # (R, heads, n, D)
    key: Tensor,  # (R, key heads, m, D)
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    layout: Layout | None = None,
    reach: Sequence[tuple[slice, int]] | None = None,
    fronts: Sequence[Front] = (),
    at: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Softmax attention for transformers' attention interface, with these arguments. Returns (R, n, heads, D).

    With `layout` R is 1, a token sees what its row's layout says, and mask, dropout and sliding windows are not looked
    at (`training.reference.prove_packing` asks whether that is right for a model). With `reach`, slices of the rows in
    their order, each with the number of first keys that any of them may see, what no row of a slice sees is not read.
    With `fronts`, which have the rows in their order, a row sees its beginning there besides what the mask allows.
    With `at` (R, n), places of the queries among the keys, the mask is narrowed to the layer's sliding window, if any.
    A model's `softcap` of the scores (arXiv 2408.00118, section 2) and its sinks `s_aux`, scores of a key without a
    value, are kept to.
    """
    groups = query.shape[1] // key.shape[1]
    if layout is not None:
        if softcap is not None or s_aux is not None:
            raise TypeError("a pack has no place for capped scores and sinks")
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        query, key = query.to(value.dtype), key.to(value.dtype)  # they differ under autocast
        if query.device.type == "cpu":
            return _BlockAttention.apply(query, key, value, scale, layout), None
        return _attention_of_parts(query, key, value, scale, layout), None
    window = kwargs.get("sliding_window")
    if at is not None and window and attention_mask is not None:
        tokens = torch.arange(key.shape[2], device=key.device)
        attention_mask = attention_mask & (tokens > at[..., None] - window)[:, None]
    if fronts or softcap is not None or s_aux is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        layer = int(getattr(module, "layer_idx", 0))
        return _attention_in_parts(query, key, value, attention_mask, scale, softcap, s_aux, layer, fronts), None
    if reach is not None and attention_mask is not None and attention_mask.shape[-1] == key.shape[2]:
        parts = [
            attention(
                module, query[r], key[r, :, :m], value[r, :, :m], attention_mask[r, ..., :m], dropout, scaling, **kwargs
            )[0]
            for r, m in reach
        ]
        return torch.cat(parts), None
    n_rows, heads, n, size = query.shape
    one_mask = attention_mask is not None and attention_mask.shape[1] == 1
    if groups > 1 and 1 < n <= FOLD and one_mask:
        folded = query.reshape(n_rows, key.shape[1], groups * n, size)
        mask = attention_mask.repeat(1, 1, groups, 1)  # type: ignore[union-attr]
        out = scaled_dot_product_attention(folded, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
        return out.reshape(n_rows, heads, n, -1).transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)


def _attention_in_parts(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,  # (R, 1, n, m)
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,  # (heads,)
    layer: int,
    fronts: Sequence[Front],
) -> Tensor:
    """Softmax over a row's beginning, its own keys and the sink, which are taken apart and weighted by their sums."""
    n_rows, heads, n, size = query.shape
    groups = heads // key.shape[1]
    query = query.reshape(n_rows, key.shape[1], groups * n, size)
    if mask is None:
        mask = ~_future(n).to(query.device)[None, None]
    out, norm = _softmax_part(query, key, value, mask.repeat(1, 1, groups, 1), scale, softcap)
    if fronts:
        parts = [front.read(query, layer, scale, softcap) for front in fronts if len(front.rows)]
        begun, begun_norm = (torch.cat(x) for x in zip(*parts, strict=True))
        out = out.lerp(begun, (begun_norm - norm).sigmoid()[..., None].to(out.dtype))
        norm = norm.logaddexp(begun_norm)
    if sinks is not None:
        sink = sinks.view(-1, groups, 1).expand(-1, -1, n).reshape(-1, groups * n)
        out = out * (norm - sink).sigmoid()[..., None].to(out.dtype)
    return out.reshape(n_rows, heads, n, -1).transpose(1, 2).contiguous()


def _softmax_part(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """Attention to some of the keys, (..., n, D), and the logarithm of the sum of their scores' exponentials."""
    high = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(high) * scale) @ k.to(high).transpose(-1, -2)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    scores = scores.masked_fill_(~seen, float("-inf"))
    most = scores.detach().amax(-1, keepdim=True)
    weights = scores.sub_(most).exp_()
    total = weights.sum(-1, keepdim=True)
    return (weights / total).to(v.dtype) @ v, (most + total.log())[..., 0]


def _attention_of_parts(query: Tensor, key: Tensor, value: Tensor, scale: float, layout: Layout) -> Tensor:
    """One SDPA call a part: for devices whose kernels do their own blocking."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    sizes = [part.stop - part.first for part in layout.parts]
    out, front = [], (key, value)
    for part, q, k, v in zip(layout.parts, *(x.split(sizes, dim=2) for x in (query, key, value)), strict=True):
        if part.first == part.row:
            front = (k, v)  # the row's shared part, for its answers
            out.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale))
            continue
        k, v = torch.cat([front[0], k], dim=2), torch.cat([front[1], v], dim=2)
        n, m = q.shape[2], k.shape[2]
        mask = torch.ones(n, m, dtype=torch.bool, device=q.device).tril(m - n)
        out.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale))
    return torch.cat(out, dim=2).transpose(1, 2)


class _BlockAttention(torch.autograd.Function):
    """`attend` for heads as transformers has them."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scale: float, layout: Layout) -> Tensor:
        q, k, v = query[0].unflatten(0, (key.shape[1], -1)).transpose(1, 2).flatten(1, 2), key[0], value[0]
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.layout = scale, layout
        out = attend(q, k, v, scale, layout).unflatten(1, (k.shape[1], -1))  # (K, T, G, D)
        return out.transpose(0, 1).flatten(1, 2)[None]

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, k, v = ctx.saved_tensors
        grad = grad[0].unflatten(1, (len(k), -1)).transpose(0, 1).flatten(1, 2)
        grad_q, grad_k, grad_v = attend_backward(grad, q, k, v, ctx.scale, ctx.layout)
        return (
            grad_q.unflatten(1, (k.shape[1], -1)).transpose(1, 2).flatten(0, 1)[None],
            grad_k[None],
            grad_v[None],
            None,
            None,
        )


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, layout: Layout) -> Tensor:
    """Softmax attention of a pack, block by block as products and softmax.

    Args:
        q: queries by key head, token and head of the group, (K, T G, D). So a block's lie side by side.
        k, v: (K, T, D).
        scale: of the scores.
        layout: what each query may see.

    Returns:
        (K, T G, D).
    """
    out, groups = torch.empty_like(q), q.shape[1] // k.shape[1]
    if _has_tiles():
        for part, (keys, values) in _with_seen(layout.parts, k, v):
            own = slice(part.first * groups, part.stop * groups)
            out[:, own] = _by_kernel(q[:, own], keys, values, groups, scale)
        return out
    high_q, high_k = _high(q, k, scale)
    for block, (keys, values) in _with_seen(layout.blocks, high_k, v):
        own = slice(block.first * groups, block.stop * groups)
        out[:, own] = torch.bmm(_probabilities(high_q[:, own], keys, groups).to(v.dtype), values)
    return out


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, layout: Layout
) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes of q, k and v from that of `attend`'s result. The scores are computed again: nothing quadratic is kept."""
    groups, (high_q, high_k) = q.shape[1] // k.shape[1], _high(q, k, scale)
    high, grad_q = high_k.dtype, torch.empty_like(q)
    grad_k, grad_v = torch.zeros_like(k, dtype=high), torch.zeros_like(v, dtype=high)
    low_k, high_v, high_grad = high_k.to(k.dtype), v.to(high), grad.to(high)
    for block, (keys, low_keys, values) in _with_seen(layout.blocks, high_k, low_k, high_v):
        own = slice(block.first * groups, block.stop * groups)
        p = _probabilities(high_q[:, own], keys, groups)
        _add(grad_v, block, torch.bmm(p.to(grad.dtype).transpose(1, 2), grad[:, own]))
        down = torch.bmm(high_grad[:, own], values.transpose(1, 2))
        slope = torch._softmax_backward_data(down, p, -1, high).to(q.dtype)
        grad_q[:, own] = torch.bmm(slope, low_keys)
        _add(grad_k, block, torch.bmm(slope.transpose(1, 2), q[:, own]))
    return grad_q, grad_k.mul_(scale).to(k.dtype), grad_v.to(v.dtype)


@lru_cache
def _has_tiles() -> bool:
    """Does the processor multiply tiles (AMX)? There PyTorch's kernel is twice to three times as fast as blocks."""
    return getattr(torch.cpu, "_is_amx_tile_supported", bool)()


def _by_kernel(q: Tensor, k: Tensor, v: Tensor, groups: int, scale: float) -> Tensor:
    """Queries (K, n G, D) of a part to its keys (K, m, D), of which the last n are their own places."""
    q = q.unflatten(1, (-1, groups)).transpose(1, 2)  # (K, G, n, D)
    n, m = q.shape[2], k.shape[1]
    k, v = (x[:, None].expand(-1, groups, -1, -1) for x in (k, v))
    mask = None if n == m else ~torch.cat([_future(n).new_zeros(n, m - n), _future(n)], dim=1)
    out = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=n == m, scale=scale)
    return out.transpose(1, 2).flatten(1, 2)


def _high(q: Tensor, k: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Queries and scaled keys, at least in fp32, as all scores and their slopes: rounded to bf16, large scores and
    slopes that nearly cancel turn gradients."""
    high = torch.promote_types(q.dtype, torch.float32)
    return q.to(high), k.to(high) * scale


def _with_seen(blocks: Sequence[_Block], *tensors: Tensor) -> Iterator[tuple[_Block, list[Tensor]]]:
    """Each block with the part of (K, T, D) tensors that its queries may see."""
    for block in blocks:
        if block.own == block.shared:
            yield block, [x[:, block.row : block.stop] for x in tensors]
        else:
            seen = ((x[:, block.row : block.shared], x[:, block.own : block.stop]) for x in tensors)
            yield block, [torch.cat(both, dim=1) for both in seen]


def _probabilities(q: Tensor, k: Tensor, groups: int) -> Tensor:
    """Softmax of a block's scores (K, n G, m), the future left out. The last n keys are the queries' own places."""
    scores, n = torch.bmm(q, k.transpose(1, 2)), q.shape[1] // groups
    scores.view(len(q), n, groups, -1)[..., -n:].masked_fill_(_future(n)[:, None], float("-inf"))
    return scores.softmax(-1)


@lru_cache(maxsize=256)
def _future(n: int) -> Tensor:
    """True where a key stands after the query. Shape (n, n)."""
    return torch.ones(n, n, dtype=torch.bool).triu(1)


def _add(total: Tensor, block: _Block, part: Tensor) -> None:
    """Add a block's share (K, m, D) to the places that it has seen."""
    n = block.shared - block.row
    if n:
        total[:, block.row : block.shared] += part[:, :n]
    total[:, block.own : block.stop] += part[:, n:]
