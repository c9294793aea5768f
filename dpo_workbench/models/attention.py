"""The attention of all models here: a pack of rows costs what its rows cost, and grouped heads read each key once.

`use_attention` hangs `attention` into transformers' attention interface. Without a `Layout` it computes what SDPA does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dpo_workbench.models.kernels import add, put, softmax, take, wide

NAME = "dpo_workbench"
BLOCK = 96  # queries of a part at a time on a CPU: what they cannot see is hardly computed
SCORES = 800_000  # at a time, of all heads
FILLED = 1.25, 16_000  # parts of unlike length go together if that makes at most so many times their scores, and more
FOLD = 8  # query tokens a row up to which the heads of a group are laid side by side (generation)


class _Part(NamedTuple):
    """Queries first..stop-1, which see the keys row..shared-1, and first.. up to themselves. Places in the pack."""

    row: int
    shared: int
    first: int
    stop: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Tokens before its own, and its own."""
        return self.shared - self.row, self.stop - self.first


@dataclass(frozen=True)
class Layout:
    """Where the rows of a pack lie: each one's first place, its shared tokens, and the tokens of each answer's rest."""

    rows: tuple[tuple[int, int, tuple[int, ...]], ...]

    @cached_property
    def n_tokens(self) -> int:
        return max((start + shared + sum(rests) for start, shared, rests in self.rows), default=0)

    @cached_property
    def parts(self) -> list[_Part]:
        """One for each row's shared tokens, and one for each answer's rest, in the order of their places."""
        found = []
        for row, shared, rests in self.rows:
            start = row + shared
            found.append(_Part(row, row, row, start))
            for rest in rests:
                if rest:
                    found.append(_Part(row, row + shared, start, start + rest))
                start += rest
        return found


class _Group:
    """Parts of like length side by side, P of them. Shorter ones are filled up to s tokens before n of their own."""

    def __init__(self, parts: Sequence[_Part]) -> None:
        self.before, self.n = (max(sizes) for sizes in zip(*(p.sizes for p in parts), strict=True))
        queries, keys = [], []
        for part in parts:
            before, n = part.sizes
            queries += [*range(part.first, part.stop), *[-1] * (self.n - n)]
            keys += [*range(part.row, part.shared), *[-1] * (self.before - before), *queries[-self.n :]]
        self.queries, self.keys = torch.tensor(queries), torch.tensor(keys)  # places: (P n,), (P (s + n),), -1: none
        self.lengths = torch.tensor([part.sizes[0] for part in parts])  # (P,) tokens before a part's own
        self._lines: dict[tuple[bool, int, int, int], Tensor] = {}
        self._masks: dict[torch.dtype, Tensor] = {}

    @cached_property
    def hidden(self) -> Tensor | None:
        """-inf at what fills up the tokens before a part's own. Shape (P, s)."""
        hidden = torch.arange(self.before) >= self.lengths[:, None]
        return torch.zeros(hidden.shape).masked_fill(hidden, float("-inf")) if hidden.any() else None

    def lines(self, heads: int, n_keys: int, step: int, *, keys: bool = False) -> Tensor:
        """Numbers of those lines of D that make up (P K, places of a part and heads of a group, D).

        From one token's first head to the next one's there are `step` lines.
        """
        key = keys, heads, n_keys, step
        if key not in self._lines:
            places = (self.keys if keys else self.queries).view(len(self.lengths), -1, 1, 1)
            lines = places * step + torch.arange(heads).view(n_keys, -1)
            lines = torch.where(places >= 0, lines, -1).transpose(1, 2)
            self._lines[key] = lines.reshape(len(self.lengths) * n_keys, -1)
        return self._lines[key]

    def pieces(
        self, q: Tensor, k: Tensor, dtype: torch.dtype, grad: Tensor | None = None, v: Tensor | None = None
    ) -> Iterator[tuple[slice, slice, slice, Tensor, Tensor]]:
        """Of scaled queries (P K, n G, D) and keys (P K, s + n, D) some at a time.

        Yields places along the first dimension, those of queries and of the keys that they may see, and in `dtype` the
        softmax of their scores, and the scores' slope from `grad`, that of attention's result, and the values `v`. Both
        are written over by the next.
        """
        groups, n_keys = q.shape[1] // self.n, len(k) // len(self.lengths)
        cuts = []
        for a, b in _cut(self.n, self.n / BLOCK):
            each = (b - a) * groups * (self.before + b)
            cuts += [(a, b, *some, (some[1] - some[0]) * each) for some in _cut(len(k), len(k) * each / SCORES)]
        most = max(cut[-1] for cut in cuts)
        rooms = [q.new_empty(most, dtype=kind) for kind in (q.dtype, dtype, q.dtype, dtype)]
        for a, b, first, stop, size in cuts:
            some, own, seen = slice(first, stop), slice(a * groups, b * groups), slice(self.before + b)
            scores, low, down, slope = (room[:size].view(stop - first, (b - a) * groups, -1) for room in rooms)
            torch.bmm(q[some, own], k[some, seen].transpose(1, 2), out=scores)
            there: tuple = (None, None)
            if grad is not None and v is not None:
                there = torch.bmm(grad[some, own], v[some, seen].transpose(1, 2), out=down), slope
            rows = scores.unflatten(1, (b - a, groups))
            if softmax(rows, low, a, self.before, self.lengths, n_keys, first, *there):
                yield some, own, seen, scores if dtype == q.dtype else low, slope
                continue
            if self.hidden is not None:
                hidden = self.hidden.repeat_interleave(n_keys, 0)[some]
                scores[..., : self.before].add_(hidden[:, None])
            rows[..., a - b :].add_(_future(b - a, q.dtype)[:, None])
            torch.softmax(scores, -1, out=scores)
            if grad is not None:
                torch.ops.aten._softmax_backward_data(down, scores, -1, scores.dtype, grad_input=down)
                slope.copy_(down)
            yield some, own, seen, scores if dtype == q.dtype else low.copy_(scores), slope

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of q (T, heads, D) to k, v (T, K, D) by PyTorch's kernel. Returns (1, P n, heads and D)."""
        n = self.before + self.n
        asked = q.flatten(1).index_select(0, self.queries.clamp(min=0)).view(-1, self.n, *q.shape[1:]).transpose(1, 2)
        places = self.keys.clamp(min=0)
        keys, values = (x.flatten(1).index_select(0, places).view(-1, n, *x.shape[1:]).transpose(1, 2) for x in (k, v))
        mask = self.mask(q.dtype) if self.before else None
        out = scaled_dot_product_attention(
            asked, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
        )
        return out.transpose(1, 2).reshape(1, len(self.queries), -1)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """-inf where a query does not see a key, else 0. Shape (P or 1, 1, n, s + n)."""
        if dtype not in self._masks:
            n = self.before + self.n
            mask = torch.zeros(1 if self.hidden is None else len(self.hidden), 1, self.n, n, dtype=dtype)
            mask.masked_fill_(torch.ones(self.n, n, dtype=torch.bool).triu(self.before + 1), float("-inf"))
            if self.hidden is not None:
                mask[..., : self.before] += self.hidden[:, None, None]
            self._masks[dtype] = mask
        return self._masks[dtype]


