"""Unlikelihood training: a baseline for DPO that needs no reference model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dpo_workbench.models.loading import Model
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.tasks.task import Split
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.logps import token_logps
from dpo_workbench.training.objectives import Metrics
from dpo_workbench.training.packing import Batch, Row
from dpo_workbench.training.reference import choose_packing
from dpo_workbench.training.tokens import pair_texts, tokenize
from dpo_workbench.training.trainer import Run, Trainer


@dataclass
class Unlikelihood:
    """Likelihood of the chosen answers and unlikelihood of the rejected ones, without a reference model.

    The mean of -log p over the chosen tokens plus the mean of -log(1 - p) over the rejected ones (arXiv 1908.04319,
    equations 2 and 4, with weight 1). Tokens that both answers begin with are not made less likely.
    """

    whole_batch: bool = False

    def loss(self, network: nn.Module, batch: Batch, rows: Sequence[Row], step: int) -> tuple[Tensor, Metrics]:
        n_chosen = sum(len(row.answer_ids[0]) for row in rows)
        n_rejected = max(1, sum(len(row.answer_ids[1]) - row.n_shared for row in rows))
        n_shared = {row.id: row.n_shared for row in rows}
        logps, owner = token_logps(network, batch), batch.owner  # (N,) each
        first = batch.lengths.cumsum(0) - batch.lengths  # index of each answer's first token, (A,)
        place = torch.arange(len(owner), device=owner.device) - first[owner]
        shared = torch.tensor([n_shared[i] for i in batch.ids], device=owner.device)[owner // 2]
        wrong = (owner % 2 == 1) & (place >= shared)
        likelihood = -logps[owner % 2 == 0].sum() / n_chosen
        p = logps[wrong].exp().clamp(max=1 - 1e-6)
        unlikelihood = -torch.log1p(-p).sum() / n_rejected
        values = {"likelihood": likelihood.detach()[None], "unlikelihood": unlikelihood.detach()[None]}
        return likelihood + unlikelihood, values


def unlikelihood(
    model: Model,
    pairs: Pairs,
    config: TrainConfig,
    *,
    probe: Split | None = None,
    folder: str | Path | None = None,
    show: bool = True,
) -> Run:
    """Train a LoRA adapter with `Unlikelihood`.

    Args:
        model: the starting point; it stays unchanged.
        pairs: as for `dw.train`; their weights are not used.
        config: its loss, beta and nll_weight have no effect here.
        probe, folder, show: as in `dw.train`.
    """
    rows = tokenize(model, map(pair_texts, pairs), config.max_tokens)
    policy = model.with_new_adapter(rank=config.rank, alpha=config.alpha, seed=config.seed)
    config = choose_packing(model, rows, config)
    return Trainer(
        policy, rows, Unlikelihood(), config, probe, folder=Path(folder) if folder else None, show=show
    ).run()
