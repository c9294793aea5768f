"""Attention over a pack equals masked SDPA over the whole, values and gradients; grouped heads change nothing."""

import random

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from dpo_workbench.models import attention as module
from dpo_workbench.models.attention import Front, Layout, _attention_of_parts, attention

ROWS = ((0, 5, (3, 2)), (10, 1, (1,)), (12, 4, (0, 6)), (22, 7, ()))  # shared tokens, then what is left of each answer
N_TOKENS = 29


def allowed(rows, n: int) -> torch.Tensor:
    """True where a token may look, written down place by place. Shape (n, n)."""
    mask = torch.zeros(n, n, dtype=torch.bool)
    for row, shared, rests in rows:
        spans = [(row, row + shared)]
        for rest in rests:
            spans.append((spans[-1][1], spans[-1][1] + rest))
        for first, stop in spans:
            for query in range(first, stop):
                mask[query, row : min(query + 1, row + shared)] = True
                mask[query, first : query + 1] = True
    return mask


def inputs(heads: int, groups: int, dtype=torch.float64) -> list[torch.Tensor]:
    torch.manual_seed(heads + groups)
    sizes = (heads * groups, heads, heads)
    return [torch.randn(1, h, N_TOKENS, 8, dtype=dtype, requires_grad=True) for h in sizes]


def outcome(compute, tensors) -> list[torch.Tensor]:
    out = compute(*tensors)
    torch.manual_seed(9)
    return [
        out,
        *torch.autograd.grad(
            (out * torch.randn(out.shape, dtype=torch.float64).bfloat16().to(out.dtype)).sum(), tensors
        ),
    ]


@pytest.mark.parametrize("filled", [(1.0, 0), (1.25, 16), (9.0, 999)])  # parts of one length, of like, of any
@pytest.mark.parametrize("block", [2, 3, 96, "tiles"])
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (2, 1), (2, 3)])
def test_pack_equals_masked_attention(monkeypatch, heads: int, groups: int, block: int | str, filled) -> None:
    module._groups.cache_clear()
    monkeypatch.setattr(module, "_has_tiles", lambda: block == "tiles")
    monkeypatch.setattr(module, "BLOCK", 3 if block == "tiles" else block)
    monkeypatch.setattr(module, "SCORES", 40 if block == 2 else 800_000)
    monkeypatch.setattr(module, "FILLED", filled)
    tensors, layout = inputs(heads, groups), Layout(ROWS)

    def plain(q, k, v):
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        return scaled_dot_product_attention(q, k, v, attn_mask=allowed(ROWS, N_TOKENS), scale=0.3).transpose(1, 2)

    want = outcome(plain, tensors)
    blocks = outcome(lambda q, k, v: attention(None, q, k, v, None, scaling=0.3, layout=layout)[0], tensors)
    parts = outcome(lambda q, k, v: _attention_of_parts(q, k, v, 0.3, layout), tensors)  # what a GPU runs
    for got, right in zip([*blocks, *parts], [*want, *want], strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-12)
    other = outcome(lambda q, k, v: _attention_of_parts(q, k, v, 0.3, Layout(((0, N_TOKENS, ()),))), tensors)
    assert (other[0] - want[0]).abs().max() > 0.1  # negative control: one causal sequence is something else


def test_bf16_scores_are_those_of_fp32(monkeypatch) -> None:
    """Their products take bf16 numbers, but add up and answer in fp32, and the setting for that is handed back."""
    monkeypatch.setattr(module, "_has_tiles", lambda: False)
    tensors, layout = [x.detach().bfloat16().requires_grad_() for x in inputs(2, 3, torch.float32)], Layout(ROWS)

    def pack(q, k, v):
        return attention(None, q, k, v, None, scaling=0.3, layout=layout)[0]

    before = torch.backends.mkldnn.matmul.fp32_precision
    got = outcome(pack, tensors)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    exact = outcome(pack, [x.detach().double().requires_grad_() for x in tensors])
    for one, other in zip(got, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2e-2, atol=2e-2)
    with pytest.raises(ZeroDivisionError), module._exact_in_bf16(tensors[0]):
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        raise ZeroDivisionError
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_groups_have_each_part_once_and_are_hardly_filled_up() -> None:
    draw = random.Random(0)
    rows, start = [], 0
    for _ in range(12):
        shared, rests = draw.randint(20, 400), tuple(draw.randint(0, 300) for _ in range(2))
        rows.append((start, shared, rests))
        start += shared + sum(rests)
    layout = Layout(tuple(rows))
    groups = module._groups(layout)
    assert sorted(p for g in groups for p in g.queries[g.queries >= 0].tolist()) == list(range(start))
    assert 1 < len(groups) < len(layout.parts)
    own = sum(n * (before + n) for before, n in (p.sizes for p in layout.parts))
    assert own <= sum(len(g.queries) * (g.before + g.n) for g in groups) <= 1.25 * own + 16_000 * len(groups)


