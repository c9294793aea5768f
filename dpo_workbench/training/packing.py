"""One row a prompt: what the answers share once, then the rest of each, which sees the shared part and itself only.

Shared are the prompt and the answers' common beginning. A pair of 200 + 75 + 75 tokens costs 350 tokens instead of the
550 of two whole sequences, and 290 where the answers part after 60. Exact: the answers' positions go on where the
shared part ends, so each answer's log-probabilities are those of its own plain sequence (the idea of prefix sharing,
arXiv 2410.20305, taken past the prompt).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Row:
    """Token ids of one prompt and its answers (two for a pair, one for supervised fine-tuning)."""

    id: str
    prompt_ids: tuple[int, ...]
    answer_ids: tuple[tuple[int, ...], ...]  # each with its end token

    @cached_property
    def n_shared(self) -> int:
        """Tokens of the answers' common beginning; 0 for a single answer."""
        if len(self.answer_ids) < 2:
            return 0
        places = zip(*self.answer_ids, strict=False)
        return next((i for i, ids in enumerate(places) if len(set(ids)) > 1), min(map(len, self.answer_ids)))

    @property
    def n_tokens(self) -> int:
        """Tokens of the packed row: what the answers share is there once."""
        return len(self.prompt_ids) + sum(map(len, self.answer_ids)) - self.n_shared * (len(self.answer_ids) - 1)


@dataclass(frozen=True)
class Batch:
    """Rows of a micro-batch as tensors. R rows, T tokens of the longest row, A answers, N answer tokens in all."""

    ids: tuple[str, ...]
    input_ids: Tensor  # (R, T)
    position_ids: Tensor  # (R, T)
    segments: Tensor  # (R, T): 0 what all answers share, 1.. the rest of each, -1 padding
    source: Tensor  # (N,) flat index into R*T: the position whose output predicts the token
    target: Tensor  # (N,) the answer token
    owner: Tensor  # (N,) which answer the token belongs to, 0 .. A-1, row by row
    n_answers: int

    @property
    def lengths(self) -> Tensor:
        """Tokens in each answer, end token included. Shape (A,)."""
        return torch.bincount(self.owner, minlength=self.n_answers)

    def attention_mask(self) -> Tensor:
        """True where a token may look: earlier, and in the shared part or its own answer. Shape (R, 1, T, T)."""
        seg = self.segments
        length = seg.shape[1]
        earlier = torch.ones(length, length, dtype=torch.bool, device=seg.device).tril()
        same = (seg[:, None, :] == seg[:, :, None]) | (seg[:, None, :] == 0)
        return (same & earlier)[:, None]


def pack(rows: list[Row], pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """Lay rows side by side, padded to the longest.

    Args:
        rows: at least one; every prompt and every answer has at least one token.
        pad_id: any valid token id; padded places are masked.
        device: where the tensors go.
    """
    width = max(row.n_tokens for row in rows)
    input_ids = torch.full((len(rows), width), pad_id)
    positions = torch.zeros((len(rows), width), dtype=torch.long)
    segments = torch.full((len(rows), width), -1)
    source: list[int] = []
    target: list[int] = []
    owner: list[int] = []
    answer_number = 0
    for r, row in enumerate(rows):
        shared = row.prompt_ids + row.answer_ids[0][: row.n_shared]
        input_ids[r, : len(shared)] = torch.tensor(shared)
        positions[r, : len(shared)] = torch.arange(len(shared))
        segments[r, : len(shared)] = 0
        start = len(shared)
        for number, answer in enumerate(row.answer_ids, 1):
            rest = answer[row.n_shared :]
            stop = start + len(rest)
            input_ids[r, start:stop] = torch.tensor(rest)
            positions[r, start:stop] = len(shared) + torch.arange(len(rest))
            segments[r, start:stop] = number
            # a token is predicted at the place before it: the first one at the prompt's last place
            places = [*range(len(row.prompt_ids) - 1, len(shared)), *range(start, stop)]
            source += [r * width + place for place in places[: len(answer)]]
            target += answer
            owner += [answer_number] * len(answer)
            answer_number += 1
            start = stop
    flat = torch.tensor([source, target, owner], device=device)
    return Batch(
        ids=tuple(row.id for row in rows),
        input_ids=input_ids.to(device),
        position_ids=positions.to(device),
        segments=segments.to(device),
        source=flat[0],
        target=flat[1],
        owner=flat[2],
        n_answers=answer_number,
    )