def _cut(n: int, pieces: float) -> list[tuple[int, int]]:
    """0..n-1 in about so many pieces of like length: first and stop of each."""
    whole = min(n, max(1, round(pieces)))
    edges = [n * i // whole for i in range(whole + 1)]
    return list(zip(edges, edges[1:], strict=False))


@lru_cache(maxsize=4)  # they hold masks
def _groups(layout: Layout) -> list[_Group]:
    """The parts in groups of like length."""
    found: list[list[_Part]] = []
    own = 0
    for part in sorted(layout.parts, key=lambda p: (p.sizes[0] > 0, p.sizes[1] * sum(p.sizes))):
        before, n = part.sizes
        if found:
            parts = [*found[-1], part]
            longest, most = (max(sizes) for sizes in zip(*(p.sizes for p in parts), strict=True))
            if len(parts) * most * (longest + most) <= FILLED[0] * (own + n * (before + n)) + FILLED[1]:
                found[-1], own = parts, own + n * (before + n)
                continue
        found.append([part])
        own = n * (before + n)
    return [_Group(parts) for parts in found]


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
            return _PackAttention.apply(query, key, value, scale, layout), None
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
        mask = torch.ones(1, 1, n, n, dtype=torch.bool, device=query.device).tril()
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


class _PackAttention(torch.autograd.Function):
    """`attend` for heads as transformers has them."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scale: float, layout: Layout) -> Tensor:
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.layout = scale, layout
        return attend(q, k, v, scale, layout)[None]

    @staticmethod
    def backward(ctx, grad: Tensor):
        q, k, v = ctx.saved_tensors
        out = q.new_empty(len(q), q.shape[1] + 2 * k.shape[1], q.shape[2])
        slopes = attend_backward(grad[0], q, k, v, ctx.scale, ctx.layout, out)
        return *(slope.transpose(0, 1)[None] for slope in slopes), None, None


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, layout: Layout, out: Tensor | None = None) -> Tensor:
    """Softmax attention of a pack on a CPU, parts of like length at once.

    Args:
        q: queries, (T, heads, D).
        k, v: (T, key heads, D).
        scale: of the scores.
        layout: what each query may see.
        out: room for the result, of whole lines of D.

    Returns:
        (T, heads, D).

    Raises:
        IndexError: the layout has more tokens than `q`, or `k` and `v` have other numbers.
    """
    if not layout.n_tokens <= len(q) == len(k) == len(v):
        raise IndexError(f"the layout has {layout.n_tokens} tokens. Got {len(q)} queries, {len(k)} keys")
    out = q.new_empty(q.shape) if out is None else out
    if _has_tiles():
        for group in _groups(layout):
            put(group.kernel(q, k, v, scale), group.queries[None], out.flatten(1))
        return out
    (heads, n_keys), (lines_out, step_out) = (q.shape[1], k.shape[1]), _lines(out)
    (lines_q, step_q), (lines_k, step_k), (lines_v, step_v) = map(_lines, (q, k, v))
    for group in _groups(layout):
        _, asked = take(lines_q, group.lines(heads, n_keys, step_q), scale)
        _, keys = take(lines_k, group.lines(n_keys, n_keys, step_k, keys=True))
        values = take(lines_v, group.lines(n_keys, n_keys, step_v, keys=True))[wide(v)]
        of_out = group.lines(heads, n_keys, step_out)
        with _exact_in_bf16(q):
            for some, own, seen, p, _ in group.pieces(asked, keys, values.dtype):
                put(torch.bmm(p, values[some, seen]).to(v.dtype), of_out[some, own], lines_out)
    return out


def attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, layout: Layout, out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes of q, k and v from that of `attend`'s result. The scores are computed again: nothing quadratic is kept.

    Args:
        grad, q, k, v, scale, layout: as for `attend`.
        out: room for the slopes side by side, (T, heads + 2 key heads, D), of whole lines of D.

    Returns:
        the three, views of `out`.
    """
    heads, n_keys, high = q.shape[1], k.shape[1], torch.promote_types(q.dtype, torch.float32)
    (lines_q, step_q), (lines_k, step_k), (lines_v, step_v) = map(_lines, (q, k, v))
    (lines_grad, step_grad), (lines_out, step_out) = _lines(grad), _lines(out)
    sums = out.new_zeros(len(k), 2, n_keys, k.shape[2], dtype=high)  # of k's and v's slopes
    (sums_k, step), (sums_v, _) = _lines(sums[:, 0]), _lines(sums[:, 1])
    for group in _groups(layout):
        of_out, of_sums = group.lines(heads, n_keys, step_out), group.lines(n_keys, n_keys, step, keys=True)
        asked, high_q = take(lines_q, group.lines(heads, n_keys, step_q), scale)
        above, high_above = take(lines_grad, group.lines(heads, n_keys, step_grad))
        keys, high_k = take(lines_k, group.lines(n_keys, n_keys, step_k, keys=True))
        _, high_v = take(lines_v, group.lines(n_keys, n_keys, step_v, keys=True))
        times = scale
        if wide(q):
            asked, above, keys, times = high_q, high_above, high_k, 1.0
        # scores and their slopes are fp32: rounded to bf16, large ones that nearly cancel turn gradients
        with _exact_in_bf16(q):
            for some, own, seen, p, slope in group.pieces(high_q, high_k, keys.dtype, high_above, high_v):
                add(torch.bmm(p.transpose(1, 2), above[some, own]), of_sums[some, seen], sums_v)
                put(torch.bmm(slope, keys[some, seen]).to(q.dtype), of_out[some, own], lines_out, scale)
                add(torch.bmm(slope.transpose(1, 2), asked[some, own]), of_sums[some, seen], sums_k, times)
    out[:, heads:] = sums.flatten(1, 2)
    return out[:, :heads], out[:, heads : heads + n_keys], out[:, heads + n_keys :]


def _lines(x: Tensor) -> tuple[Tensor, int]:
    """x (T, heads, D) as lines (N, D) that follow each other, and how many there are from token to token."""
    n, heads, size = x.shape
    if x.stride()[1:] != (size, 1) or x.stride(0) % size or not n:
        x = x.contiguous()
    step = x.stride(0) // size
    return x.as_strided((max(0, (n - 1) * step + heads), size), (size, 1)), step


@lru_cache
def _has_tiles() -> bool:
    """Does the processor multiply tiles (AMX)? There PyTorch's kernel is faster than products of scores."""
    return getattr(torch.cpu, "_is_amx_tile_supported", bool)()


@contextmanager
def _exact_in_bf16(x: Tensor) -> Iterator[None]:
    """Inside, if `x` is bf16, products of fp32 tensors may round them to bf16.

    All were bf16 before, so nothing is lost; sums and results are fp32, two to three times as fast where the processor
    multiplies bf16. The setting is PyTorch's, for the whole process.
    """
    products: Any = getattr(torch.backends.mkldnn, "matmul", None)
    if x.dtype != torch.bfloat16 or not hasattr(products, "fp32_precision"):
        yield
        return
    before, products.fp32_precision = products.fp32_precision, "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


@lru_cache(maxsize=64)
def _future(n: int, dtype: torch.dtype) -> Tensor:
    """-inf where a key stands after the query, else 0: added, it is thirty times as fast as a mask. Shape (n, n)."""
    return torch.full((n, n), float("-inf"), dtype=dtype).triu(1)
