"""Token log-probabilities: those of log_softmax on the model's own logits, in pieces of any size, with the gradient."""

import pytest
import torch

from dpo_workbench.training import logps
from dpo_workbench.training.logps import answer_logps, logps_of_states, token_logps
from dpo_workbench.training.packing import Row, pack


def head(tiny, scale: float | None, cap: float | None):
    """The tiny model with another output head, and the same computed in fp64."""
    tiny.network.config.logit_scale, tiny.network.config.final_logit_softcapping = scale, cap
    weight = tiny.network.get_output_embeddings().weight.double()

    def plain(hidden, target):
        logits = hidden.double() @ weight.T * (scale or 1.0)
        logits = logits if cap is None else cap * (logits / cap).tanh()
        return logits.log_softmax(-1).gather(1, target[:, None])[:, 0]

    return plain


@pytest.mark.parametrize("n", [1, 7, 8, 9, 24])
@pytest.mark.parametrize(("scale", "cap"), [(None, None), (0.125, None), (2.0, 3.0)])
def test_equals_log_softmax_and_gather(tiny, monkeypatch, n: int, scale: float | None, cap: float | None) -> None:
    plain = head(tiny, scale, cap)
    monkeypatch.setattr(logps, "MAX_LOGITS", 8 * 320)  # pieces of eight tokens
    draw = torch.Generator().manual_seed(n)
    hidden, target = torch.randn(n, 32, generator=draw), torch.randint(0, 320, (n,), generator=draw)
    upstream = torch.randn(n, generator=draw)
    one, other = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    got, want = logps_of_states(tiny.network, one, target), plain(other, target)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    got.backward(upstream)
    want.backward(upstream.double())
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_logits_exist_one_piece_at_a_time(tiny, monkeypatch) -> None:
    """Neither the forward nor the backward pass ever holds the logits of more tokens than a piece has."""
    sizes = []
    honest = logps._piece_logps
    monkeypatch.setattr(logps, "_piece_logps", lambda c, states, t: sizes.append(len(states)) or honest(c, states, t))
    monkeypatch.setattr(logps, "MAX_LOGITS", 8 * 320)
    kept: list[int] = []
    hidden, target = torch.randn(100, 32, requires_grad=True), torch.randint(0, 320, (100,))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        total = logps_of_states(tiny.network, hidden, target).sum()
    assert max(kept) < 8 * 320  # what waits for the backward pass: hidden states, no logits
    total.backward()
    assert max(sizes) == 8 and len(sizes) == 2 * 13  # once forward, once more for the gradient


def test_large_logits_do_not_overflow(tiny) -> None:
    tiny.network.config.logit_scale = 1e4
    got = logps_of_states(tiny.network, torch.ones(2, 32), torch.tensor([0, 1]))
    assert torch.isfinite(got).all() and got.min() < -1000


def test_sums_by_answer_and_pieces_of_any_size_agree(tiny, monkeypatch) -> None:
    batch = pack([Row("a", (3, 4, 5), ((6, 7), (8, 9, 10, 0))), Row("b", (3,), ((6,), (7, 8)))])
    with torch.no_grad():
        per_token, sums = token_logps(tiny.network, batch), answer_logps(tiny.network, batch)
        assert per_token.shape == (9,) and sums.shape == (4,) and per_token.dtype == torch.float32
        torch.testing.assert_close(sums, torch.stack([x.sum() for x in per_token.split([2, 4, 1, 2])]))
        for chunk in (1, 2, 9):
            monkeypatch.setattr(logps, "MAX_LOGITS", chunk * len(tiny.network.get_output_embeddings().weight))
            torch.testing.assert_close(token_logps(tiny.network, batch), per_token)


def test_checkpointing_keeps_less_and_changes_nothing(moved) -> None:
    batch = pack([Row("a", (3, 4, 5), ((6, 7), (8, 9, 10, 0)))])

    def gradients(checkpointing: bool) -> tuple[list[torch.Tensor], int]:
        kept: list[int] = []
        with moved.active(trainable=True, checkpointing=checkpointing) as network:
            with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
                total = answer_logps(network, batch).sum()
            return list(torch.autograd.grad(total, moved.adapter_parameters())), sum(kept)

    before = [module.training for module in moved.network.modules()]
    (plain, much), (got, little) = gradients(False), gradients(True)
    assert all(torch.equal(one, other) for one, other in zip(got, plain, strict=True)) and 3 * little < much
    assert [module.training for module in moved.network.modules()] == before