def test_scores_are_made_some_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr(module, "_has_tiles", lambda: False)
    sizes, honest = [], torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda *a, **k: sizes.append(k["out"].numel() if k else 0) or honest(*a, **k))
    q = torch.randn(1, 3, 4000, 8)
    attention(None, q, q, q, None, layout=Layout(((0, 2000, (1000, 1000)),)))
    assert max(sizes) <= 1.5 * module.SCORES and len(sizes) > 20


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_beginning_kept_once_is_a_beginning_in_each_row(groups: int, dtype, near: float) -> None:
    """Two beginnings, then one, of different lengths, for rows of which some have left; own keys under a mask."""
    torch.manual_seed(groups)
    layer, heads, n, size = torch.nn.Module(), 2, 2, 8
    layer.layer_idx, layer.num_key_value_groups = 1, groups
    lengths, samples = (5, 9, 4), 3
    begun = [torch.randn(2, heads, m, size, dtype=dtype) for m in lengths]  # keys and values
    own = torch.randn(2, 9, heads, 7, size, dtype=dtype)
    query = torch.randn(9, heads * groups, n, size, dtype=dtype)
    mask = (torch.arange(7) <= torch.arange(9)[:, None, None] % 5 + torch.arange(n)[:, None])[:, None]

    def front(places: list[int], first: int) -> Front:
        parts = torch.full((2, len(places), heads, max(lengths[p] for p in places), size), 7.0, dtype=dtype)
        for k, p in enumerate(places):
            parts[:, k, :, : lengths[p]] = begun[p]
        rows = torch.arange(first, first + samples * len(places)).view(-1, samples)
        unused = torch.full_like(parts, float("nan"))
        return Front([unused[0], parts[0]], [unused[1], parts[1]], torch.tensor([lengths[p] for p in places]), rows)

    def whole(rows: list[int]) -> torch.Tensor:
        out = []
        for r in rows:
            k, v = (torch.cat([begun[r // samples][i], own[i, r]], dim=1)[None] for i in (0, 1))
            seen = torch.cat([torch.ones(n, lengths[r // samples], dtype=torch.bool), mask[r, 0]], dim=1)
            k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
            out.append(scaled_dot_product_attention(query[r][None], k, v, attn_mask=seen, scale=0.3).transpose(1, 2))
        return torch.cat(out)

    fronts = [front([0, 1], 0), front([2], 6)]
    left = list(range(9))
    for keep in ([0, 1, 2, 3, 4, 5, 6, 7, 8], [1, 3, 5, 6, 8], [1, 2, 3], [1], [0]):  # of those that are left
        for one in fronts:
            one.keep(torch.tensor(keep))
        left = [left[k] for k in keep]
        got = attention(layer, query[left], own[0, left], own[1, left], mask[left], scaling=0.3, fronts=fronts)[0]
        torch.testing.assert_close(got, whole(left), rtol=near, atol=near)
    assert left == [5] and [len(x.rows) for x in fronts] == [1, 0] and fronts[0].keys[1].shape == (1, 2, 9, 8)


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_heads_of_a_group_side_by_side_change_nothing(n: int) -> None:
    """(R, heads, n, D) queries against longer keys under a mask of their own, as in generation."""
    torch.manual_seed(n)
    q, k, v = torch.randn(3, 6, n, 8), torch.randn(3, 2, 30, 8), torch.randn(3, 2, 30, 8)
    mask = torch.rand(3, 1, n, 30) < 0.6
    mask[..., 0] = True
    layer = torch.nn.Module()
    layer.num_key_value_groups = 3
    got = attention(layer, q, k, v, mask)[0]
    k, v = (x.repeat_interleave(3, dim=1) for x in (k, v))
    torch.testing.assert_close(got, scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2))


def test_blocks_round_no_worse_than_sdpa_in_bf16() -> None:
    """Large scores and values with a common part, as in a real model: each result against the same in fp64."""
    torch.manual_seed(0)
    rows = ((0, 120, (40, 30)), (190, 60, (50,)))
    low = [
        (4 * torch.randn(1, heads, 300, 64) + 2 * torch.randn(1, heads, 1, 64)).bfloat16().requires_grad_()
        for heads in (6, 2, 2)
    ]
    high = [x.detach().double().requires_grad_() for x in low]
    want = outcome(lambda q, k, v: _attention_of_parts(q, k, v, 0.125, Layout(rows)), high)
    blocks = outcome(lambda q, k, v: attention(None, q, k, v, None, scaling=0.125, layout=Layout(rows))[0], low)
    parts = outcome(lambda q, k, v: _attention_of_parts(q, k, v, 0.125, Layout(rows)), low)
    for got, other, right in zip(blocks, parts, want, strict=True):
        wrong, usual = (((x.double() - right).norm() / right.norm()).item() for x in (got, other))
        assert wrong < 1.3 * usual + 1e-3, (wrong, usual)
        assert wrong < 0.03


@pytest.mark.parametrize("n", [1, 3, 20])
def test_keys_that_no_row_of_a_slice_sees_are_not_read(n: int) -> None:
    torch.manual_seed(n)
    q, k, v = torch.randn(5, 6, n, 8), torch.randn(5, 2, 40, 8), torch.randn(5, 2, 40, 8)
    first = torch.tensor([19, 15, 20, 5, 2])
    mask = (torch.arange(40) <= first[:, None, None] + torch.arange(n)[:, None])[:, None]  # (R, 1, n, m)
    layer = torch.nn.Module()
    layer.num_key_value_groups = 3
    want = attention(layer, q, k, v, mask)[0]
    reach = [(slice(0, 2), 19 + n), (slice(2, 4), 20 + n), (slice(4, 6), 2 + n)]
    for row, (_, length) in zip(range(5), [reach[0]] * 2 + [reach[1]] * 2 + [reach[2]], strict=True):
        k[row, :, length:] = v[row, :, length:] = float("nan")  # reading them would show
    torch.testing.assert_close(attention(layer, q, k, v, mask, reach=reach)[0], want)


def test_a_layout_of_more_tokens_than_there_are_is_refused() -> None:
    q, k = torch.randn(5, 2, 4), torch.randn(5, 1, 4)
    for layout, keys in ((Layout(((0, 4, (2,)),)), k), (Layout(((0, 3, (2,)),)), k[:4])):
        with pytest.raises(IndexError, match="tokens. Got 5 queries"):
            module.attend(q, keys, keys, 0.5, layout)
