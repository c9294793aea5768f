"""Passes over memory in a decoder layer on a CPU, each as one loop that Numba compiles (the extra `cpu`).

PyTorch reads and writes all of a tensor for each sum, product and change of dtype; these loops do it once, in fp32.
They run on the threads of the OpenMP that PyTorch has loaded: a second pool would wait for the same cores. Where Numba
or that OpenMP is not there, for other dtypes and on other devices, each function computes the same by PyTorch.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

OFF = "DPO_WORKBENCH_PLAIN_KERNELS"  # in the environment: leave Numba alone


class Compiled:
    """The loops for one dtype."""

    def __init__(self, loops: dict[str, int], start: Any) -> None:
        self._loops, self._start = loops, start

    def run(self, name: str, *values: Tensor | int | float | None) -> None:
        """Run a loop on all threads. Tensors are contiguous; fractions go as the bits of fp64."""
        numbers = [
            0 if v is None else v.data_ptr() if isinstance(v, Tensor) else v if isinstance(v, int) else _bits(v)
            for v in values
        ]
        data = (ctypes.c_int64 * len(numbers))(*numbers)
        self._start(self._loops[name], ctypes.addressof(data), torch.get_num_threads(), 0)


def _bits(value: float) -> int:
    return ctypes.c_int64.from_buffer(ctypes.c_double(value)).value


def compiled(*tensors: Tensor) -> Compiled | None:
    """The loops for these tensors, if all are contiguous, on the CPU and of one dtype that there are loops for."""
    first = tensors[0]
    if first.device.type != "cpu" or first.dtype not in (torch.float32, torch.bfloat16):
        return None
    if not all(x.dtype == first.dtype and x.is_contiguous() for x in tensors):
        return None
    return _compile(first.dtype)


@lru_cache
def _compile(dtype: torch.dtype) -> Compiled | None:
    if os.environ.get(OFF):
        return None
    try:
        openmp = ctypes.CDLL(torch._C.__file__)  # finds what PyTorch itself is linked with
        openmp.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        openmp.GOMP_parallel.restype = None
    except (OSError, AttributeError):
        return None
    try:
        from dpo_workbench.models import objects

        return Compiled(objects.load(dtype == torch.bfloat16, openmp), openmp.GOMP_parallel)
    except Exception as error:  # whatever Numba has against this machine: the run goes on
        if not isinstance(error, ModuleNotFoundError):
            warnings.warn(f"Numba's loops were not made ({error}): PyTorch does their work, slower", stacklevel=2)
        return None


@lru_cache
def _multiplies_bf16() -> bool:
    return getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)()


def wide(x: Tensor) -> bool:
    """Are products of x better made in fp32: is it bf16, on a CPU that does not multiply that?

    There PyTorch's own products of bf16 are several times slower than those of fp32 (docs/performance.md).
    """
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and not _multiplies_bf16()


def mm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """`torch.mm`; of what is better multiplied in fp32 the result alone is rounded."""
    if not wide(a):
        return torch.mm(a, b, out=out)
    high = torch.mm(*(x.float() if x.stride(1) == 1 else x.T.float().T for x in (a, b)))
    return high.to(a.dtype) if out is None else out.copy_(high)


def inverse_root(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps), at least fp32. Shape (T, 1)."""
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def normed(x: Tensor, weight: Tensor, inverse: Tensor) -> Tensor:
    """x (T, H) over its root mean square, times the norm's weight; `inverse` (T, 1) is fp32 or more."""
    return weight * (x * inverse).to(x.dtype)


