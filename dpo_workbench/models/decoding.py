"""`Answer`, the limits of decoding settings, and how a token is drawn from its logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor
from transformers import NoRepeatNGramLogitsProcessor

from dpo_workbench.common.errors import WorkbenchError


@dataclass(frozen=True)
class Answer:
    """One generated answer."""

    text: str
    n_tokens: int
    finished: bool  # False: cut off at the token limit


def check_decoding(
    samples: int, temperature: float, max_new_tokens: int, repetition_penalty: float = 1.0, no_repeat_ngram: int = 0
) -> None:
    """Check the decoding settings.

    Raises:
        WorkbenchError: a number out of its range, or several samples at temperature 0.
    """
    for name, value in (("samples", samples), ("max_new_tokens", max_new_tokens)):
        if not isinstance(value, Integral) or value < 1:
            raise WorkbenchError(f"`{name}` must be a whole number of at least 1. Got {value!r}.")
    if not 0 <= temperature < math.inf:
        raise WorkbenchError(f"`temperature` must be 0 (greedy) or more. Got {temperature!r}.")
    if not 0 < repetition_penalty < math.inf:
        raise WorkbenchError(f"`repetition_penalty` must be above 0 (1 means none). Got {repetition_penalty!r}.")
    if not isinstance(no_repeat_ngram, Integral) or no_repeat_ngram < 0:
        raise WorkbenchError(f"`no_repeat_ngram` must be a whole number, 0 or more. Got {no_repeat_ngram!r}.")
    if samples > 1 and temperature == 0:
        raise WorkbenchError(
            f"Several samples need a temperature above 0, such as 1. Got samples={samples}, temperature={temperature}."
        )


@dataclass
class Sampler:
    """Draws the next token of each answer from its logits."""

    temperature: float
    penalty: float
    generator: torch.Generator
    no_repeat_ngram: int = 0
    broken: Tensor | bool = False  # True after logits that were not numbers; a tensor, so that a GPU does not wait

    def __call__(self, logits: Tensor, drawn: Tensor) -> Tensor:
        """Logits (R, V) and the answers' tokens so far (R, n) -> next tokens (R,)."""
        logits = self.adjust(logits.float(), drawn)
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        # Inverse transform sampling: one uniform number per answer, looked up in the cumulative distribution.
        cumulative = (logits / self.temperature).softmax(-1).cumsum(-1)
        uniform = torch.rand(len(logits), 1, generator=self.generator, device=logits.device) * cumulative[:, -1:]
        return torch.searchsorted(cumulative, uniform, right=True)[:, 0].clamp(max=logits.shape[1] - 1)

    def adjust(self, logits: Tensor, drawn: Tensor) -> Tensor:
        """The logits (R, V) after the two rules against repetition."""
        logits = self.penalize(logits, drawn)
        if self.no_repeat_ngram:
            logits = NoRepeatNGramLogitsProcessor(self.no_repeat_ngram)(drawn, logits)
        return logits

    def penalize(self, logits: Tensor, drawn: Tensor) -> Tensor:
        """Lower the logits (R, V) of tokens that the answers (R, n) already contain."""
        self.broken = logits.isnan().any() | self.broken
        if self.penalty == 1.0 or not drawn.shape[1]:
            return logits
        seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, drawn, True)
        return torch.where(seen, torch.where(logits > 0, logits / self.penalty, logits * self.penalty), logits)

    def check(self) -> None:
        """Raise if any logits were not numbers."""
        if self.broken:
            raise WorkbenchError(
                "Logits must be numbers. Got NaN while generating. Load the model with dtype=torch.float32."
            )
