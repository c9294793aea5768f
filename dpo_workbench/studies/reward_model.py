"""A reward model with best-of-n and a short policy gradient: the two-stage route that DPO replaces, to compare with.

Same base, same LoRA, same pairs, same batches as the DPO arm. Plain on purpose: it stands here as a yardstick.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.common.progress import progress
from dpo_workbench.models.generation import Answer, generate
from dpo_workbench.models.loading import Model, load_adapter
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.training import loop
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.logps import answer_logps, token_states
from dpo_workbench.training.packing import Batch, Row
from dpo_workbench.training.reference import prove_packing
from dpo_workbench.training.tokens import Unfinished, tokenise

HEAD_LR = 1e-2  # the head starts at zero and is alone with it: one row of weights, no pretrained scale to keep


@dataclass
class RewardModel:
    """One number for a prompt and an answer; only differences between answers to one prompt mean something."""

    model: Model  # with its own adapter
    head: Tensor  # (H,) fp32
    config: TrainConfig
    history: list[dict[str, float]] = field(default_factory=list)

    def scores(self, prompts: Sequence[str], answers: Sequence[Sequence[Answer | str]]) -> list[list[float]]:
        """A reward for each answer of each prompt; no gradient. An empty answer scores as its end token alone."""
        rows = [_ended(self.model, row) for row in _rows(self.model, prompts, answers)]
        config = prove_packing(self.model, rows, self.config)
        found: dict[str, list[float]] = {}
        with self.model.active() as network, torch.no_grad():
            for batch in loop.micro_batches(rows, self.model, config):
                values = iter(_rewards(network, batch, self.head).tolist())
                for row_id in batch.ids:
                    found[row_id] = [next(values) for _ in rows[int(row_id)].answer_ids]
        return [found[str(k)] for k in range(len(rows))]

    def accuracy(self, pairs: Pairs) -> float:
        """Share of the pairs whose chosen answer scores higher than the rejected one; a tie is half."""
        both = self.scores([p.prompt for p in pairs], [(p.chosen, _rejected(p)) for p in pairs])
        return statistics.fmean((c > r) + 0.5 * (c == r) for c, r in both)

    def save(self, folder: str | Path) -> Path:
        """Write adapter and head."""
        from safetensors.torch import save_file

        folder = self.model.save(folder)
        save_file({"head": self.head}, folder / "head.safetensors")
        return folder

    @classmethod
    def load(cls, base: Model, folder: str | Path, config: TrainConfig) -> RewardModel:
        """Read what `save` wrote, onto `base`."""
        from safetensors.torch import load_file

        head = load_file(Path(folder) / "head.safetensors")["head"].to(base.device)
        return cls(load_adapter(base, folder), head, config)


def train_reward_model(model: Model, pairs: Pairs, config: TrainConfig, *, show: bool = True) -> RewardModel:
    """Fit -log s(r(chosen) - r(rejected)) (Bradley-Terry; arXiv 2203.02155, equation 1) with LoRA and a linear head.

    Args:
        model: its adapter is copied and trained on, as DPO's policy is.
        pairs: those of the DPO arm.
        config: batch, steps, lr, LoRA and order as in the DPO arm; the head has a learning rate of its own.
        show: a progress bar.

    Raises:
        WorkbenchError: a loss or gradient is not finite, or a row is too long.
    """
    given = [(p.id, p.prompt, (p.chosen, _rejected(p))) for p in pairs]
    rows = [_ended(model, row) for row in tokenise(model, given, config.max_tokens)]
    policy = model.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=config.seed)
    config = prove_packing(model, rows, config)
    head = nn.Parameter(torch.zeros(policy.network.config.get_text_config().hidden_size, device=policy.device))
    parameters = policy.adapter_parameters()
    optimizer = loop.optimizer_for(parameters, config)
    optimizer.add_param_group({"params": [head], "lr": HEAD_LR})
    reward = RewardModel(policy, head, config)
    n_steps = loop.steps_per_epoch(len(rows), config) * config.epochs
    with progress(n_steps, "reward model", show) as advance:
        for step in range(n_steps):
            batch = loop.batch_rows(rows, config, step)
            share = loop.learning_rate(step, n_steps, config)
            for group, top in zip(optimizer.param_groups, (config.lr, HEAD_LR), strict=True):
                group["lr"] = share * top / config.lr

            def objective(network: nn.Module, part: Batch, n: int = len(batch)) -> tuple[Tensor, loop.Metrics]:
                chosen, rejected = _rewards(network, part, head).view(-1, 2).unbind(1)
                return -logsigmoid(chosen - rejected).sum() / n, {"accuracy": (chosen > rejected).float().detach()}

            with policy.active(trainable=True, checkpointing=config.checkpointing) as network:
                batches = list(loop.micro_batches(batch, policy, config))
                seen = loop.train_step(network, batches, objective, [*parameters, head], optimizer, config)
            reward.history.append({"step": step + 1, **seen})
            advance(1)
    reward.head = head.detach()
    return reward


def policy_gradient(
    model: Model,
    reward: RewardModel,
    prompts: Sequence[str],
    config: TrainConfig,
    *,
    steps: int,
    samples: int = 4,
    temperature: float = 1.0,
    max_new_tokens: int = 256,
    show: bool = True,
) -> tuple[Model, list[dict[str, float]]]:
    """REINFORCE with a leave-one-out baseline on the reward model (RLOO, arXiv 2402.14740, equation 6), KL-penalised.

    Each step samples `samples` answers for `config.batch_size` prompts from the policy as it is, and moves it once.
    The reward of an answer is r - beta * (log pi - log ref), the whole answer as one action; rewards are divided by
    their standard deviation over the step, as only differences of r mean something.

    Returns:
        The policy after the last step, and for each step mean reward, KL (nats an answer), sampled and trained tokens.
    """
    if samples < 2:
        raise WorkbenchError(f"A leave-one-out baseline needs two samples a prompt or more. Got {samples}.")
    policy = model.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=config.seed)
    parameters = policy.adapter_parameters()
    optimizer = loop.optimizer_for(parameters, config)
    numbered = [Row(str(k), (k,), ((0,),)) for k in range(len(prompts))]
    history: list[dict[str, float]] = []
    with progress(steps, "policy gradient", show) as advance:
        for step in range(steps):
            texts = [prompts[row.prompt_ids[0]] for row in loop.batch_rows(numbered, config, step)]
            answers = generate(
                policy,
                texts,
                samples=samples,
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                seed=config.seed * 100_003 + step,
            )
            rows = _rows(policy, texts, answers)
            judged = torch.tensor(reward.scores(texts, answers))  # prompts x samples
            now, ref = (_sums(handle, rows, config) for handle in (policy, model))
            total = judged - config.beta * (now - ref)
            total = total / total.std().clamp(min=1e-6)
            others = (total.sum(dim=1, keepdim=True) - total) / (samples - 1)
            advantage = {row.id: (total - others)[k] for k, row in enumerate(rows)}
            loop.set_learning_rate(optimizer, loop.learning_rate(step, steps, config))

            def objective(network: nn.Module, part: Batch, known: Any = advantage) -> tuple[Tensor, loop.Metrics]:
                weights = torch.cat([known[i] for i in part.ids]).to(part.target.device)
                return -(weights * answer_logps(network, part)).sum() / (len(known) * samples), {}

            with policy.active(trainable=True, checkpointing=config.checkpointing) as network:
                batches = list(loop.micro_batches(rows, policy, config))
                loop.train_step(network, batches, objective, parameters, optimizer, config)
            tokens = {"sampled": sum(a.n_tokens for given in answers for a in given)}
            tokens["trained"] = sum(row.n_tokens for row in rows)
            seen = {"reward": float(judged.mean()), "kl": float((now - ref).mean())}
            history.append({"step": step + 1, **seen, **tokens})
            advance(1)
    return policy, history


def sum_logps(model: Model, prompts: Sequence[str], answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
    """Log-probability (nats) of each answer to each prompt under the model."""
    return [list(map(float, row)) for row in _sums(model, _rows(model, prompts, answers), TrainConfig())]


def mean_logps(model: Model, prompts: Sequence[str], answers: Sequence[Sequence[Answer]]) -> list[list[float]]:
    """The same divided by the answer's tokens (nats a token)."""
    lengths = [[len(ids) for ids in row.answer_ids] for row in _rows(model, prompts, answers)]
    sums = sum_logps(model, prompts, answers)
    return [[s / n for s, n in zip(*both, strict=True)] for both in zip(sums, lengths, strict=True)]