def norm(x: Tensor, weight: Tensor, eps: float, add: Tensor | None, out: Tensor) -> Tensor:
    """RMS norm (arXiv 1910.07467, equation 4) of x (T, H), to which `add` is added in place before, into `out`.

    Returns:
        1 over the root mean square (T, 1), at least fp32.
    """
    fast = compiled(x, weight, x if add is None else add) if weight.shape == x.shape[1:] else None
    if fast is None or not _rows(out, x) or (add is not None and add.shape != x.shape):
        if add is not None:
            x += add
        inverse = inverse_root(x, eps)
        out.copy_(normed(x, weight, inverse))
        return inverse
    inverse = x.new_empty(len(x), 1, dtype=torch.float32)
    fast.run("norm", *x.shape, x, add, weight, out, inverse, float(eps), out.stride(0))
    return inverse


def norm_slope(grad: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, add: Tensor | None) -> tuple[Tensor, Tensor]:
    """The slope of `norm`'s x (T, H) from that of its result, which is written over, plus `add`; and the result."""
    fast = compiled(grad, x, weight, x if add is None else add) if weight.shape == x.shape[1:] else None
    if fast is None or not grad.shape == x.shape == (x if add is None else add).shape:
        unit, grad = x * inverse, grad.mul_(weight).to(inverse.dtype)
        along = (grad * unit).mean(-1, keepdim=True)
        grad = grad.sub_(unit.mul_(along)).mul_(inverse).to(x.dtype)
        return grad if add is None else grad.add_(add), normed(x, weight, inverse)
    out = torch.empty_like(x)
    fast.run("norm_slope", *x.shape, grad, x, weight, inverse, add, out)
    return grad, out


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotary positions (arXiv 2104.09864, equation 34) of x (T, heads, D), in place; cos, sin: (T, D)."""
    fast = compiled(cos, sin) if cos.shape == sin.shape == (x.shape[0], x.shape[2]) else None
    if fast is not None and x.dtype == cos.dtype and x.stride()[1:] == (x.shape[2], 1):
        fast.run("turn", *x.shape, x, cos, sin, x.stride(0))
        return
    cos, sin, half = cos[:, None], sin[:, None], x.shape[-1] // 2
    first, last = x[..., :half].clone(), x[..., half:].clone()
    x.mul_(cos)
    x[..., :half].addcmul_(last, sin[..., :half], value=-1)
    x[..., half:].addcmul_(first, sin[..., half:])


def gated(gate_up: Tensor, out: Tensor) -> None:
    """SwiGLU's product (arXiv 2002.05202, equation 5): silu(gate) * up, side by side (T, 2 F), into `out` (T, F)."""
    gate, up = gate_up.chunk(2, 1)
    fast = compiled(gate_up) if _rows(out, gate) else None
    if fast is None:
        torch.mul(silu(gate), up, out=out)
    else:
        fast.run("gate", *gate.shape, gate_up, out, out.stride(0))


def gated_slopes(gate_up: Tensor, grad: Tensor, out: Tensor) -> Tensor:
    """The slopes of gate and up, side by side into `out`, from `gated`'s, over which `gated`'s result is written."""
    gate, up = gate_up.chunk(2, 1)
    fast = compiled(gate_up, grad) if grad.shape == gate.shape and _rows(out, gate_up) else None
    if fast is None:
        act, (of_gate, of_up) = silu(gate), out.chunk(2, 1)
        torch.mul(grad, act, out=of_up)
        of_gate.copy_(torch.ops.aten.silu_backward(grad.mul_(up), gate))
        return torch.mul(act, up, out=grad)
    fast.run("gate_slopes", *gate.shape, gate_up, grad, out, out.stride(0))
    return grad


def _rows(out: Tensor, like: Tensor) -> bool:
    """Has `out` the shape and dtype of `like`, and its rows' numbers side by side?"""
    return out.shape == like.shape and out.dtype == like.dtype and out.stride(1) == 1


