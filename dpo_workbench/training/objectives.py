"""What a step minimizes: a preference loss, or the negative log-likelihood of answers.

`loss` returns a micro-batch's share of the loss of the whole batch, so the gradients of micro-batches simply add up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from dpo_workbench.models.adapter import causal_lm
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.logps import answer_logps
from dpo_workbench.training.losses import LOSSES, PairLogps, loss_terms
from dpo_workbench.training.packing import Batch, Row
from dpo_workbench.training.reference import Reference, check_start

Metrics = dict[str, Tensor]  # by TRL's names, one value for each row of the micro-batch


class Objective(Protocol):
    """What the loop needs to know about a loss."""

    @property
    def whole_batch(self) -> bool:
        """True if the loss compares the rows of a batch, which then have to be one micro-batch."""

    def loss(self, network: nn.Module, batch: Batch, rows: Sequence[Row], step: int) -> tuple[Tensor, Metrics]:
        """The share that `batch` contributes to the loss of all `rows` of step `step` (from 0), and values to log."""


@dataclass
class Preference:
    """The mean over the pairs of a batch of the weighted sum of losses that the config names."""

    reference: Reference
    config: TrainConfig
    weights: dict[str, float] = field(default_factory=dict)  # by pair id, with a mean of 1; 1 where an id is missing

    @property
    def whole_batch(self) -> bool:
        return any(LOSSES[name].whole_batch for name in loss_terms(self.config))

    def loss(self, network: nn.Module, batch: Batch, rows: Sequence[Row], step: int) -> tuple[Tensor, Metrics]:
        logps = pair_logps(network, batch, self.reference)
        if step == 0:
            check_start(logps, batch.ids, self.config.beta, causal_lm(network).dtype)
        mean_length = sum(len(row.answer_ids[0]) for row in rows) / len(rows)
        logps = logps._replace(batch_chosen_length=mean_length)
        weights = logps.policy_chosen_logps.new_tensor([self.weights.get(i, 1.0) for i in batch.ids])
        total = torch.zeros((), device=weights.device)
        for name, weight in loss_terms(self.config).items():
            values = LOSSES[name].values(logps, self.config)  # (B,)
            total = total + weight * (weights * values).sum() / len(rows)
        return total, pair_metrics(logps, self.config.beta)


def pair_logps(network: nn.Module, batch: Batch, reference: Reference) -> PairLogps:
    """The policy's log-probabilities from the network, next to the stored ones of the reference."""
    sums, lengths = answer_logps(network, batch), batch.lengths
    fixed = torch.tensor([reference[i] for i in batch.ids], device=sums.device)
    return PairLogps(sums[0::2], sums[1::2], fixed[:, 0], fixed[:, 1], lengths[0::2], lengths[1::2])


def pair_metrics(logps: PairLogps, beta: float) -> Metrics:
    """Values for each pair by TRL's names. An answer's reward is beta times its log-ratio (arXiv 2305.18290, eq. 5)."""
    chosen, rejected = beta * logps.chosen_logratios, beta * logps.rejected_logratios
    values = {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).to(chosen.dtype),
        "logps/chosen": logps.policy_chosen_logps,
        "logps/rejected": logps.policy_rejected_logps,
    }
    return {key: value.detach() for key, value in values.items()}


@dataclass
class Likelihood:
    """Supervised fine-tuning: the mean negative log-likelihood of a batch's answer tokens."""

    whole_batch: bool = False

    def loss(self, network: nn.Module, batch: Batch, rows: Sequence[Row], step: int) -> tuple[Tensor, Metrics]:
        n_tokens = sum(len(row.answer_ids[0]) for row in rows)
        sums = answer_logps(network, batch)
        return -sums.sum() / n_tokens, {"mean_logps": sums.detach() / batch.lengths}
