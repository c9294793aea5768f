"""Packing: a row holds its prompt once, and all its answers attend to it.

Both answers of a pair share the prompt, and often their first tokens too. A pair with a prompt of 200 tokens and two
answers of 75 costs 350 tokens instead of the 550 of two whole sequences, or 290 if the answers differ only after 60
tokens. The result is exact: positions of each answer continue where the shared part ends, and the mask hides the other
answer, so each answer has the log-probabilities of its own plain sequence (prefix sharing, arXiv 2410.20305, extended
to the answers' common beginning).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dpo_workbench.models.attention import PADDING, SHARED, block_mask, dense_mask


@dataclass(frozen=True)
class Row:
    """Token ids of a prompt and its answers: two for a pair, one for supervised fine-tuning."""

    id: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[tuple[int, ...], ...]  # each with its end token

    @cached_property
    def n_shared(self) -> int:
        """How many tokens the answers have in common at their beginning; 0 for a single answer."""
        if len(self.answer_ids) < 2:
            return 0
        columns = zip(*self.answer_ids, strict=False)
        return next((i for i, ids in enumerate(columns) if len(set(ids)) > 1), min(map(len, self.answer_ids)))

    @property
    def n_tokens(self) -> int:
        """Tokens of the packed row, in which the shared beginning occurs once."""
        return len(self.prompt_ids) + sum(map(len, self.answer_ids)) - self.n_shared * (len(self.answer_ids) - 1)


@dataclass(frozen=True)
class Batch:
    """R rows of a micro-batch as tensors: T tokens, A answers, N answer tokens in total."""

    ids: tuple[str, ...]
    input_ids: Tensor  # (R, longest row) for SDPA, (1, T) for FlexAttention; (A, longest) without packing
    position_ids: Tensor | None  # the same shape; None: counted by the model
    attention_mask: Any  # (R, 1, longest, longest) boolean or a block mask; None: plain causal attention
    source: Tensor  # (N,) flat index into input_ids of the token whose output predicts the answer token
    target: Tensor  # (N,) the answer token
    owner: Tensor  # (N,) the answer that the token belongs to, 0 .. A-1, row by row
    n_answers: int

    @property
    def lengths(self) -> Tensor:
        """Tokens in each answer, end token included. Shape (A,)."""
        return torch.bincount(self.owner, minlength=self.n_answers)


def pack(rows: list[Row], device: torch.device | str = "cpu", flex: bool = False) -> Batch:
    """Lay out each row as its prompt, once, and then its answers, with a mask that keeps the answers apart.

    For SDPA every row is a sequence of its own, padded on the right, because SDPA computes all scores between the
    tokens of a sequence. FlexAttention skips what is masked, so for it all rows form one sequence without padding.

    Args:
        rows: at least one; every prompt and every answer has at least one token.
        device: where the tensors go.
        flex: make the one sequence and the block mask of FlexAttention.
    """
    laid_out = [_lay_out_row(row) for row in rows]
    lengths = [len(tokens) for tokens, *_ in laid_out]
    if flex:
        # A multiple of FlexAttention's block size; few different lengths also mean few compilations.
        padding = -sum(lengths) % 128
        columns = [[x for row in laid_out for x in row[k]] + [0] * padding for k in range(3)]
        ids, positions, segments = torch.tensor(columns, device=device)[:, None]  # (1, T) each
        starts = [sum(lengths[:number]) for number in range(len(rows))]
        row_of = torch.arange(len(rows), device=device).repeat_interleave(torch.tensor(lengths, device=device))
        mask: Any = block_mask(torch.cat([row_of, row_of.new_full((padding,), -1)]), segments[0])
    else:
        width = max(lengths)
        fill = (0, 0, PADDING)
        padded = [[row[k] + [fill[k]] * (width - len(row[k])) for row in laid_out] for k in range(3)]
        ids, positions, segments = torch.tensor(padded, device=device)  # (R, width) each
        starts = [number * width for number in range(len(rows))]
        mask = dense_mask(segments)
    source = [start + place for start, (*_, places) in zip(starts, laid_out, strict=True) for place in places]
    return _batch(rows, ids, positions, mask, source, device)


def _lay_out_row(row: Row) -> tuple[list[int], list[int], list[int], list[int]]:
    """Token ids, positions and segments of a row, and for each answer token the place of the token before it."""
    beginning = [*row.prompt_ids, *row.answer_ids[0][: row.n_shared]]
    tokens, positions, segments = list(beginning), list(range(len(beginning))), [SHARED] * len(beginning)
    source: list[int] = []
    shared = range(len(row.prompt_ids) - 1, len(beginning))
    for segment, answer in enumerate(row.answer_ids, 1):
        own = answer[row.n_shared :]
        places = range(len(tokens), len(tokens) + len(own))
        tokens += own
        positions += range(len(beginning), len(beginning) + len(own))
        segments += [segment] * len(own)
        source += [*shared, *places][: len(answer)]
    return tokens, positions, segments, source


def lay_out(rows: list[Row], pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """Give every answer its own sequence after a copy of the prompt, padded on the right.

    For models that cannot take a pack. Values and gradients are those of `pack`. A causal model never attends to the
    padding, so no mask is needed.

    Args:
        rows: as for `pack`.
        pad_id: any valid token id.
        device: where the tensors go.
    """
    sequences = [row.prompt_ids + answer for row in rows for answer in row.answer_ids]
    first = [len(row.prompt_ids) - 1 for row in rows for _ in row.answer_ids]
    width = max(map(len, sequences))
    ids = torch.tensor([[*tokens, *[pad_id] * (width - len(tokens))] for tokens in sequences])
    source = [
        number * width + i
        for number, (tokens, start) in enumerate(zip(sequences, first, strict=True))
        for i in range(start, len(tokens) - 1)
    ]
    return _batch(rows, ids, None, None, source, device)


def _batch(
    rows: list[Row],
    ids: Tensor,
    positions: Tensor | None,
    mask: Any,
    source: list[int],
    device: torch.device | str,
) -> Batch:
    answers = [answer for row in rows for answer in row.answer_ids]
    target = [token for answer in answers for token in answer]
    owner = [number for number, answer in enumerate(answers) for _ in answer]
    flat = torch.tensor([source, target, owner], device=device)
    return Batch(
        ids=tuple(row.id for row in rows),
        input_ids=ids.to(device),
        position_ids=None if positions is None else positions.to(device),
        attention_mask=mask,
        source=flat[0],
        target=flat[1],
        owner=flat[2],
        n_answers=len(answers),
    )
