"""Preference losses: functions of four tensors of logps (sums over an answer's tokens), one row each in `LOSSES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid


class PairLogps(NamedTuple):
    """What a loss sees of B pairs. All tensors have shape (B,), logps in nats, lengths in tokens with the end token."""

    policy_chosen_logps: Tensor
    policy_rejected_logps: Tensor
    reference_chosen_logps: Tensor
    reference_rejected_logps: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor

    @property
    def chosen_logratios(self) -> Tensor:
        return self.policy_chosen_logps - self.reference_chosen_logps

    @property
    def rejected_logratios(self) -> Tensor:
        return self.policy_rejected_logps - self.reference_rejected_logps


def sigmoid(logps: PairLogps, beta: float) -> Tensor:
    """DPO. -log sigmoid(beta * (chosen log-ratio - rejected log-ratio)). Shape (B,).

    Log-ratios of +1 and -1 at beta 0.5 give -log sigmoid(1) = 0.3133; equal models give log 2.
    Source: arXiv 2305.18290, equation 7. Same values as TRL's `sigmoid`.
    """
    return -logsigmoid(beta * (logps.chosen_logratios - logps.rejected_logratios))


def ipo(logps: PairLogps, beta: float) -> Tensor:
    """IPO. (h - 1 / (2 beta))^2 with h the difference of the answers' mean log-ratios. Shape (B,).

    Bounded target, so pairs that are already apart are not pushed further. Source: arXiv 2310.12036, equation 17, with
    its tau as beta; log-ratios are averaged over tokens as in TRL's `ipo` (its authors confirmed this).
    """
    chosen = logps.chosen_logratios / logps.chosen_lengths
    rejected = logps.rejected_logratios / logps.rejected_lengths
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def dpop(logps: PairLogps, beta: float, penalty: float = 50.0) -> Tensor:
    """DPO-Positive. DPO with a price on a chosen answer that falls below its reference. Shape (B,).

    -log sigmoid(beta * (chosen - rejected - penalty * max(0, -chosen))), in log-ratios. Made for pairs that differ in
    few tokens, where DPO pushes down both answers. Source: arXiv 2402.13228, equation 3, with its lambda as `penalty`.
    """
    below = (-logps.chosen_logratios).clamp(min=0)
    return -logsigmoid(beta * (logps.chosen_logratios - logps.rejected_logratios - penalty * below))


LOSSES: dict[str, Callable[[PairLogps, float], Tensor]] = {"sigmoid": sigmoid, "ipo": ipo, "dpop": dpop}


def chosen_nll(logps: PairLogps) -> Tensor:
    """Mean negative log-likelihood of the chosen answers' tokens, RPO's term (arXiv 2404.19733, eq. 1). Shape (B,)."""
    return -logps.policy_chosen_logps / logps.chosen_lengths
