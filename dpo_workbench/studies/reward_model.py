"""A reward model trained on the same pairs and batches as DPO: the two-stage method that DPO replaces."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from dpo_workbench.common.interrupts import Interrupts
from dpo_workbench.common.progress import progress
from dpo_workbench.models.generation import Answer
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.messages import Prompt
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.studies.logps import answer_rows, answer_values, check_positions
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.logps import token_states
from dpo_workbench.training.loop import TrainState, training_steps
from dpo_workbench.training.losses import Metrics
from dpo_workbench.training.packing import Batch, Row, steps_per_epoch
from dpo_workbench.training.reference import choose_packing
from dpo_workbench.training.tokens import pair_texts, tokenize

HEAD_LR = 1e-2  # higher than for LoRA: the head starts at zero and has no pretrained weights to preserve


@dataclass
class RewardModel:
    """Maps a prompt and an answer to a number. Only differences between answers to the same prompt have a meaning."""

    model: Model  # the base model with the reward model's own adapter
    head: Tensor  # (H,) fp32
    history: list[dict[str, float]] = field(default_factory=list)  # one entry per optimizer step

    def scores(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer | str]]) -> list[list[float]]:
        """The reward of each answer to each prompt, without gradients."""
        rows = [with_second_end(self.model, row) for row in answer_rows(self.model, prompts, answers)]
        return answer_values(self.model, rows, lambda network, batch: batch_rewards(network, batch, self.head).tolist())

    def accuracy(self, pairs: Pairs) -> float:
        """Share of the pairs whose chosen answer has the higher reward; a tie counts as half."""
        answers = [(p.chosen, Answer(p.rejected, 0, p.rejected_finished)) for p in pairs]
        rewards = self.scores([p.prompt for p in pairs], answers)
        return statistics.fmean((c > r) + 0.5 * (c == r) for c, r in rewards)


def train_reward_model(model: Model, pairs: Pairs, config: TrainConfig, *, show: bool = True) -> RewardModel:
    """Minimize -log sigmoid(r(chosen) - r(rejected)) (Bradley-Terry; arXiv 2203.02155, equation 1) with LoRA.

    Args:
        model, pairs: as for `train`.
        config: batches, steps, learning rate, LoRA and order of the pairs, as in the DPO arm. The linear head has its
            own learning rate.
    """
    rows = [with_second_end(model, row) for row in tokenize(model, map(pair_texts, pairs), config.max_tokens)]
    check_positions(model, rows)
    policy = model.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=config.seed)
    config = choose_packing(model, rows, config)
    head = nn.Parameter(torch.zeros(policy.network.config.get_text_config().hidden_size, device=policy.device))
    state = TrainState(policy, config)
    state.parameters.append(head)
    state.optimizer.add_param_group({"params": [head], "lr_scale": HEAD_LR / config.lr})
    history = []
    n_steps = steps_per_epoch(len(rows), config) * config.epochs
    with progress(n_steps, "reward model", show) as advance, Interrupts() as interrupts:
        for metrics in training_steps(state, rows, BradleyTerry(head), interrupts):
            history.append(metrics)
            advance(1)
    return RewardModel(policy, head.detach(), history)


@dataclass
class BradleyTerry:
    """The mean of -log sigmoid(r(chosen) - r(rejected)) over the pairs of a batch."""

    head: Tensor

    def loss(self, network: nn.Module, batch: Batch, rows: Sequence[Row], step: int) -> tuple[Tensor, Metrics]:
        chosen, rejected = batch_rewards(network, batch, self.head).view(-1, 2).unbind(1)
        loss = -logsigmoid(chosen - rejected).sum() / len(rows)
        return loss, {"accuracy": (chosen > rejected).float().detach()}


def batch_rewards(network: nn.Module, batch: Batch, head: Tensor) -> Tensor:
    """Rewards of a batch's answers, shape (A,): the head applied to the last hidden state of each answer."""
    last = batch.lengths.cumsum(0) - 1
    return token_states(network, batch)[last].float() @ head / math.sqrt(len(head))


def with_second_end(model: Model, row: Row) -> Row:
    """The row with one more end token per answer: the state that predicts it has seen the whole answer."""
    return replace(row, answer_ids=tuple((*ids, model.chat.end_id) for ids in row.answer_ids))
