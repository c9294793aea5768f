"""`Pair`: one prompt with a better and a worse answer, and the key that keeps related pairs together in a split."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
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
    chosen_score: float | None = None  # the task's score, in [0, 1]
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


def split_keys(pairs: Sequence[Pair]) -> list[str]:
    """One key for each pair; pairs that share a group or a prompt, directly or through others, get the same key.

    This is stricter than `Pair.split_key` when a prompt occurs in several groups. The keys don't depend on the order
    of the pairs. Use them to hold pairs out, so that no held-out prompt is also trained on.
    """
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(node: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(node, node) != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    prompts = [("prompt", normal(pair.prompt)) for pair in pairs]
    for pair, prompt in zip(pairs, prompts, strict=True):
        if pair.group:
            parent[root(prompt)] = root(("group", pair.group))
    roots = [root(prompt) for prompt in prompts]
    names: dict[tuple[str, str], str] = {}
    for found, pair in zip(roots, pairs, strict=True):
        names[found] = min(names.get(found, pair.split_key), pair.split_key)
    return [names[found] for found in roots]
