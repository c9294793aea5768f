"""The task `briefs`: a note with many facts -> a short summary with the facts that matter. The flaw is planted."""

from __future__ import annotations

from dpo_workbench.tasks import scores
from dpo_workbench.tasks.examples import Example, Score, load_splits
from dpo_workbench.tasks.task import Task

INSTRUCTION = "Summarise the note in one sentence of at most {limit} words: who or what, and the main figures."
HARM = {"missing_fact": 2, "invented_fact": 3}  # the reasons are in the datasheet


def load() -> Task:
    """The built-in task with its three splits (see `data/briefs/DATASHEET.md`)."""
    about = "summarization: a note with many facts -> one short sentence (planted flaw: too long)"
    return Task("briefs", load_splits("briefs"), score, about, max_new_tokens=64, harm=HARM)


def score(example: Example, answer: str) -> Score:
    """Share of the note's main facts that the summary has. See `scores.summary` for the failure classes."""
    return scores.summary(max_words=example.extra["max_words"], facts="facts")(example, answer)
