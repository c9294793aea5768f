"""The masks of a pack: both forms agree with a description in loops, and FlexAttention with SDPA."""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import pytest
import torch
import transformers as hf
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.flex_attention import WrappedFlexAttention

from dpo_workbench.models import attention
from dpo_workbench.models.attention import PADDING, block_mask, dense_mask, pack_attention
from dpo_workbench.training.logps import answer_logps
from dpo_workbench.training.packing import Row, pack

# For each row of a pack: the length of the shared beginning, then of what is left of each answer.
PACKS = {
    "one row": [(5, 3, 2)],
    "one answer": [(4, 6)],
    "nothing left of an answer": [(4, 0, 6), (3, 2, 0)],
    "rows of all kinds": [(5, 3, 2), (1, 1), (4, 0, 6), (7, 2, 2, 2)],
    "longer than two blocks": [(90, 30, 20), (100, 40), (1, 1, 1)],
}


def layout(pack: list[tuple[int, ...]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and segment of each token."""
    tokens = [(r, s) for r, lengths in enumerate(pack) for s, n in enumerate(lengths) for _ in range(n)]
    rows, segments = zip(*tokens, strict=True)
    return torch.tensor(rows), torch.tensor(segments)


def who_sees_whom(pack: list[tuple[int, ...]]) -> torch.Tensor:
    """True where a token attends to another one, from the lengths alone. Shape (T, T)."""
    size = sum(map(sum, pack))
    sees = torch.zeros(size, size, dtype=torch.bool)
    row_start = 0
    for shared, *answers in pack:
        for query in range(row_start, row_start + shared):
            sees[query, row_start : query + 1] = True
        start = row_start + shared
        for length in answers:
            for query in range(start, start + length):
                sees[query, row_start : row_start + shared] = True
                sees[query, start : query + 1] = True
            start += length
        row_start = start
    return sees


def in_full(mask) -> torch.Tensor:
    """A block mask as a boolean tensor: the function that it was made from, at every pair of tokens."""
    n_queries, n_keys = mask.seq_lengths
    zero = torch.tensor(0)
    places = [torch.arange(n) for n in (n_queries, n_keys)]
    return mask.mask_mod(zero, zero, places[0][:, None], places[1][None, :])


@pytest.mark.parametrize("name", PACKS)
def test_dense_mask_is_who_sees_whom(name: str) -> None:
    """Each row is a sequence of its own; padding at its end attends to itself and is attended to by nothing else."""
    width = max(map(sum, PACKS[name]))
    parts = [layout([lengths])[1] for lengths in PACKS[name]]
    segments = torch.stack([torch.nn.functional.pad(s, (0, width - len(s)), value=PADDING) for s in parts])
    mask = dense_mask(segments)
    assert mask.dtype == torch.bool and mask.shape == (len(parts), 1, width, width)
    for seen, lengths in zip(mask[:, 0], PACKS[name], strict=True):
        size = sum(lengths)
        assert torch.equal(seen[:size, :size], who_sees_whom([lengths]))
        assert not seen[:size, size:].any() and seen.diagonal().all()


@pytest.mark.parametrize("name", PACKS)
def test_block_mask_is_who_sees_whom(name: str) -> None:
    rows, segments = layout(PACKS[name])
    dense, blocks = who_sees_whom(PACKS[name]), block_mask(rows, segments)
    assert torch.equal(in_full(blocks), dense)
    # No token is lost by the choice of blocks: a block without computed scores has no visible pair.
    computed = blocks.to_dense()[0, 0].bool().repeat_interleave(128, 0).repeat_interleave(128, 1)
    assert not (dense & ~computed[: len(dense), : len(dense)]).any()


def test_other_segments_give_another_mask() -> None:
    """Negative control: a token that moves from one answer to the other is seen in both masks."""
    rows, segments = layout(PACKS["one row"])
    moved = segments.clone()
    moved[-1] = 1
    assert not torch.equal(dense_mask(moved[None]), dense_mask(segments[None]))
    assert not torch.equal(in_full(block_mask(rows, moved)), in_full(block_mask(rows, segments)))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["rows of all kinds", "longer than two blocks"])
def test_flex_attention_computes_what_sdpa_does(name: str) -> None:
    rows, segments = layout(PACKS[name])
    draw = torch.Generator().manual_seed(len(rows))
    q, k, v = (torch.randn(1, heads, len(rows), 8, generator=draw) for heads in (4, 2, 2))  # grouped heads
    got = flex_attention(q, k, v, block_mask=block_mask(rows, segments), enable_gqa=True)
    want = scaled_dot_product_attention(q, k, v, attn_mask=who_sees_whom(PACKS[name]), enable_gqa=True)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    causal = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    assert (causal - want).abs().max() > 0.01  # negative control: one causal sequence is something else


@pytest.mark.parametrize(
    ("kind", "plain"), [(hf.LlamaConfig, "sdpa"), (hf.Gemma2Config, "eager"), (hf.GptOssConfig, "eager")]
)
def test_models_that_sdpa_cannot_compute_load_on_a_new_gpu(monkeypatch, kind, plain: str) -> None:
    """Gemma 2 caps its scores and gpt-oss has attention sinks: FlexAttention takes them, SDPA does not."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "vocab_size": 32, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2, "num_experts_per_tok": 1}
    network = hf.AutoModelForCausalLM.from_config(kind(**sizes, **heads, pad_token_id=0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert pack_attention(network, torch.device("cuda")) == "flex_attention"
    assert network.config._attn_implementation == plain
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))  # a T4
    assert pack_attention(network, torch.device("cuda")) == "sdpa"


def random_rows(n: int) -> list[Row]:
    draw = random.Random(0)

    def ids(most: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 320) for _ in range(draw.randint(1, most)))

    return [Row(f"r{k}", ids(20), (ids(12), ids(12))) for k in range(n)]


@pytest.mark.parametrize("n_rows", [1, 4, 9])
def test_a_pack_for_flex_attention_has_whole_blocks_and_the_same_values(moved, n_rows: int) -> None:
    rows = random_rows(n_rows)
    plain, flex = pack(rows), pack(rows, flex=True)
    lengths = [row.n_tokens for row in rows]
    size, padded = sum(lengths), flex.input_ids.shape[1]
    assert padded % 128 == 0 and 0 <= padded - size < 128
    for name in ("input_ids", "position_ids"):  # the same rows, one after the other
        together = torch.cat([ids[:n] for ids, n in zip(getattr(plain, name), lengths, strict=True)])
        assert torch.equal(getattr(flex, name)[0, :size], together)
    mask = in_full(flex.attention_mask)
    assert not mask[:size, size:].any() and mask[size:].any(dim=1).all()  # no row without a key, which would be NaN
    with moved.active() as network, torch.no_grad():
        want = answer_logps(network, plain)
        dense = replace(flex, attention_mask=mask[None, None])  # SDPA, which this model runs, takes no block mask
        torch.testing.assert_close(answer_logps(network, dense), want, rtol=1e-5, atol=1e-4)


@pytest.mark.slow
def test_flex_attention_is_compiled_for_many_models(monkeypatch) -> None:
    """PyTorch stops compiling a function after 8 versions of it, and then computes all scores, without a message."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_(function, backend="eager"))
    monkeypatch.setattr(WrappedFlexAttention, "_is_flex_compiled", False)
    monkeypatch.setattr(WrappedFlexAttention, "_instance", None)
    monkeypatch.setattr(torch.compiler.config, "fail_on_recompile_limit_hit", True)
    monkeypatch.setattr(torch.compiler.config, "recompile_limit", 8)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))

    def compute(switch: Callable[[torch.nn.Module], AbstractContextManager]) -> None:
        torch.compiler.reset()
        for head_dim in (8, 16, 24, 32, 40):
            sizes = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "vocab_size": 320}
            config = hf.LlamaConfig(**sizes, head_dim=head_dim, num_attention_heads=2, num_key_value_heads=2)
            network = hf.AutoModelForCausalLM.from_config(config).eval()
            for n_rows in (2, 30):
                with torch.no_grad(), switch(network):
                    answer_logps(network, pack(random_rows(n_rows), flex=True))

    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):  # negative control: PyTorch's own limit
        compute(lambda network: nullcontext(network.set_attn_implementation("flex_attention")))
    compute(attention.flex_attention)
    torch.compiler.reset()
    assert torch.compiler.config.recompile_limit == 8  # as it was for everyone else
