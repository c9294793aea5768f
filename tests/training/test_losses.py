"""Losses by hand.

Log-ratios of +1 (chosen) and -1 (rejected) nats at beta 0.5: DPO's margin is 0.5 * 2 = 1, -log sigmoid(1) = 0.31326.
IPO with 2 and 4 tokens: h = 1/2 - (-1/4) = 0.75, target 1 / (2 * 0.5) = 1, so (0.75 - 1)^2 = 0.0625.
DPOP with a chosen log-ratio of -0.1: 0.5 * (-0.1 - (-1) - 50 * 0.1) = -2.05, -log sigmoid(-2.05) = 2.17107.
"""

import math

import pytest
import torch

from dpo_workbench.training.losses import LOSSES, PairLogps, chosen_nll, dpop, ipo, sigmoid


def pairs(chosen: list[float], rejected: list[float], lengths=(2, 4)) -> PairLogps:
    """Policies with the given log-ratios over a reference of -10 and -20 nats."""
    c, r = torch.tensor(chosen, dtype=torch.float64), torch.tensor(rejected, dtype=torch.float64)
    reference_c, reference_r = torch.full_like(c, -10.0), torch.full_like(r, -20.0)
    sizes = [torch.full((len(c),), n) for n in lengths]
    return PairLogps(reference_c + c, reference_r + r, reference_c, reference_r, *sizes)


def test_by_hand() -> None:
    assert sigmoid(pairs([1.0], [-1.0]), 0.5).tolist() == pytest.approx([0.3132616875])
    assert ipo(pairs([1.0], [-1.0]), 0.5).tolist() == pytest.approx([0.0625])
    assert dpop(pairs([-0.1], [-1.0]), 0.5).tolist() == pytest.approx([math.log1p(math.exp(2.05))])
    assert chosen_nll(pairs([1.0], [-1.0])).tolist() == pytest.approx([9.0 / 2])


@pytest.mark.parametrize("beta", [0.01, 0.1, 1.0])
def test_equal_models(beta: float) -> None:
    same = pairs([0.0, 0.0], [0.0, 0.0])
    assert sigmoid(same, beta).tolist() == pytest.approx([math.log(2)] * 2)
    assert dpop(same, beta).tolist() == pytest.approx([math.log(2)] * 2)
    assert ipo(same, beta).tolist() == pytest.approx([1 / (2 * beta) ** 2] * 2)


def test_swapping_the_answers_swaps_the_margin() -> None:
    """sigmoid(x) + sigmoid(-x) = 1, so exp(-loss) of a pair and of its swap add up to one."""
    one, other = sigmoid(pairs([0.7], [-1.3]), 0.5), sigmoid(pairs([-1.3], [0.7]), 0.5)
    assert float((-one).exp() + (-other).exp()) == pytest.approx(1.0)
    h, target = 0.7 / 3 + 1.3 / 3, 1.0
    a, b = ipo(pairs([0.7], [-1.3], (3, 3)), 0.5), ipo(pairs([-1.3], [0.7], (3, 3)), 0.5)
    assert float(a) == pytest.approx((h - target) ** 2) and float(b) == pytest.approx((h + target) ** 2)


@pytest.mark.parametrize("name", LOSSES)
def test_descent_raises_chosen_and_lowers_rejected(name: str) -> None:
    logps = pairs([0.1], [-0.1])
    chosen, rejected = (x.clone().requires_grad_() for x in logps[:2])
    LOSSES[name](PairLogps(chosen, rejected, *logps[2:]), 0.1).sum().backward()
    assert chosen.grad.item() < 0 < rejected.grad.item()


def test_gradient_of_dpo_by_hand() -> None:
    """d loss / d chosen = -beta * sigmoid(-margin) (arXiv 2305.18290, section 4)."""
    logps = pairs([1.0], [-1.0])
    chosen = logps.policy_chosen_logps.clone().requires_grad_()
    sigmoid(PairLogps(chosen, *logps[1:]), 0.5).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.5 / (1 + math.exp(1.0)))


def test_ipo_turns_back_beyond_its_target() -> None:
    far = pairs([10.0], [-10.0])
    chosen = far.policy_chosen_logps.clone().requires_grad_()
    ipo(PairLogps(chosen, *far[1:]), 0.5).sum().backward()
    assert chosen.grad.item() > 0


def test_dpop_is_dpo_until_the_chosen_answer_falls() -> None:
    kept = pairs([0.0, 0.5, 3.0], [0.0, -2.0, 4.0])
    torch.testing.assert_close(dpop(kept, 0.1), sigmoid(kept, 0.1), rtol=0, atol=0)
    fallen = pairs([-0.5], [-2.0])
    assert dpop(fallen, 0.1).item() > sigmoid(fallen, 0.1).item()
    chosen = fallen.policy_chosen_logps.clone().requires_grad_()
    dpop(PairLogps(chosen, *fallen[1:]), 0.1).sum().backward()
    assert chosen.grad.item() < -0.1  # steeper than beta, the most that DPO can ask


@pytest.mark.parametrize("name", LOSSES)
def test_only_log_ratios_matter(name: str) -> None:
    """A constant on policy and reference, as a longer prompt would add, changes nothing."""
    logps = pairs([0.3, -0.2], [-0.4, 0.6])
    shifted = PairLogps(*(x - 7.5 for x in logps[:4]), *logps[4:])
    torch.testing.assert_close(LOSSES[name](shifted, 0.1), LOSSES[name](logps, 0.1))


def test_far_apart_is_finite() -> None:
    extreme = pairs([2000.0, -2000.0], [-2000.0, 2000.0])
    assert torch.isfinite(sigmoid(extreme, 1.0)).all() and sigmoid(extreme, 1.0)[1].item() == pytest.approx(4000.0)


def test_table_of_losses() -> None:
    assert LOSSES == {"sigmoid": sigmoid, "ipo": ipo, "dpop": dpop}
