"""The loops of `kernels`, for Numba: numbers are computed with in fp32 and stored in the dtype of the tensors.

A loop gets one pointer to whole numbers, which its first lines name; tensors are addresses.
bf16 is not known to Numba and read as whole numbers of 16 bits, the upper half of an fp32 number.
"""
# mypy: ignore-errors

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

F, U = np.float32, np.uint32
ENDLESS = 2**40
# NaN and infinity stay what they are: a run stops at them
FAST = {"contract", "reassoc", "nsz", "arcp"}
_loops: list[Callable] = []


def compile_all(bf16: bool) -> dict[str, Any]:
    """All loops for tensors of bf16 or fp32, from Numba's cache on the disk where it can be written."""
    signature = types.void(types.CPointer(types.uint16 if bf16 else types.float32))
    made = {}
    for loop in _loops:
        for cache in (True, False):
            try:
                made[loop.__name__] = cfunc(signature, cache=cache, fastmath=FAST, error_model="numpy")(loop)
                break
            except (RuntimeError, OSError):  # no folder to write to
                if not cache:
                    raise
    return made


def _loop(function: Callable) -> Callable:
    _loops.append(function)
    return function


def _pointer_to(kind: Any) -> Any:
    """A function of an address, or of another pointer, that gives a pointer to `kind`."""

    @intrinsic
    def pointer(typing, start):
        def generate(context, builder, signature, args):
            convert = builder.bitcast if isinstance(signature.args[0], types.CPointer) else builder.inttoptr
            return convert(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(start), generate

    return pointer


_to_floats, _to_wholes = _pointer_to(types.float32), _pointer_to(types.int64)


@intrinsic
def _to_like(typing, address, data):
    """The address as a pointer of the type of `data`."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

    return data(address, data), generate


def _of_openmp(name: str) -> Any:
    """One of OpenMP's functions that take nothing and return a whole number."""

    @intrinsic
    def ask(typing):
        def generate(context, builder, signature, args):
            kind = ir.FunctionType(ir.IntType(32), [])
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])

        return types.int32(), generate

    return ask


_thread, _threads = _of_openmp("omp_get_thread_num"), _of_openmp("omp_get_num_threads")


def _same_bits(given: Any, wanted: Any) -> Any:
    """A function that reads the bits of one type of number as another."""

    @intrinsic
    def read(typing, bits):
        def generate(context, builder, signature, args):
            return builder.bitcast(args[0], context.get_value_type(wanted))

        return wanted(given), generate

    return read


_as_float, _as_bits = _same_bits(types.uint32, types.float32), _same_bits(types.float32, types.uint32)
_fraction = _same_bits(types.int64, types.float64)


@njit(inline="always")
def _given(data):
    """The whole numbers that a loop gets."""
    return carray(_to_wholes(data), (16,))


@njit(inline="always")
def _tensor(address, data):
    """All that begins there, in the dtype that the loop is for."""
    return carray(_to_like(address, data), (ENDLESS,))


@njit(inline="always")
def _floats(address):
    return carray(_to_floats(address), (ENDLESS,))


@njit(inline="always")
def _wholes(address):
    return carray(_to_wholes(address), (ENDLESS,))


def _up(x): ...
def _down(x, like): ...


@overload(_up, inline="always")
def _up_of(x):
    """To fp32."""
    if x == types.uint16:
        return lambda x: _as_float(U(x) << U(16))
    return lambda x: x


@overload(_down, inline="always")
def _down_of(x, like):
    """To the dtype of `like`, the nearest, of two the even one. NaN stays NaN."""
    if like == types.uint16:

        def rounded(x, like):
            bits = _as_bits(x)
            more = U(0x7FFF) + ((bits >> U(16)) & U(1))
            return np.uint16((bits + (more & (U(0) - U(x == x)))) >> U(16))

        return rounded
    return lambda x, like: x


@njit(fastmath={"contract"})  # in another order the two parts of log 2 would fall into one
def _exp(x):
    """e^x in fp32, within 2 units of the last place for x in -87..88, at the nearer end's value beyond; NaN for NaN."""
    low = min(max(x, F(-87.0)), F(88.0))
    n = np.floor(low * F(1.4426950408889634) + F(0.5))
    r = low - n * F(0.693359375) + n * F(2.12194440e-4)
    p = F(1.9875691500e-4)
    p = p * r + F(1.3981999507e-3)
    p = p * r + F(8.3334519073e-3)
    p = p * r + F(4.1665795894e-2)
    p = p * r + F(1.6666665459e-1)
    p = p * r + F(5.0000001201e-1)
    return (p * r * r + r + F(1)) * _as_float(U(np.int32(n) + np.int32(127)) << U(23)) + F(0) * x


@njit(inline="always")
def _order(bits):
    """Of fp32 numbers as whole numbers, and back: these stand in the same order, NaN above all."""
    whole = np.int32(bits)
    return whole ^ ((whole >> np.int32(31)) & np.int32(0x7FFFFFFF))


