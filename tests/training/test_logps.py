"""Token log-probabilities: log_softmax and gather by another way, at chunk boundaries too, with the same gradient."""

import pytest
import torch

from dpo_workbench.training import logps
from dpo_workbench.training.logps import Head, _TokenLogps, answer_logps, token_logps
from dpo_workbench.training.packing import Row, pack


def reference(hidden, head, target):
    scores = hidden @ head.weight.T + (0 if head.bias is None else head.bias)
    scores = scores * head.scale
    scores = scores if head.cap is None else head.cap * (scores / head.cap).tanh()
    return scores.float().log_softmax(-1).gather(1, target[:, None])[:, 0]


@pytest.mark.parametrize("n", [1, 7, 8, 9, 24])
@pytest.mark.parametrize(("biased", "scale", "cap"), [(0, 1.0, None), (0, 0.125, None), (1, 1.0, None), (1, 2.0, 3.0)])
def test_equals_log_softmax_and_gather(monkeypatch, n: int, biased: int, scale: float, cap: float | None) -> None:
    monkeypatch.setattr(logps, "SCORES", 8 * 50)
    torch.manual_seed(n)
    hidden, weight, target = torch.randn(n, 6), torch.randn(50, 6), torch.randint(0, 50, (n,))
    upstream = torch.randn(n)
    one, other = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    head = Head(weight, torch.randn(50) if biased else None, scale, cap)
    got, want = _TokenLogps.apply(one, head, target), reference(other, head, target)
    torch.testing.assert_close(got, want)
    got.backward(upstream)
    want.backward(upstream)
    torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)


def test_gradient_equals_finite_differences() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 4, dtype=torch.float64), torch.randn(9, 4, dtype=torch.float64)
    target, step = torch.tensor([0, 4, 8]), 1e-2
    leaf = hidden.clone().requires_grad_()
    head = Head(weight, cap=2.0)
    _TokenLogps.apply(leaf, head, target).sum().backward()
    for i in range(3):
        for j in range(4):
            moved = [hidden.clone() for _ in range(2)]
            moved[0][i, j] += step
            moved[1][i, j] -= step
            high, low = (reference(h, head, target).sum() for h in moved)
            assert leaf.grad[i, j].item() == pytest.approx(float(high - low) / (2 * step), abs=2e-3)


def test_no_gradient_is_formed_without_need() -> None:
    out = _TokenLogps.apply(torch.randn(3, 4), Head(torch.randn(9, 4)), torch.tensor([0, 4, 8]))
    assert not out.requires_grad and (out < 0).all()


def test_large_scores_do_not_overflow() -> None:
    hidden, head = torch.tensor([[1000.0]]), Head(torch.tensor([[1.0], [-1.0]]))
    got = _TokenLogps.apply(hidden, head, torch.tensor([0]))
    assert got.item() == 0.0
    assert _TokenLogps.apply(hidden, head, torch.tensor([1])).item() == -2000.0


def test_sums_by_answer_and_chunks_of_any_size_agree(tiny, monkeypatch) -> None:
    batch = pack([Row("a", (3, 4, 5), ((6, 7), (8, 9, 10, 0))), Row("b", (3,), ((6,), (7, 8)))])
    with torch.no_grad():
        per_token, sums = token_logps(tiny.network, batch), answer_logps(tiny.network, batch)
        assert per_token.shape == (9,) and sums.shape == (4,) and per_token.dtype == torch.float32
        torch.testing.assert_close(sums, torch.stack([x.sum() for x in per_token.split([2, 4, 1, 2])]))
        for chunk in (1, 2, 9):
            monkeypatch.setattr(logps, "SCORES", chunk * len(tiny.network.get_output_embeddings().weight))
            torch.testing.assert_close(token_logps(tiny.network, batch), per_token)


def test_scaled_logits_are_those_of_the_model(tiny) -> None:
    """Granite divides its logits; what training sees must be what the model computes."""
    batch = pack([Row("a", (3, 4, 5), ((6, 7),))])
    with torch.no_grad():
        plain = answer_logps(tiny.network, batch)
        tiny.network.config.logits_scaling = 4.0
        scaled = answer_logps(tiny.network, batch)
    assert abs(float(plain - scaled)) > 0.1


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
