"""Log-probabilities of given answers, without gradients, in the packed batches that training uses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn

from dpo_workbench.models.generation import Answer
from dpo_workbench.models.loading import Model
from dpo_workbench.models.rows import Broken, Row, Unfinished, encode, refuse, too_long
from dpo_workbench.pairs.messages import Prompt
from dpo_workbench.training.config import TrainConfig
from dpo_workbench.training.guards import rows_within_memory
from dpo_workbench.training.logps import answer_logps
from dpo_workbench.training.packing import Batch, micro_batches
from dpo_workbench.training.reference import choose_packing

T = TypeVar("T")


def sum_logps(model: Model, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer | str]]) -> list[list[float]]:
    """Log-probability (nats) of each answer under the model, given its prompt."""
    rows = answer_rows(model, prompts, answers)
    return answer_values(model, rows, lambda network, batch: answer_logps(network, batch).tolist())


def mean_logps(model: Model, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer | str]]) -> list[list[float]]:
    """`sum_logps` divided by the number of tokens of each answer (nats per token)."""
    rows = answer_rows(model, prompts, answers)
    return answer_values(model, rows, lambda network, batch: (answer_logps(network, batch) / batch.lengths).tolist())


def answer_rows(model: Model, prompts: Sequence[Prompt], answers: Sequence[Sequence[Answer | str]]) -> list[Row]:
    """One row per prompt, with its number as id. Texts count as finished answers."""
    rows = []
    for k, (prompt, given) in enumerate(zip(prompts, answers, strict=True)):
        # An answer that was cut off gets no end token, unless it is empty and has nothing else.
        texts = [a if isinstance(a, str) else a.text if a.finished or not a.text else Unfinished(a.text) for a in given]
        rows.append(encode(model.chat, str(k), prompt, texts))
    return rows


def check_positions(model: Model, rows: Sequence[Row]) -> None:
    """Raise if a prompt with an answer is longer than the model has positions; all such rows are counted."""
    broken: Broken = defaultdict(dict)
    for row in rows:
        if rule := too_long(row, row.length, model.max_positions):
            broken[rule][row.id] = row.length
    refuse(broken, len(rows))


def answer_values(model: Model, rows: Sequence[Row], read: Callable[[nn.Module, Batch], Sequence[T]]) -> list[list[T]]:
    """For each row, one value per answer. `read(network, batch)` returns the values of a batch's answers in order.

    Batches that do not fit into memory are halved and tried again.

    Raises:
        WorkbenchError: a prompt with an answer is longer than the model has positions.
    """
    check_positions(model, rows)
    n_answers = {row.id: len(row.answer_ids) for row in rows}

    def attempt(config: TrainConfig) -> dict[str, list[T]]:
        found: dict[str, list[T]] = {}
        with model.active() as network, torch.no_grad():
            for batch in micro_batches(rows, model, config):
                values = iter(read(network, batch))
                found |= {row_id: [next(values) for _ in range(n_answers[row_id])] for row_id in batch.ids}
        return found

    found = rows_within_memory(attempt, rows, choose_packing(model, rows, TrainConfig()))[0]
    return [found[row.id] for row in rows]