@njit(inline="always")
def _share(n):
    """This thread's part of 0..n-1. OpenMP may have started fewer threads than it was asked for."""
    t, threads = np.int64(_thread()), np.int64(_threads())
    return n * t // threads, n * (t + 1) // threads


@_loop
def norm(data):
    d = _given(data)
    n = d[1]
    x, add = _tensor(d[2], data), _tensor(d[3], data)
    weight, out = _tensor(d[4], data), _tensor(d[5], data)
    inverse, eps, added = _floats(d[6]), F(_fraction(d[7])), d[3] != 0
    first, stop = _share(d[0])
    for t in range(first, stop):
        row, unit = x[t * n : t * n + n], out[t * d[8] : t * d[8] + n]
        total = F(0)
        if added:
            more = add[t * n : t * n + n]
            for i in range(n):
                row[i] = _down(_up(row[i]) + _up(more[i]), row[i])
        for i in range(n):
            total += _up(row[i]) * _up(row[i])
        root = F(1) / np.sqrt(total / F(n) + eps)
        inverse[t] = root
        for i in range(n):
            unit[i] = _down(_up(_down(_up(row[i]) * root, row[i])) * _up(weight[i]), row[i])


@_loop
def norm_slope(data):
    d = _given(data)
    n = d[1]
    grad, x = _tensor(d[2], data), _tensor(d[3], data)
    weight, inverse = _tensor(d[4], data), _floats(d[5])
    add, out, added = _tensor(d[6], data), _tensor(d[7], data), d[6] != 0
    first, stop = _share(d[0])
    for t in range(first, stop):
        slope, row, unit = grad[t * n : t * n + n], x[t * n : t * n + n], out[t * n : t * n + n]
        root, along = inverse[t], F(0)
        for i in range(n):
            along += _up(slope[i]) * _up(weight[i]) * _up(row[i])
            unit[i] = _down(_up(_down(_up(row[i]) * root, row[i])) * _up(weight[i]), row[i])
        along *= root * root / F(n)
        if added:
            more = add[t * n : t * n + n]
            for i in range(n):
                here = (_up(slope[i]) * _up(weight[i]) - _up(row[i]) * along) * root
                slope[i] = _down(here + _up(more[i]), row[i])
        else:
            for i in range(n):
                slope[i] = _down((_up(slope[i]) * _up(weight[i]) - _up(row[i]) * along) * root, row[i])


@_loop
def turn(data):
    d = _given(data)
    heads, size = d[1], d[2]
    half = size // 2
    x, cos, sin = _tensor(d[3], data), _tensor(d[4], data), _tensor(d[5], data)
    first, stop = _share(d[0])
    for t in range(first, stop):
        c, s = cos[t * size : t * size + size], sin[t * size : t * size + size]
        c1, c2, s1, s2 = c[:half], c[half:], s[:half], s[half:]
        for h in range(heads):
            start = t * d[6] + h * size
            a, b = x[start : start + half], x[start + half : start + size]
            for i in range(half):
                left, right = _up(a[i]), _up(b[i])
                a[i] = _down(left * _up(c1[i]) - right * _up(s1[i]), a[i])
                b[i] = _down(right * _up(c2[i]) + left * _up(s2[i]), b[i])


@_loop
def gate(data):
    d = _given(data)
    n = d[1]
    both, out = _tensor(d[2], data), _tensor(d[3], data)
    first, stop = _share(d[0])
    for t in range(first, stop):
        start = t * 2 * n
        x, y, z = both[start : start + n], both[start + n : start + 2 * n], out[t * d[4] : t * d[4] + n]
        for i in range(n):
            g = _up(x[i])
            z[i] = _down(g / (F(1) + _exp(-g)) * _up(y[i]), x[i])


@_loop
def gate_slopes(data):
    d = _given(data)
    n = d[1]
    both, grad, out = _tensor(d[2], data), _tensor(d[3], data), _tensor(d[4], data)
    first, stop = _share(d[0])
    for t in range(first, stop):
        start, to = t * 2 * n, t * d[5]
        x, y, z = both[start : start + n], both[start + n : start + 2 * n], grad[t * n : t * n + n]
        of_gate, of_up = out[to : to + n], out[to + n : to + 2 * n]
        for i in range(n):
            g, u, s = _up(x[i]), _up(y[i]), _up(z[i])
            open_ = F(1) / (F(1) + _exp(-g))
            act = g * open_
            z[i] = _down(act * u, x[i])
            of_up[i] = _down(s * act, x[i])
            of_gate[i] = _down(s * u * (open_ + act * (F(1) - open_)), x[i])


