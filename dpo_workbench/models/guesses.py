"""Tokens guessed ahead of a model that copies: how many, and which."""

from __future__ import annotations

import torch
from torch import Tensor

MATCH = 4  # how many last tokens must have stood before at best
READ = 2  # what reading a row's keys and values costs in a pass, in units of one token's products


def look_ahead(luck: float, n_rows: int, most: int, fixed: int) -> int:
    """How many tokens to guess: the most expected new tokens for a pass's cost, if each guess is right with `luck`."""
    tokens, best, gain = 0.0, 0, 0.0
    for n in range(most + 1):
        tokens += luck**n
        if tokens / (fixed + n_rows * (READ + 1 + n)) > gain:
            best, gain = n, tokens / (fixed + n_rows * (READ + 1 + n))
    return best


def guesses(text: Tensor, lengths: Tensor, n: int, hint: Tensor, aim: Tensor, by_hint: Tensor) -> Tensor:
    """The n tokens that followed the last tokens of each row where they stood before.

    Taken is the longest match (up to MATCH tokens): in the text the latest, in the hint the one nearest to `aim`, since
    two answers to a prompt mostly go side by side. Of two as long it is the hint's where `by_hint` says so.

    Returns:
        (R, T) (R,) n (R, H) (R,) (R,) -> (R, 3, n): the guess taken, the one from the text, and the one from the hint.
    """
    own, text = text.shape[1], torch.cat([text, hint], dim=1)
    rows, width = torch.arange(len(text), device=text.device), text.shape[1]
    places = torch.arange(width, device=text.device)
    same = ((places < lengths[:, None] - 1) | (places >= own)).long()  # a match ends before the last token
    score = torch.zeros_like(text)
    for back in range(MATCH):
        shifted = text.roll(back, 1)
        same = same * (shifted == text[rows, (lengths - 1 - back).clamp(min=0)][:, None]) * (places >= back)
        score += same
    ranked = score * 2 * width + torch.where(places < own, places, width - (places - own - aim[:, None]).abs())
    best = torch.stack([ranked[:, :own].argmax(1), own + ranked[:, own:].argmax(1)], dim=1)
    long = score.gather(1, best)
    second = torch.where(long[:, 0] == long[:, 1], by_hint, long[:, 0] < long[:, 1]).long()
    best = torch.cat([best.gather(1, second[:, None]), best], dim=1)[..., None]  # (R, 3, 1)
    after = (best + 1 + torch.arange(n, device=text.device)).clamp(max=width - 1)
    return text.gather(1, after.flatten(1)).view_as(after)
