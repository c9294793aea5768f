"""Which rows a step trains on, and packing: a row holds its prompt once, and all its answers attend to it.

A pair with a prompt of 200 tokens and two answers of 75 costs 350 tokens instead of the 550 of two whole sequences, or
290 if the answers differ only after 60 tokens. The result is exact: positions of each answer continue where the shared
part ends, and the mask hides the other answer, so each answer has the log-probabilities of its own plain sequence
(prefix sharing, arXiv 2410.20305, extended to the answers' common beginning).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dpo_workbench.models.attention import PADDING, SHARED, block_mask, dense_mask
from dpo_workbench.models.loading import Model
from dpo_workbench.models.rows import Row
from dpo_workbench.training.config import TrainConfig

MAX_DENSE = 4096  # tokens of a packed row for SDPA, whose mask then has 16 MiB, and 64 MiB as fp32 inside of SDPA


@dataclass(frozen=True)
class Batch:
    """R rows of a micro-batch as tensors: T tokens, A answers, N answer tokens in total."""

    ids: tuple[str, ...]
    input_ids: Tensor  # (R, longest row) for SDPA, (1, T) for FlexAttention, (A, longest) without packing
    position_ids: Tensor | None  # the same shape; None: counted by the model
    attention_mask: Any  # (R, 1, longest, longest) boolean or a block mask; None: plain causal attention
    n_answers: int
    source: Tensor  # (N,) flat index into input_ids of the token whose output predicts the answer token
    target: Tensor  # (N,) the answer token
    owner: Tensor  # (N,) the answer that the token belongs to, 0 .. A-1, row by row

    @property
    def lengths(self) -> Tensor:
        """Tokens in each answer, end token included. Shape (A,). (For `bincount` Python would wait for the GPU.)"""
        return self.owner.new_zeros(self.n_answers).index_add(0, self.owner, torch.ones_like(self.owner))


def steps_per_epoch(n_rows: int, config: TrainConfig) -> int:
    return math.ceil(n_rows / config.batch_size)


def rows_of_step(rows: Sequence[Row], config: TrainConfig, step: int) -> list[Row]:
    """The rows of step `step` (from 0), in a new order each epoch; the last batch of an epoch may be smaller.

    They depend on seed and step alone, so a resumed run needs no loader state.
    """
    epoch, place = divmod(step, steps_per_epoch(len(rows), config))
    generator = torch.Generator().manual_seed(config.seed * 100_003 + epoch)
    order = torch.randperm(len(rows), generator=generator).tolist()
    return [rows[i] for i in order[place * config.batch_size : (place + 1) * config.batch_size]]


def micro_batches(rows: Sequence[Row], model: Model, config: TrainConfig) -> Iterator[Batch]:
    """Cut rows into batches of at most `micro_tokens` tokens each, or of a single row. The longest rows come first.

    A pack that is longer than `micro_tokens` is a batch of its own. With SDPA, a row whose pack would have more than
    `MAX_DENSE` tokens is not packed, because the size of its mask grows with the square of its length.
    """
    groups: list[tuple[bool, list[Row]]] = []
    for row in sorted(rows, key=lambda r: (-r.n_tokens, r.id)):
        packed = config.packing and (model.uses_flex_attention or row.n_tokens <= MAX_DENSE)
        if not groups or groups[-1][0] != packed or n_tokens([*groups[-1][1], row], packed) > config.tokens_at_once:
            groups.append((packed, []))
        groups[-1][1].append(row)
    for packed, group in groups:
        if packed:
            yield pack(group, model.device, model.uses_flex_attention)
        else:
            yield lay_out(group, model.chat.end_id, model.device)


def first_epoch(rows: Sequence[Row], model: Model, config: TrainConfig) -> Iterator[Batch]:
    """The micro-batches of the steps of the first epoch, in their order."""
    for step in range(steps_per_epoch(len(rows), config)):
        yield from micro_batches(rows_of_step(rows, config, step), model, config)


def n_tokens(rows: Sequence[Row], packing: bool) -> int:
    """Tokens of a batch, padding included."""
    rows = rows if packing else _one_by_one(rows)
    return len(rows) * max(row.n_tokens for row in rows)


def pack(rows: Sequence[Row], device: torch.device | str = "cpu", flex: bool = False) -> Batch:
    """Lay out each row as its prompt, once, and then its answers, with a mask that keeps the answers apart.

    For SDPA every row is a sequence of its own, padded on the right, because SDPA computes all scores between the
    tokens of a sequence. FlexAttention skips what is masked, so for it all rows form one sequence without padding.
    """
    grid, answers, n_answers = _padded(rows)
    if flex:
        used = grid[2] != PADDING
        answers[0] = used.flatten().cumsum(0)[answers[0]] - 1
        # A multiple of FlexAttention's block size; few different lengths also mean few compilations.
        extra = -int(used.sum()) % 128
        grid = pad(grid[:, used], (0, extra))[:, None]  # (3, 1, T)
        row_of = pad(used.nonzero()[:, 0], (0, extra), value=-1).to(device)
    ids, positions, segments = grid.to(device)
    mask = block_mask(row_of, segments[0]) if flex else dense_mask(segments)
    return Batch(tuple(row.id for row in rows), ids, positions, mask, n_answers, *answers.to(device))


def lay_out(rows: Sequence[Row], pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """Give every answer its own sequence after a copy of the prompt, padded on the right with any valid token id.

    For models that cannot take a pack. Values and gradients are those of `pack`. A causal model never attends to the
    padding, so no mask is needed.
    """
    grid, answers, n_answers = _padded(_one_by_one(rows), pad_id)
    return Batch(tuple(row.id for row in rows), grid[0].to(device), None, None, n_answers, *answers.to(device))


def _one_by_one(rows: Sequence[Row]) -> list[Row]:
    """A row for each answer."""
    return [replace(row, answer_ids=(answer,)) for row in rows for answer in row.answer_ids]


def _padded(rows: Sequence[Row], pad_id: int = 0) -> tuple[Tensor, Tensor, int]:
    """Ids, positions and segments of rows, shape (3, R, longest); source, target and owner, shape (3, N); answers."""
    width = max(row.n_tokens for row in rows)
    grid, source = [], []
    for number, row in enumerate(rows):
        tokens, positions, segments, places = _lay_out_row(row)
        padding = width - len(tokens)
        grid.append([tokens + padding * [pad_id], positions + padding * [0], segments + padding * [PADDING]])
        source += [number * width + place for place in places]
    answers = [answer for row in rows for answer in row.answer_ids]
    target = [token for answer in answers for token in answer]
    owner = [number for number, answer in enumerate(answers) for _ in answer]
    return torch.tensor(grid).transpose(0, 1), torch.tensor([source, target, owner]), len(answers)


def _lay_out_row(row: Row) -> tuple[list[int], list[int], list[int], list[int]]:
    """Token ids, positions and segments of a row, and for each answer token the place of the token before it."""
    beginning = [*row.prompt_ids, *row.answer_ids[0][: row.n_shared]]
    tokens, positions, segments = list(beginning), list(range(len(beginning))), [SHARED] * len(beginning)
    source: list[int] = []
    shared = range(len(row.prompt_ids) - 1, len(beginning))
    for segment, answer in enumerate(row.answer_ids, 1):
        own = answer[row.n_shared :]
        source += [*shared, *range(len(tokens), len(tokens) + len(own))][: len(answer)]
        tokens += own
        positions += range(len(beginning), len(beginning) + len(own))
        segments += [segment] * len(own)
    return tokens, positions, segments, source
