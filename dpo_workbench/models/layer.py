"""A decoder layer of Llama's kind with LoRA as one function, for packs on a CPU.

Much of a step was no matrix product (docs/performance.md). One function needs few temporaries, no sums of gradients by
autograd and no copies of heads, and linear layers of one input are one product, LoRA with them.
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
from dpo_workbench.models.kernels import gated, gated_slopes, mm, norm, norm_slope, normed, turn

# linear layers, those of one input together
READERS = tuple(
    tuple(f"{part}_proj" for part in parts.split())
    for parts in ("self_attn.q self_attn.k self_attn.v", "self_attn.o", "mlp.gate mlp.up", "mlp.down")
)
PRODUCTS = tuple(name for names in READERS for name in names)
NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass
class Read:
    """Places of a pack whose last hidden states are read. A last layer that leaves out the others says so."""

    places: Tensor  # (N,), with repeats
    alone: bool = False


def _anywhere(shape: Sequence[int], like: Tensor) -> Tensor:
    return like.new_empty(shape)


def _room(n: int, known: int, width: int, times: int, like: Tensor, new: Callable) -> Tensor:
    """Room for (n, width), in rows a multiple of `times` apart; 0 behind the first `known` columns.

    Products of bf16 on AMX read a few numbers past a row's end, times 0, and NaN there would stay NaN.
    """
    room = new((n, -(-width // times) * times), like)
    room[:, known:] = 0.0
    return room[:, :width]


class _Matrix:
    """Linear layers that read one input as one matrix M = [[W, s B], [A, 0]]; their weights become views of it.

    x W^T + s (x A^T) B^T = [x, x A^T] [W, s B]^T, and the slope of x is [g, s g B] [W; A]: LoRA widens the products of
    the weights by its rank R (of all layers together) and adds nothing to their results.
    """

    def __init__(self, layers: Sequence[Any], rank: int) -> None:
        weights = [layer.base_layer.weight for layer in layers]
        self.sizes = [len(weight) for weight in weights]
        self.n_in, self.n_out, self.rank = weights[0].shape[1], sum(self.sizes), rank
        self.on, self.times = False, 0  # an adapter is in it; that one was taken in or out
        with torch.inference_mode(False), torch.no_grad():
            self._all = weights[0].new_zeros(self.n_out + rank * len(weights), self.n_in + rank * len(weights))
            self._views = self._all[: self.n_out, : self.n_in].split(self.sizes)
            for weight, view in zip(weights, self._views, strict=True):
                weight.data = view.copy_(weight)

    def is_of(self, layers: Sequence[Any], rank: int) -> bool:
        """Do the layers still have these weights? Whoever moves or replaces them knows nothing of the matrix."""
        weights = (layer.base_layer.weight for layer in layers)
        return rank == self.rank and all(
            w.data_ptr() == view.data_ptr() and w.dtype == view.dtype and w.stride() == view.stride()
            for w, view in zip(weights, self._views, strict=True)
        )

    def take_in(self, lora: Sequence[Tensor], scale: float) -> None:
        """A (rank, in) and B (out, rank) of the layers in turn, or none."""
        if not lora:
            if self.on:
                self._all[: self.n_out, self.n_in :] = 0.0
                self.on, self.times = False, self.times + 1
            return
        self.on, self.times = True, self.times + 1
        row, down, across = 0, self.n_out, self.n_in
        for a, b, size in zip(lora[::2], lora[1::2], self.sizes, strict=True):
            self._all[down : down + self.rank, : self.n_in] = a
            torch.mul(b, scale, out=self._all[row : row + size, across : across + self.rank])
            row, down, across = row + size, down + self.rank, across + self.rank

    def room(self, n: int, like: Tensor, new: Callable = _anywhere, times: int = 1) -> Tensor:
        """For n inputs and what the As make of them, (n, in + R). The rows are a multiple of `times` apart."""
        return _room(n, self.n_in, self._all.shape[1], times, like, new)

    def product(self, x: Tensor, out: Tensor) -> Tensor:
        """Of inputs (n, in + R), whose last columns are written here. Returns `out`, (n, all outs).

        Without adapter they are 0 and read as well: so an adapter with B = 0 changes no bit.
        """
        if self.on:
            mm(x[:, : self.n_in], self._all[self.n_out :, : self.n_in].T, out=x[:, self.n_in :])
        return mm(x, self._all[: self.n_out].T, out=out)

    def room_back(self, n: int, like: Tensor, times: int = 1) -> Tensor:
        """For slopes of n results and what the Bs make of them, (n, all outs + R)."""
        return _room(n, self.n_out, len(self._all), times, like, _anywhere)

    def _each(self) -> Iterator[tuple[slice, slice]]:
        """Of each layer: where its results lie among all, and its rank among R. The products of all would be larger."""
        start = 0
        for i, size in enumerate(self.sizes):
            yield slice(start, start + size), slice(i * self.rank, (i + 1) * self.rank)
            start += size

    def through(self, grad: Tensor) -> Tensor:
        """Write the last R columns of slopes (n, all outs + R)."""
        of_inner, bs = grad[:, self.n_out :], self._all[:, self.n_in :]
        for outs, ranks in self._each():
            mm(grad[:, outs], bs[outs, ranks], out=of_inner[:, ranks])
        return grad

    def product_back(self, grad: Tensor) -> Tensor:
        """The inputs' slopes (n, in) from what `through` gave."""
        return mm(grad, self._all[:, : self.n_in])

    def slopes(self, x: Tensor, inner: Tensor, grad: Tensor, scale: float, dtype: torch.dtype) -> list[Tensor]:
        """Of A and B of the layers in turn, from inputs (n, in), what the As made of them (n, R), and `through`'s."""
        of_a = _few_by_many(grad[:, self.n_out :], x).to(dtype).split(self.rank)
        of_b = [_few_by_many(inner[:, ranks], grad[:, outs]).T.to(dtype) * scale for outs, ranks in self._each()]
        return [slope for both in zip(of_a, of_b, strict=True) for slope in both]


