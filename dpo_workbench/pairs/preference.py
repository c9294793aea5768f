"""`Pair`: one prompt with a better and a worse answer."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass


@dataclass(frozen=True)
class Pair:
    """One preference: `chosen` is a better answer to `prompt` than `rejected`."""

    id: str
    prompt: str
    chosen: str
    rejected: str
    chosen_from: str = "human"  # reference, own (sampled from the model) or human
    rejected_from: str = "human"
    chosen_score: float | None = None  # the task's score, in [0, 1], or another one that was in the file
    rejected_score: float | None = None
    failure: str | None = None  # failure class of the rejected answer
    group: str = ""  # pairs of one group stay on one side of a split; without a group, pairs of one prompt do
    weight: float = 1.0  # how much the pair counts in the loss, relative to the other pairs of a run
    rejected_finished: bool = True  # False: the rejected answer was cut at the token limit and gets no end token

    @property
    def split_key(self) -> str:
        """Pairs with the same key belong on the same side of a split: the group, or the prompt if there is none."""
        return self.group or normal(self.prompt)


def normal(text: str) -> str:
    """The text in Unicode NFKC form, case-folded, with single spaces: equal for texts that differ only in form."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
