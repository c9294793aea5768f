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

from dpo_workbench.models.attention import Layout


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
    """Rows of a micro-batch as tensors. T tokens in all, A answers, N answer tokens in all."""

    ids: tuple[str, ...]
    input_ids: Tensor  # (1, T) packed; (A, longest) when each answer is laid out by itself
    position_ids: Tensor | None  # (1, T); None = counted by the model
    layout: Layout | None  # who sees whom; None = plain causal sequences
    source: Tensor  # (N,) flat index into input_ids: the position whose output predicts the token
    target: Tensor  # (N,) the answer token
    owner: Tensor  # (N,) which answer the token belongs to, 0 .. A-1, row by row
    n_answers: int

    @property
    def lengths(self) -> Tensor:
        """Tokens in each answer, end token included. Shape (A,)."""
        return torch.bincount(self.owner, minlength=self.n_answers)


def pack(rows: list[Row], device: torch.device | str = "cpu") -> Batch:
    """Lay rows one after the other into a single sequence, without padding.

    Args:
        rows: at least one; every prompt and every answer has at least one token.
        device: where the tensors go.
    """
    tokens: list[int] = []
    positions: list[int] = []
    layout: list[tuple[int, int, tuple[int, ...]]] = []
    source: list[int] = []
    for row in rows:
        start, shared = len(tokens), row.prompt_ids + row.answer_ids[0][: row.n_shared]
        rests = [answer[row.n_shared :] for answer in row.answer_ids]
        layout.append((start, len(shared), tuple(map(len, rests))))
        tokens += shared
        positions += range(len(shared))
        for rest in rests:
            # a token is predicted at the place before it: the first one at the prompt's last place
            places = [
                *range(start + len(row.prompt_ids) - 1, start + len(shared)),
                *range(len(tokens), len(tokens) + len(rest)),
            ]
            source += places[: row.n_shared + len(rest)]
            tokens += rest
            positions += range(len(shared), len(shared) + len(rest))
    return _batch(rows, torch.tensor([tokens]), torch.tensor([positions]), Layout(tuple(layout)), source, device)


def lay_out(rows: list[Row], pad_id: int, device: torch.device | str = "cpu") -> Batch:
    """Each answer after its own copy of the prompt, padded at the end, where a causal model does not look.

    For models that cannot take a pack. Values and gradients are those of `pack`.

    Args:
        rows: as for `pack`.
        pad_id: any valid token id.
        device: where the tensors go.
    """
    whole = [row.prompt_ids + answer for row in rows for answer in row.answer_ids]
    width = max(map(len, whole))
    ids = torch.tensor([[*tokens, *[pad_id] * (width - len(tokens))] for tokens in whole])
    firsts = [len(row.prompt_ids) - 1 for row in rows for _ in row.answer_ids]
    source = [
        a * width + i for a, (t, first) in enumerate(zip(whole, firsts, strict=True)) for i in range(first, len(t) - 1)
    ]
    return _batch(rows, ids, None, None, source, device)


def _batch(
    rows: list[Row],
    ids: Tensor,
    positions: Tensor | None,
    layout: Layout | None,
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
        layout=layout,
        source=flat[0],
        target=flat[1],
        owner=flat[2],
        n_answers=len(answers),
    )