def _few_by_many(few: Tensor, many: Tensor) -> Tensor:
    """(n, a), (n, b) -> (a, b). In fp32 (MKL) faster with the many as rows of the result, in bf16 (oneDNN) the few."""
    return mm(many.T, few).T if many.dtype == torch.float32 else mm(few.T, many)


class _Frozen(NamedTuple):
    """What of a layer is not trained."""

    matrices: list[_Matrix]  # of READERS
    norms: list[Tensor]  # of NORMS, (H,)
    eps: list[float]
    size: int  # D, of a head
    scaling: float  # of attention's scores
    lora: float  # LoRA's scale
    new: Callable[[Sequence[int], Tensor], Tensor]  # an empty tensor of that shape, for what is kept

    def take_in(self, lora: Sequence[Tensor], before: list[int] | None = None) -> list[int]:
        """Into all matrices, but for those that no other adapter went into since `before`, which this returned."""
        start = 0
        for i, matrix in enumerate(self.matrices):
            stop = start + 2 * len(matrix.sizes)
            if before is None or matrix.times != before[i]:
                matrix.take_in(lora[start:stop], self.lora)
            start = stop
        return [matrix.times for matrix in self.matrices]


class _DecoderLayer(torch.autograd.Function):
    """x (T, H) -> (T, H), or (N, H) of the places to `read` where these are given.

    `lora`: A (rank, in) and B (out, rank) of the linear layers in turn; none where the adapter is off.
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
        (qkv, o, mlp, down), new, n = frozen.matrices, frozen.new, len(x)
        ctx.times = frozen.take_in(lora)
        unit = qkv.room(n, x)
        inverse = norm(x, frozen.norms[0], frozen.eps[0], None, unit[:, : qkv.n_in])
        heads = qkv.product(unit, new((n, qkv.n_out), x)).unflatten(1, (-1, frozen.size))
        in_qkv = new((n, unit.shape[1] - qkv.n_in), x).copy_(unit[:, qkv.n_in :])
        q, k, v = heads.split([size // frozen.size for size in qkv.sizes], 1)
        turn(heads[:, : q.shape[1] + k.shape[1]], cos, sin)
        # rows of whole heads, as attention counts them
        seen = o.room(n, x, new if read is None else _anywhere, frozen.size)
        attend(q, k, v, frozen.scaling, layout, seen[:, : o.n_in].unflatten(1, q.shape[1:]))
        here = x
        if read is not None:
            here, n = x[read], len(read)
            seen = o.room(n, x, new).copy_(seen[read])
        middle = o.product(seen, new((n, o.n_out), x))
        unit = mlp.room(n, x)
        inverse_2 = norm(middle, frozen.norms[1], frozen.eps[1], here, unit[:, : mlp.n_in])
        gate_up = mlp.product(unit, new((n, mlp.n_out), x))
        in_mlp = new((n, unit.shape[1] - mlp.n_in), x).copy_(unit[:, mlp.n_in :])
        act = down.room(n, x)
        gated(gate_up, act[:, : down.n_in])
        out = down.product(act, new((n, down.n_out), x))
        in_down = new((n, act.shape[1] - down.n_in), x).copy_(act[:, down.n_in :])
        if lora:
            kept = x, cos, sin, heads, seen, middle, gate_up, inverse, inverse_2, in_qkv, in_mlp, in_down
            ctx.save_for_backward(*kept, *lora)
            ctx.frozen, ctx.layout, ctx.read = frozen, layout, read
        return out.add_(middle)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, cos, sin, heads, seen, middle, gate_up, inverse, inverse_2, in_qkv, in_mlp, in_down, *lora = (
            ctx.saved_tensors
        )
        frozen, scale, dtype = ctx.frozen, ctx.frozen.lora, lora[0].dtype
        qkv, o, mlp, down = frozen.matrices
        frozen.take_in(lora, ctx.times)
        q, k, v = heads.split([size // frozen.size for size in qkv.sizes], 1)

        of_out = down.room_back(len(grad), grad)
        of_out[:, : down.n_out] = grad
        of_act = down.product_back(down.through(of_out))
        of_mlp = mlp.room_back(len(grad), grad)
        act = gated_slopes(gate_up, of_act, of_mlp[:, : mlp.n_out])
        slopes = down.slopes(act, in_down, of_out, scale, dtype)
        del act, of_act, of_out
        of_unit = mlp.product_back(mlp.through(of_mlp))
        grad, unit = norm_slope(of_unit, middle, frozen.norms[1], inverse_2, grad)
        slopes[:0] = mlp.slopes(unit, in_mlp, of_mlp, scale, dtype)
        del of_mlp
        of_middle = o.room_back(len(grad), grad)
        of_middle[:, : o.n_out] = grad
        of_seen = o.product_back(o.through(of_middle))
        slopes[:0] = o.slopes(seen[:, : o.n_in], seen[:, o.n_in :], of_middle, scale, dtype)
        if ctx.read is not None:
            of_seen = of_seen.new_zeros(len(x), of_seen.shape[1]).index_add_(0, ctx.read, of_seen)
        of_qkv = qkv.room_back(len(x), grad, frozen.size)
        of_heads = of_qkv[:, : qkv.n_out].unflatten(1, heads.shape[1:])
        attend_backward(of_seen.view(q.shape), q, k, v, frozen.scaling, ctx.layout, of_heads)
        turn(of_heads[:, : q.shape[1] + k.shape[1]], cos, -sin.roll(frozen.size // 2, -1))
        qkv.through(of_qkv)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_unit = qkv.product_back(of_qkv)
            of_x, unit = norm_slope(of_unit, x, frozen.norms[0], inverse, grad if ctx.read is None else None)
            if ctx.read is not None:
                of_x.index_add_(0, ctx.read, grad)
        else:
            unit = normed(x, frozen.norms[0], inverse)
        slopes[:0] = qkv.slopes(unit, in_qkv, of_qkv, scale, dtype)
        return of_x, None, None, None, None, None, *slopes


def _fast_layer(self: Any, hidden_states: Tensor, *args: Any, last: bool = False, **kwargs: Any) -> Tensor:
    layout, x = kwargs.get("layout"), hidden_states
    first = self.self_attn.q_proj
    if not hasattr(first, "lora_A"):  # PEFT has merged its layers away
        return type(self).forward(self, x, *args, **kwargs)
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
        _matrices(self, layers[0].r[name]),
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


def _matrices(layer: Any, rank: int) -> list[_Matrix]:
    """Made with the first pack, and anew where a layer has got other weights since."""
    found = vars(layer).setdefault("_matrices", [None] * len(READERS))
    for i, names in enumerate(READERS):
        layers = [layer.get_submodule(name) for name in names]
        if found[i] is None or not found[i].is_of(layers, rank):
            found[i] = None
            found[i] = _Matrix(layers, rank)
    return found


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
    taken: set[int] = set()
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
            layer.register_state_dict_post_hook(_each_by_itself)
            taken |= {id(part.base_layer.weight) for part in linear}  # type: ignore[union-attr]
    if taken:  # those go into matrices, and with the last of the others the mapped file leaves memory
        for p in causal.parameters():
            if id(p) not in taken and not p.requires_grad:
                p.data = p.data.clone()


def _each_by_itself(layer: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Weights beside their adapters as tensors of their own, for whoever saves them."""
    for name in PRODUCTS:
        key = f"{prefix}{name}.base_layer.weight"
        key = key if key in state else f"{prefix}{name}.weight"  # PEFT's layers are gone
        if isinstance(state.get(key), Tensor):
            state[key] = state[key].contiguous()


def kind_of(layer: Any) -> tuple:
    """What a layer or a part of one computes with: classes, sizes, hooks and plain settings, not its number."""
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
