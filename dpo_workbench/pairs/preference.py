"""`Pair`: one prompt with a better and a worse answer."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from dpo_workbench.pairs.messages import Turns, prompt_as_text, read_prompt


@dataclass(frozen=True)
class Pair:
    """One preference: `chosen` is a better answer to `prompt` than `rejected`."""

    id: str
    prompt: str | Turns  # a text, or messages with their roles; dicts with role and content become `Turns`
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt", read_prompt(self.prompt, f"pair {self.id!r}"))

    @property
    def prompt_as_text(self) -> str:
        """The prompt for people and for checks: several messages below one another, each with its role in front."""
        return prompt_as_text(self.prompt)

    @property
    def split_key(self) -> str:
        """Pairs with the same key belong on the same side of a split: the group, or the prompt if there is none."""
        return self.group or normal(self.prompt_as_text)


def normal(text: str) -> str:
    """The text in Unicode NFKC form, case-folded, with single spaces: equal for texts that differ only in form."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