def _rows(model: Model, prompts: Sequence[str], answers: Sequence[Sequence[Answer | str]]) -> list[Row]:
    both = enumerate(zip(prompts, answers, strict=True))
    return [Row(str(k), tuple(model.prompt_ids(prompt)), _ids(model, given)) for k, (prompt, given) in both]


def _sums(model: Model, rows: Sequence[Row], config: TrainConfig) -> Any:
    """Summed logps of each answer, (rows x answers); all rows have as many answers."""
    config = prove_packing(model, rows, config)
    found: dict[str, list[float]] = {}
    with model.active() as network, torch.no_grad():
        for batch in loop.micro_batches(rows, model, config):
            values = iter(answer_logps(network, batch).tolist())
            by_id = {row.id: row for row in rows if row.id in batch.ids}
            for row_id in batch.ids:
                found[row_id] = [next(values) for _ in by_id[row_id].answer_ids]
    return torch.tensor([found[row.id] for row in rows])


def _rewards(network: nn.Module, batch: Batch, head: Tensor) -> Tensor:
    """Rewards of a batch's answers, (A,): the head on the state at each answer's last token before the doubled end."""
    last = batch.lengths.cumsum(0) - 1
    return token_states(network, batch)[last].float() @ head / math.sqrt(len(head))


def _ended(model: Model, row: Row) -> Row:
    """With one end token more: the state that predicts it has seen the whole answer."""
    end = model.tokenizer.eos_token_id
    return replace(row, answer_ids=tuple((*ids, end) for ids in row.answer_ids))


def _ids(model: Model, answers: Sequence[Answer | str]) -> tuple[tuple[int, ...], ...]:
    """Token ids of answers; a cut one has no end token, but for an empty one, which has nothing else."""
    found = []
    for answer in answers:
        text, finished = (answer.text, answer.finished) if isinstance(answer, Answer) else (answer, True)
        ids = tuple(model.answer_ids(text))
        found.append(ids if finished and not isinstance(answer, Unfinished) or len(ids) == 1 else ids[:-1])
    return tuple(found)


def _rejected(pair: Any) -> str:
    return pair.rejected if pair.rejected_finished else Unfinished(pair.rejected)
