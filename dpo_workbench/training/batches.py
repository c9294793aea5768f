"""Which rows a step trains on, and how they are cut into micro-batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from dpo_workbench.models.loading import Model
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.packing import Batch, Row, lay_out, pack


def steps_per_epoch(n_rows: int, config: TrainConfig) -> int:
    return math.ceil(n_rows / config.batch_size)


def rows_of_step(rows: Sequence[Row], config: TrainConfig, step: int) -> list[Row]:
    """The rows of step `step` (from 0). It depends on seed and step alone, so a resumed run needs no loader state.

    Every epoch is one shuffle of all rows; its last batch may be smaller.
    """
    epoch, place = divmod(step, steps_per_epoch(len(rows), config))
    generator = torch.Generator().manual_seed(config.seed * 100_003 + epoch)
    order = torch.randperm(len(rows), generator=generator).tolist()
    return [rows[i] for i in order[place * config.batch_size : (place + 1) * config.batch_size]]


def micro_batches(rows: Sequence[Row], model: Model, config: TrainConfig, *, whole: bool = False) -> Iterator[Batch]:
    """Cut rows into batches of at most `micro_tokens` tokens each, the longest rows first.

    A row that is longer by itself makes a batch of its own. With `whole`, all rows make one batch.
    """
    limit = n_tokens(rows, config.packing) if whole else config.micro_tokens
    group: list[Row] = []
    for row in sorted(rows, key=lambda r: (-r.n_tokens, r.id)):
        if group and n_tokens([*group, row], config.packing) > limit:
            yield _batch(group, model, config)
            group = []
        group.append(row)
    if group:
        yield _batch(group, model, config)


def _batch(rows: list[Row], model: Model, config: TrainConfig) -> Batch:
    if config.packing:
        return pack(rows, model.device, flex=model.uses_flex_attention)
    return lay_out(rows, model.tokenizer.eos_token_id, model.device)


def n_tokens(rows: Sequence[Row], packing: bool) -> int:
    """Tokens of a batch, padding included."""
    if packing:
        return len(rows) * max(row.n_tokens for row in rows)
    lengths = [len(row.prompt_ids) + len(answer) for row in rows for answer in row.answer_ids]
    return max(lengths) * len(lengths)