@_loop
def softmax(data):
    """Of scores (B, queries x heads of a group, keys), in place; a part's keys before its own are its first ones.

    And the scores' slope from that of the result, where there is one.
    """
    d = _given(data)
    rows, keys, groups, before, first_query, n_keys, first_row = d[1], d[2], d[3], d[4], d[5], d[6], d[7]
    scores, low = _floats(d[8]), _tensor(d[9], data)
    lengths, grad, out = _wholes(d[10]), _floats(d[11]), _tensor(d[12], data)
    first, stop = _share(d[0] * rows)
    for at in range(first, stop):
        b, row = at // rows, at % rows
        seen, own = lengths[(first_row + b) // n_keys], first_query + row // groups + 1
        whole, rounded = scores[at * keys : at * keys + keys], low[at * keys : at * keys + keys]
        x, y = whole[:seen], whole[before : before + own]
        key = _order(_as_bits(y[own - 1]))
        for i in range(seen):
            key = max(key, _order(_as_bits(x[i])))
        for i in range(own):
            key = max(key, _order(_as_bits(y[i])))
        most, total = _as_float(U(_order(key))), F(0)
        for i in range(seen):
            e = _exp(x[i] - most)
            x[i] = e
            total += e
        for i in range(own):
            e = _exp(y[i] - most)
            y[i] = e
            total += e
        over = F(1) / total
        whole[seen:before] = F(0)
        whole[before + own :] = F(0)
        for i in range(keys):
            whole[i] = whole[i] * over
        if d[9]:
            for i in range(keys):
                rounded[i] = _down(whole[i], rounded[i])
        if d[11]:
            s, z, along = grad[at * keys : at * keys + keys], out[at * keys : at * keys + keys], F(0)
            for i in range(keys):
                along += whole[i] * s[i]
            for i in range(keys):
                z[i] = _down(whole[i] * (s[i] - along), z[i])


@_loop
def take(data):
    """Lines of D numbers, 0 where a line's number is -1: as they are, and times a factor in fp32."""
    d = _given(data)
    size, factor = d[1], F(_fraction(d[6]))
    lines, x = _wholes(d[2]), _tensor(d[3], data)
    low, high = _tensor(d[4], data), _floats(d[5])
    first, stop = _share(d[0])
    for at in range(first, stop):
        a, b = low[at * size : at * size + size], high[at * size : at * size + size]
        line = x[max(lines[at], 0) * size : max(lines[at], 0) * size + size]
        for i in range(size):
            a[i] = line[i] if lines[at] >= 0 else _down(F(0), line[i])
        if d[5]:
            for i in range(size):
                b[i] = _up(line[i]) * factor if lines[at] >= 0 else F(0)


@_loop
def put(data):
    """x (B, R, D) times a factor to lines of `out`; they and their numbers have strides of their own. -1: nowhere."""
    d = _given(data)
    rows, size, stride, factor = d[1], d[2], d[3], F(_fraction(d[7]))
    lines, x = _wholes(d[4]), _tensor(d[5], data)
    out = _tensor(d[6], data)
    first, stop = _share(d[0] * rows)
    for at in range(first, stop):
        line = lines[at // rows * stride + at % rows]
        if line >= 0:
            a, b = x[at * size : at * size + size], out[line * d[8] : line * d[8] + size]
            for i in range(size):
                b[i] = _down(_up(a[i]) * factor, b[i])


@_loop
def add(data):
    """x (B, R, D) times a factor added to lines of `out`, fp32, each by the one thread that it falls to."""
    d = _given(data)
    rows, size, stride, factor = d[1], d[2], d[3], F(_fraction(d[8]))
    lines, x = _wholes(d[5]), _tensor(d[6], data)
    out = _floats(d[7])
    first, stop = _share(d[4])
    for at in range(d[0] * rows):
        line = lines[at // rows * stride + at % rows]
        if first <= line < stop:
            a, b = x[at * size : at * size + size], out[line * size : line * size + size]
            for i in range(size):
                b[i] += _up(a[i]) * factor


@_loop
def vocabulary(data):
    """Online softmax of scores (N, M), which become their exponentials relative to the largest of a row so far."""
    d = _given(data)
    n, start = d[1], d[2]
    scores, targets, picked = _tensor(d[3], data), _wholes(d[4]), _floats(d[5])
    most, total, shrink = _floats(d[6]), _floats(d[7]), _floats(d[8])
    first, stop = _share(d[0])
    for t in range(first, stop):
        row = scores[t * n : t * n + n]
        before = most[t]
        key = _order(_as_bits(before))
        for i in range(n):
            key = max(key, _order(_as_bits(_up(row[i]))))
        now, sum_ = _as_float(U(_order(key))), F(0)
        if start <= targets[t] < start + n:
            picked[t] = _up(row[targets[t] - start])
        for i in range(n):
            e = _exp(_up(row[i]) - now)
            sum_ += e
            row[i] = _down(e, row[i])
        shrink[t] = _exp(max(before, F(-1e30)) - now)
        total[t] = total[t] * shrink[t] + sum_
        most[t] = now
