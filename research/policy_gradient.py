"""A policy gradient on a reward model: one of the routes that `research/claims.py` compares with DPO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.files import write_json
from dpo_workbench.common.interrupts import Interrupts
from dpo_workbench.common.progress import progress
from dpo_workbench.evaluation.run import Evaluation, evaluate
from dpo_workbench.models.generation import generate
from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.studies.arms import Cost, timed
from dpo_workbench.studies.logps import answer_rows, sum_logps
from dpo_workbench.studies.reward_model import train_reward_model
from dpo_workbench.studies.study import BEST_OF, Study
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.logps import answer_logps
from dpo_workbench.training.loop import TrainState, learning_rate, train_step
from dpo_workbench.training.losses import Metrics
from dpo_workbench.training.packing import Batch, Row, rows_of_step

History = list[dict[str, float]]


def policy_gradient_arm(study: Study, cost: Cost) -> Evaluation:
    """An arm for `compare`: a reward model on the study's pairs, then a policy gradient for as many steps as DPO."""
    prompts = [e.prompt for e in study.task.train[study.recipe.mine_from :][: study.recipe.mine_prompts]]
    limit = study.task.max_new_tokens
    model, history = timed(cost, lambda: train_route(study.start, study.pairs, prompts, study.recipe.dpo, limit))
    model.save(study.folder / "gradient" / "adapter")
    write_json(study.folder / "gradient" / "history.json", history)
    cost.steps = len(history)
    cost.sampled_tokens = int(sum(step["sampled"] for step in history))
    return evaluate(model, study.test, show=study.show)


def train_route(
    start: Model, pairs: Pairs, prompts: Sequence[str], config: TrainConfig, max_new_tokens: int
) -> tuple[Model, History]:
    """Train a reward model on the pairs, then the policy on the reward model, with as many steps each as DPO has."""
    reward = train_reward_model(start, pairs, config, show=False)
    steps = -(-len(pairs) // config.batch_size) * config.epochs
    return policy_gradient(
        start, reward, prompts, config, steps=steps, samples=BEST_OF, max_new_tokens=max_new_tokens, show=False
    )  # fmt: skip


@dataclass
class PolicyGradient:
    """Minus the mean over all sampled answers of advantage times log-probability."""

    advantages: dict[str, Tensor]  # by row id, one value for each sampled answer
    samples: int

    def loss(self, network: nn.Module, batch: Batch, rows: Sequence[Row], step: int) -> tuple[Tensor, Metrics]:
        weights = torch.cat([self.advantages[i] for i in batch.ids]).to(batch.target.device)
        return -(weights * answer_logps(network, batch)).sum() / (len(rows) * self.samples), {}


def policy_gradient(
    model: Model,
    reward: Any,
    prompts: Sequence[str],
    config: TrainConfig,
    *,
    steps: int,
    samples: int = 4,
    max_new_tokens: int = 256,
    show: bool = True,
) -> tuple[Model, History]:
    """REINFORCE with a leave-one-out baseline (RLOO, arXiv 2402.14740, equation 6) and a KL penalty.

    Each step samples `samples` answers for `config.batch_size` prompts at temperature 1 and updates the policy once.
    The reward of an answer is r - beta * (log pi - log ref), with the whole answer as one action. Rewards are divided
    by their standard deviation over the step, because only differences of r have a meaning.

    Args:
        reward: a `RewardModel`, or any object with its method `scores`.

    Returns:
        The policy after the last step, and for each step the mean reward, the KL (nats per answer), and the numbers of
        sampled and trained tokens.
    """
    if samples < 2:
        raise WorkbenchError(f"A leave-one-out baseline needs two samples per prompt or more. Got {samples}.")
    policy = model.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=config.seed)
    state = TrainState(policy, config)
    numbered = [Row(str(k), (k,), ((0,),)) for k in range(len(prompts))]  # to draw prompts as `train` draws pairs
    history: History = []
    with progress(steps, "policy gradient", show) as advance, Interrupts() as interrupts:
        for step in range(steps):
            texts = [prompts[row.prompt_ids[0]] for row in rows_of_step(numbered, config, step)]
            answers = generate(
                policy,
                texts,
                samples=samples,
                temperature=1.0,
                max_new_tokens=max_new_tokens,
                seed=config.seed * 100_003 + step,
            )
            rewards = torch.tensor(reward.scores(texts, answers))  # (prompts, samples)
            kl = torch.tensor(sum_logps(policy, texts, answers)) - torch.tensor(sum_logps(model, texts, answers))
            total = rewards - config.beta * kl
            total = total / total.std().clamp(min=1e-6)
            baseline = (total.sum(dim=1, keepdim=True) - total) / (samples - 1)
            rows = answer_rows(policy, texts, answers)
            advantages = {row.id: (total - baseline)[k] for k, row in enumerate(rows)}
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, config)
            train_step(state, rows, PolicyGradient(advantages, samples), interrupts)
            state.step += 1
            tokens = {"sampled": sum(a.n_tokens for given in answers for a in given)}
            tokens["trained"] = sum(row.n_tokens for row in rows)
            history.append({"step": step + 1, "reward": float(rewards.mean()), "kl": float(kl.mean()), **tokens})
            advance(1)
    return policy, history
