"""The loops that Numba compiles give what PyTorch gives, and PyTorch takes over where they cannot run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from dpo_workbench.models import kernels

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=DTYPES, ids=["fp32", "bf16"])
def dtype(request, openmp) -> torch.dtype:
    assert kernels._compile(request.param) is not None
    return request.param


def drawn(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def both(monkeypatch, compute):
    """What the loops give, and what PyTorch does, each as a list of tensors."""
    found = []
    for plain in (False, True):
        with monkeypatch.context() as patch:
            if plain:
                patch.setattr(kernels, "_compile", lambda dtype: None)
            result = compute()
        found.append([result] if isinstance(result, torch.Tensor) else list(result))
    return found


def assert_like(got, want, dtype: torch.dtype) -> None:
    near = 2e-6 if dtype == torch.float32 else 2**-7
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert (one.double() - other.double()).abs().max() <= near * other.double().abs().max()
        assert other.abs().max() > 0


@pytest.mark.parametrize("rows", [1, 2, 7, 64])
def test_passes_of_a_layer_equal_pytorchs(rows, dtype, monkeypatch) -> None:
    x, grad, more = (drawn(dtype, rows, 50, seed=seed) for seed in range(3))
    weight, inverse = drawn(dtype, 50, seed=3), drawn(torch.float32, rows, 1, seed=4).abs()
    gate_up, of_act = drawn(dtype, rows, 74) * 4, drawn(dtype, rows, 37, seed=2) * 4
    heads, cos, sin = drawn(dtype, rows, 3, 10), drawn(dtype, rows, 10, seed=5), drawn(dtype, rows, 10, seed=6)

    def wide(n: int) -> torch.Tensor:
        return torch.empty(rows, n + 3, dtype=dtype)[:, 1 : n + 1]  # rows of a wider tensor

    def normed(add):
        here, out = x.clone(), wide(50)
        root = kernels.norm(here, weight, 1e-5, add, out)
        return out, root, here

    def turned():
        out = torch.zeros(rows, 4, 10, dtype=dtype)[:, 1:].copy_(heads)
        kernels.turn(out, cos, sin)
        return out

    def gated():
        out = wide(37)
        kernels.gated(gate_up, out)
        return out

    def slopes():
        out = wide(74)
        return kernels.gated_slopes(gate_up, of_act.clone(), out), out

    for compute in (
        lambda: normed(None),
        lambda: normed(more),
        lambda: kernels.norm_slope(grad.clone(), x, weight, inverse, more),
        lambda: kernels.norm_slope(grad.clone(), x, weight, inverse, None),
        turned,
        gated,
        slopes,
    ):
        assert_like(*both(monkeypatch, compute), dtype)


def test_lines_are_taken_put_and_added_where_they_belong(dtype, monkeypatch) -> None:
    x = drawn(dtype, 20, 12)
    lines = torch.tensor([[3, -1, 7, 0], [19, 5, -1, -1], [2, 4, 6, 8]])
    for scale in (1.0, 0.125):
        got, want = both(monkeypatch, lambda scale=scale: kernels.take(x, lines, scale))
        assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))
        assert got[1].dtype == torch.float32 and not got[0][0, 1].any() and torch.equal(got[0][2, 3], x[8])

    assert kernels.take(x, lines, 2)[1].equal(kernels.take(x, lines, 2.0)[1])  # a model's scale may be a whole number

    some = lines[1:, 1:]  # with a stride of their own
    rows = drawn(dtype, 2, 3, 12, seed=1)

    def put():
        out = torch.zeros_like(x)
        kernels.put(rows, some, out, 0.5)
        return out

    def add():
        out = torch.ones(20, 12)
        for _ in range(3):
            kernels.add(rows, some, out, 0.5)
        return out

    for compute in (put, add):
        (got,), (want,) = both(monkeypatch, compute)
        assert (got - want).abs().max() <= 1e-6 and got[5].any()
        assert (got[5] - got[3]).abs().max() > 0 and torch.equal(got[3], got[0])  # 0 and 3 are not named


def test_softmax_sees_what_a_part_has_before_and_up_to_itself(dtype) -> None:
    parts, n_keys, queries, groups, before = 3, 2, 4, 3, 6
    lengths, first_query = torch.tensor([6, 0, 4]), 2
    keys = before + first_query + queries
    scores = drawn(torch.float32, parts * n_keys, queries, groups, keys) * 10
    place = torch.arange(keys)
    early = (place < before) & (place < lengths.repeat_interleave(n_keys)[:, None])  # (P K, keys)
    own = (place >= before) & (place - before <= first_query + torch.arange(queries)[:, None])  # (queries, keys)
    seen = (early[:, None] | own)[:, :, None]
    want = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    for first in (0, 2):  # some of the rows at a time
        got, low = scores[first:].clone(), torch.zeros(scores[first:].shape, dtype=dtype)
        assert kernels.softmax(got, low, first_query, before, lengths, n_keys, first)
        assert (got - want[first:]).abs().max() <= 1e-6 and not got[(want[first:] == 0)].any()
        if dtype == torch.bfloat16:
            assert torch.equal(low, got.to(dtype))


def test_the_slope_of_a_softmax(dtype) -> None:
    """Three parts of two heads, all keys their own."""
    scores, grad = drawn(torch.float32, 6, 10, 2, 10), drawn(torch.float32, 6, 10, 2, 10, seed=1)
    future = torch.ones(10, 10, dtype=torch.bool).triu(1)[:, None]
    want = scores.clone().requires_grad_()
    want.masked_fill(future, float("-inf")).softmax(-1).backward(grad)
    low, slope = (torch.zeros(scores.shape, dtype=dtype) for _ in range(2))
    assert kernels.softmax(scores, low, 0, 0, torch.zeros(3).long(), 2, 0, grad, slope)
    assert_like([slope], [want.grad.to(dtype)], dtype)


def test_the_vocabulary_in_pieces_is_a_log_softmax(dtype) -> None:
    scores, targets = drawn(dtype, 6, 50) * 20, torch.tensor([0, 12, 13, 49, 30, 25])
    scores[4] = -2000.0  # one far above the others
    scores[4, 30] = 0.0
    picked, total, most = torch.zeros(6), torch.zeros(6), torch.full((6,), -float("inf"))
    sums = torch.zeros(6)
    for start in range(0, 50, 13):
        piece = scores[:, start : start + 13].contiguous()
        shrink = kernels.vocabulary(piece, targets, start, picked, most, total)
        assert shrink is not None and shrink.isfinite().all()
        sums = sums * shrink + piece.float().sum(1)
    want = scores.float().log_softmax(1).gather(1, targets[:, None])[:, 0]
    assert (picked - most - total.log() - want).abs().max() <= 1e-5 * want.abs().max()
    assert torch.equal(most, scores.float().amax(1))
    assert (sums / total - 1).abs().max() <= (1e-6 if dtype == torch.float32 else 2**-8)


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")])
def test_what_is_not_finite_is_not_lost(bad, dtype) -> None:
    """A run stops at it; rounding or an exponential may not make a number of it."""
    x = drawn(dtype, 4, 16)
    x[2, 5] = bad
    good, weight = drawn(dtype, 4, 16, seed=1), torch.ones(16, dtype=dtype)
    out, two = torch.zeros(4, 16, dtype=dtype), torch.zeros(4, 32, dtype=dtype)
    kernels.norm(x, weight, 1e-5, None, out)
    assert not out[2].isfinite().all() and out[1].isfinite().all()
    for gate, up in ((x, good), (good, x)):
        kernels.gated(torch.cat([gate, up], 1), out)
        assert not out[2].isfinite().all() and out[1].isfinite().all()
    act = kernels.gated_slopes(torch.cat([x, good], 1), good.clone(), two)
    assert not any(part[2].isfinite().all() for part in (act, *two.chunk(2, 1)))
    scores = x.float().view(1, 4, 1, 16).clone()
    low = torch.zeros(scores.shape, dtype=dtype)
    kernels.softmax(scores, low, 12, 0, torch.tensor([0]), 1, 0)
    assert not scores[0, 2].isfinite().all() and scores[0, 1].isfinite().all()
    assert dtype == torch.float32 or not low[0, 2].isfinite().all()
    assert not kernels.take(x, torch.tensor([[2]]))[0].isfinite().all()
    total = torch.zeros(4)
    kernels.vocabulary(x.clone(), torch.zeros(4).long(), 0, torch.zeros(4), torch.full((4,), -float("inf")), total)
    assert not total[2].isfinite() and total[1].isfinite()


def test_bf16_is_rounded_as_pytorch_rounds(openmp) -> None:
    assert kernels._compile(torch.bfloat16) is not None
    x = torch.arange(0, 2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).view(1, -1, 16)  # every number
    finite = x.isfinite()
    lines = torch.arange(x.shape[1])[None]
    for scale in (1.0, 0.3, 1.0 + 2**-8, 1e-3):
        out = torch.zeros_like(x[0])
        kernels.put(x.contiguous(), lines, out, scale)
        assert torch.equal(out[finite[0]], (x.float() * torch.tensor(scale)).bfloat16()[finite])
        assert out.isnan().equal(x[0].isnan())


@pytest.mark.parametrize("there", [False, True])
def test_a_processor_without_products_of_bf16_multiplies_in_fp32(monkeypatch, there: bool) -> None:
    monkeypatch.setattr(kernels, "_multiplies_bf16", lambda: there)
    x, w = drawn(torch.bfloat16, 9, 50), drawn(torch.bfloat16, 7, 64, seed=1)[:, :50]
    room = torch.zeros(9, 16, dtype=torch.bfloat16)
    honest, seen = torch.mm, []
    monkeypatch.setattr(torch, "mm", lambda a, b, **more: seen.append(a.dtype) or honest(a, b, **more))
    got = [kernels.mm(x, w.T), kernels.mm(x, w.T, out=room[:, 3:10]), kernels.mm(x.T, x[:, :5])]
    assert set(seen) == {torch.bfloat16 if there else torch.float32} and len(seen) == 3
    want = [x.double() @ w.double().T, x.double() @ w.double().T, x.double().T @ x[:, :5].double()]
    for one, other in zip(got, want, strict=True):
        assert one.dtype == torch.bfloat16 and one.shape == other.shape
        assert (one.double() - other).abs().max() <= 2**-8 * other.abs().max()
    assert torch.equal(room[:, 3:10], got[0]) and not room[:, :3].any() and not room[:, 10:].any()
    assert not kernels.wide(torch.ones(1)) and not kernels.wide(torch.ones(1, dtype=torch.bfloat16, device="meta"))


def test_other_dtypes_strides_and_devices_are_pytorchs() -> None:
    assert kernels.compiled(torch.ones(2, 2, dtype=torch.float64)) is None
    assert kernels.compiled(torch.ones(2, 3).T) is None
    assert kernels.compiled(torch.ones(2), torch.ones(2, dtype=torch.bfloat16)) is None
    assert kernels.compiled(torch.ones(2, device="meta")) is None


@pytest.mark.parametrize(
    "stop", ["import sys; sys.modules['llvmlite'] = None", f"import os; os.environ['{kernels.OFF}'] = '1'"]
)
def test_without_numba_pytorch_takes_over(stop) -> None:
    code = f"{stop}\nimport torch\nfrom dpo_workbench.models import kernels\n"
    code += "x, out = torch.ones(2, 8), torch.ones(2, 4)\n"
    code += "kernels.gated(x, out)\nprint(kernels._compile(x.dtype), out.sum().item())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert run.stdout.split() == ["None", "5.848"] or run.stdout.startswith("None 5.848"), run.stderr


def test_loops_that_cannot_be_made_are_named_once_and_do_without(openmp, monkeypatch) -> None:
    from dpo_workbench.models import objects

    def fails(*_):
        raise TypeError("no such type")

    kernels._compile.cache_clear()
    try:
        monkeypatch.setattr(objects, "load", fails)
        with pytest.warns(UserWarning, match="no such type.*PyTorch does their work"):
            kernels.gated(torch.ones(2, 4), out := torch.zeros(2, 2))
        assert out.all()
        kernels.gated(torch.ones(2, 4), out)
    finally:
        kernels._compile.cache_clear()