def take(x: Tensor, lines: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Lines of x (N, D), named by their numbers (B, R), 0 for a number of -1.

    Returns:
        them as they are, (B, R, D), and times `scale`, at least in fp32.
    """
    fast = compiled(x) if lines.is_contiguous() else None
    if fast is not None:
        low = x.new_empty(*lines.shape, x.shape[1])
        one = x.dtype == torch.float32 and scale == 1.0
        high = low if one else torch.empty_like(low, dtype=torch.float32)
        fast.run("take", lines.numel(), x.shape[1], lines, x, low, None if one else high, float(scale))
        return low, high
    low = x.index_select(0, lines.flatten().clamp(min=0)).view(*lines.shape, -1)
    low = low.masked_fill_((lines < 0)[..., None], 0.0)
    high = low.to(torch.promote_types(x.dtype, torch.float32))
    return low, high if scale == 1.0 else high * scale


def put(x: Tensor, lines: Tensor, out: Tensor, scale: float = 1.0) -> None:
    """x (B, R, D) times `scale` to lines of `out` (N, D), named by their numbers (B, R); -1: nowhere."""
    fast = compiled(x) if lines.stride(1) == 1 and out.stride(1) == 1 and out.dtype == x.dtype else None
    if fast is not None:
        fast.run("put", *x.shape, lines.stride(0), lines, x, out, float(scale), out.stride(0))
    else:
        there = lines >= 0
        out[lines[there]] = x[there] if scale == 1.0 else x[there] * scale


def add(x: Tensor, lines: Tensor, out: Tensor, scale: float = 1.0) -> None:
    """`put` that adds; `out` is at least fp32."""
    fast = compiled(x) if lines.stride(1) == 1 and out.dtype == torch.float32 and out.is_contiguous() else None
    if fast is not None:
        fast.run("add", *x.shape, lines.stride(0), len(out), lines, x, out, float(scale))
    else:
        there = lines >= 0
        out.index_add_(0, lines[there], x[there].to(out.dtype), alpha=scale)


def softmax(
    scores: Tensor,
    low: Tensor,
    first_query: int,
    before: int,
    lengths: Tensor,
    n_keys: int,
    first_row: int,
    grad: Tensor | None = None,
    slope: Tensor | None = None,
) -> bool:
    """Softmax in place of scores (B, queries, heads of a group, keys) of parts side by side, and rounded into `low`.

    Args:
        scores: fp32.
        low: of the same shape; not written if it is fp32.
        first_query: its number in the part.
        before: keys that stand before a part's own.
        lengths: (P,) how many of those, the first, a part has.
        n_keys: key heads; rows of one part follow each other.
        first_row: the number of the first row among all parts' key heads.
        grad: the slope of the result, fp32.
        slope: where that of the scores goes then, in `low`'s dtype.

    Returns:
        whether it is done: there is no form in PyTorch, which adds masks.
    """
    fast = compiled(low, low if slope is None else slope)
    if fast is None or not all(x is None or x.is_contiguous() for x in (scores, grad)):
        return False
    n, queries, groups, keys = scores.shape
    to = None if low.dtype == torch.float32 else low
    places = (n, queries * groups, keys, groups, before, first_query, n_keys, first_row)
    fast.run("softmax", *places, scores, to, lengths, grad, slope)
    return True


def vocabulary(
    scores: Tensor, targets: Tensor, start: int, picked: Tensor, most: Tensor, total: Tensor
) -> Tensor | None:
    """A piece of an online softmax (arXiv 1805.02867, algorithm 3), if there is a loop for it.

    Args:
        scores: (N, M) of the tokens start..start+M-1; they become exp(score - largest of the row so far).
        targets: (N,) tokens; the score of one that is in this piece goes to `picked`.
        picked, most, total: (N,), fp32: the targets' scores, the largest so far, the exponentials' sum relative to it.

    Returns:
        (N,) what weights of the pieces before shrink to, or None: nothing is done.
    """
    fast = compiled(scores)
    if fast is None:
        return None
    shrink = torch.empty_like(total)
    fast.run("vocabulary", *scores.shape, start, scores, targets, picked, most, total, shrink)
    return shrink
