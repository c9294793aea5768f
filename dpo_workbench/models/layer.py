"""A decoder layer of Llama's kind with LoRA as one function, for packs on a CPU.

Much of a step was no matrix product (docs/performance.md). One function needs few temporaries, no sums of gradients by
autograd and no copies of heads, and LoRA's products of one input are one product.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dpo_workbench.models.attention import NAME, Layout, attend, attend_backward
from dpo_workbench.models.kept import room
from dpo_workbench.models.kernels import gated, gated_slopes, norm, norm_slope, normed, turned

PRODUCTS = tuple(f"self_attn.{x}_proj" for x in "qkvo") + tuple(f"mlp.{x}_proj" for x in ("gate", "up", "down"))
NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass
class Read:
    """Places of a pack whose last hidden states are read. A last layer that leaves out the others says so."""

    places: Tensor  # (N,), with repeats
    alone: bool = False


class _Frozen(NamedTuple):
    """What of a layer is not trained."""

    weights: list[Tensor]  # of PRODUCTS, (out, in)
    norms: list[Tensor]  # of NORMS, (H,)
    eps: list[float]
    size: int  # D, of a head
    scaling: float  # of attention's scores
    lora: float  # LoRA's scale
    new: Callable[[Sequence[int], Tensor], Tensor]  # an empty tensor of that shape, for what is kept


class _DecoderLayer(torch.autograd.Function):
    """x (T, H) -> (T, H), or (N, H) of the places to `read` where these are given.

    `lora`: A (rank, in) and B (out, rank) of PRODUCTS in turn; none where the adapter is off.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        frozen: _Frozen,
        layout: Layout,
        read: Tensor | None,
        *lora: Tensor,
    ) -> Tensor:
        (wq, wk, wv, wo, wg, wu, wd), scale, new = frozen.weights, frozen.lora, frozen.new
        low = [p.to(x.dtype) for p in lora]
        a, b = low[0::2], low[1::2]
        unit, inverse = norm(x, frozen.norms[0], frozen.eps[0])
        inner = [_inner(unit, a[:3], new)]
        rooms = (_anywhere, _anywhere, new)
        products = _products(unit, (wq, wk, wv), inner[0], b[:3], scale, rooms)
        q, k, v = (out.unflatten(1, (-1, frozen.size)) for out in products)
        q, k = (turned(part, cos, sin, new(part.shape, x)) for part in (q, k))
        seen = attend(q, k, v, frozen.scaling, layout, new(q.shape, x) if read is None else None).flatten(1)
        here, seen = (x, seen) if read is None else (x[read], seen[read])
        seen = seen if read is None else new(seen.shape, x).copy_(seen)
        inner.append(_inner(seen, a[3:4], new))
        (middle,) = _products(seen, (wo,), inner[1], b[3:4], scale, (new,))
        unit, inverse_2 = norm(middle, frozen.norms[1], frozen.eps[1], here)
        inner.append(_inner(unit, a[4:6], new))
        gate, up = _products(unit, (wg, wu), inner[2], b[4:6], scale, (new, new))
        act = gated(gate, up)
        inner.append(_inner(act, a[6:], new))
        (out,) = _products(act, (wd,), inner[3], b[6:], scale, (new,))
        if low:
            ctx.save_for_backward(x, cos, sin, q, k, v, seen, middle, gate, up, inverse, inverse_2, *inner, *low)
            ctx.frozen, ctx.layout, ctx.read, ctx.dtype = frozen, layout, read, lora[0].dtype
        return out.add_(middle)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, cos, sin, q, k, v, seen, middle, gate, up, inverse, inverse_2, *rest = ctx.saved_tensors
        (in_qkv, in_o, in_mlp, in_down), a, b = rest[:4], rest[4::2], rest[5::2]
        frozen, scale = ctx.frozen, ctx.frozen.lora
        wq, wk, wv, wo, wg, wu, wd = frozen.weights
        slopes: list[Tensor] = []  # of A and B, from the last product to the first

        def through(grads: list[Tensor], start: int) -> Tensor:
            """What of the products' slopes reaches their As, side by side (T, rank x products)."""
            return _cat([g @ up for g, up in zip(grads, b[start:], strict=False)]).mul_(scale)

        def learn(source: Tensor, inner: Tensor, grads: list[Tensor], down: Tensor) -> None:
            """The slopes of A and B of products that read `source`."""
            of_a = (down.T @ source).to(ctx.dtype).chunk(len(grads))
            parts = inner.chunk(len(grads), 1)
            of_b = [(part.T @ g).T.to(ctx.dtype) * scale for part, g in zip(parts, grads, strict=True)]
            slopes[:0] = [s for both in zip(of_a, of_b, strict=True) for s in both]

        down = through([grad], 6)
        act, of_gate, of_up = gated_slopes(gate, up, (grad @ wd).addmm_(down, a[6]))
        learn(act, in_down, [grad], down)
        del act
        down = through([of_gate, of_up], 4)
        of_unit = (of_gate @ wg).addmm_(of_up, wu).addmm_(down, _cat(a[4:6], 0))
        grad, unit = norm_slope(of_unit, middle, frozen.norms[1], inverse_2, grad)
        learn(unit, in_mlp, [of_gate, of_up], down)
        del of_gate, of_up
        down = through([grad], 3)
        learn(seen, in_o, [grad], down)
        of_seen = (grad @ wo).addmm_(down, a[3])
        if ctx.read is not None:
            of_seen = of_seen.new_zeros(len(x), of_seen.shape[1]).index_add_(0, ctx.read, of_seen)
        slopes_qkv = attend_backward(of_seen.view(q.shape), q, k, v, frozen.scaling, ctx.layout)
        back = -sin.roll(frozen.size // 2, -1)
        of_q, of_k = (turned(s, cos, back, torch.empty_like(s)).flatten(1) for s in slopes_qkv[:2])
        of_v = slopes_qkv[2].flatten(1)
        down = through([of_q, of_k, of_v], 0)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_unit = (of_q @ wq).addmm_(of_k, wk).addmm_(of_v, wv).addmm_(down, _cat(a[:3], 0))
            of_x, unit = norm_slope(of_unit, x, frozen.norms[0], inverse, grad if ctx.read is None else None)
            if ctx.read is not None:
                of_x.index_add_(0, ctx.read, grad)
        else:
            unit = normed(x, frozen.norms[0], inverse)
        learn(unit, in_qkv, [of_q, of_k, of_v], down)
        return of_x, None, None, None, None, None, *slopes


def _anywhere(shape: Sequence[int], like: Tensor) -> Tensor:
    return like.new_empty(shape)


def _cat(parts: list[Tensor], dim: int = 1) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _inner(x: Tensor, a: list[Tensor], new: Callable) -> Tensor | None:
    return torch.mm(x, _cat(a, 0).T, out=new((len(x), sum(map(len, a))), x)) if a else None


def _products(
    x: Tensor, weights: Sequence[Tensor], inner: Tensor | None, b: list[Tensor], scale: float, rooms: Sequence[Callable]
) -> Iterator[Tensor]:
    for i, (weight, new) in enumerate(zip(weights, rooms, strict=True)):
        out = torch.mm(x, weight.T, out=new((len(x), len(weight)), x))
        yield out if inner is None else out.addmm_(inner.chunk(len(weights), 1)[i], b[i].T, alpha=scale)


def _fast_layer(self: Any, hidden_states: Tensor, *args: Any, last: bool = False, **kwargs: Any) -> Tensor:
    layout, x = kwargs.get("layout"), hidden_states
    first = self.self_attn.q_proj
    off = first.disable_adapters or first.merged
    grads = torch.is_grad_enabled()
    again = getattr(self, "gradient_checkpointing", False) and self.training  # then nothing of it is kept
    other = self.self_attn.config._attn_implementation != NAME or kwargs.get("past_key_values") is not None
    if layout is None or x.device.type != "cpu" or other or (off and grads):
        return type(self).forward(self, x, *args, **kwargs)
    name, layers = first.active_adapters[0], [self.get_submodule(name) for name in PRODUCTS]
    if len({(layer.r[name], layer.scaling[name]) for layer in layers}) > 1:
        return type(self).forward(self, x, *args, **kwargs)
    norms = [self.get_submodule(norm) for norm in NORMS]
    frozen = _Frozen(
        [layer.base_layer.weight for layer in layers],
        [norm.weight for norm in norms],
        [norm.variance_epsilon for norm in norms],
        self.self_attn.head_dim,
        self.self_attn.scaling,
        first.scaling[name],
        room if grads and not again else _anywhere,
    )
    lora = [] if off else [p for layer in layers for p in (layer.lora_A[name].weight, layer.lora_B[name].weight)]
    cos, sin = (part[0] for part in kwargs["position_embeddings"])
    places, read = None, kwargs.get("read")
    # in bf16 each new number of rows has its products compiled anew, which costs more than it saves
    if last and read is not None and x.dtype != torch.bfloat16:
        places, read.alone = read.places, True

    def compute(x: Tensor) -> Tensor:
        return _DecoderLayer.apply(x[0], cos, sin, frozen, layout, places, *lora)[None]

    return self._gradient_checkpointing_func(compute, x) if grads and again else compute(x)


def use_fast_layers(causal: Any, is_fast: Callable[[Any], bool]) -> None:
    """Swap in the function for decoder layers whose own forward pass gives the same on a short pack, in fp32.

    Of layers that differ in nothing but their number and their weights' values the first one is tried.

    Args:
        causal: a causal LM with an adapter.
        is_fast: whether a linear layer has plain LoRA and nothing else.
    """
    decoder, weight = causal.get_decoder(), causal.get_input_embeddings().weight
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is None or weight.device.type != "cpu":
        return
    x = torch.randn(1, 10, weight.shape[1], generator=torch.Generator().manual_seed(0))
    places = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 5, 6]])
    seen = {"position_ids": places, "layout": Layout(((0, 5, (3, 2)),)), "attention_mask": places[None, None] >= 0}
    layers = list(getattr(decoder, "layers", ()))

    def same(layer: Any) -> bool:
        # rounded to bf16, a small difference is not seen
        twin = layer if weight.dtype == torch.float32 else copy.deepcopy(layer).float()
        try:
            seen["position_embeddings"] = rotary(x, places)
            want, got = type(layer).forward(twin, x, **seen), _fast_layer(twin, x, **seen)
        except (TypeError, ValueError, AttributeError, LookupError, RuntimeError):
            return False
        return isinstance(want, Tensor) and bool((want - got).abs().max() <= 1e-4 * (want - x).abs().max())

    tried: dict[tuple, bool] = {}
    for layer in layers:
        found = dict(layer.named_modules())
        linear = [found.get(name) for name in PRODUCTS]
        if "forward" in vars(layer) or not all(is_fast(m) and m.base_layer.bias is None for m in linear):  # type: ignore[union-attr]
            continue
        kind = kind_of(layer)
        if kind not in tried:
            tried[kind] = same(layer)
        if tried[kind]:
            layer.forward = types.MethodType(partial(_fast_layer, last=layer is layers[-1]), layer)


def kind_of(layer: Any) -> tuple:
    """What a layer or a part of it computes with: classes, sizes, hooks and plain settings of it and of all in it, not its number."""
    return tuple(
        (
            name,
            type(module),
            *((key, p.shape, p.dtype) for key, p in module.named_parameters(recurse=False)),
            *((key, x) for key, x in vars(module).items() if key != "layer_idx" and _is_setting(x)),
            *map(id, (*module._forward_hooks.values(), *module._forward_pre_hooks.values())),
        )
        for name, module in layer.named_modules()
    )


def _is_setting(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)
