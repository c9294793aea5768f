"""The task `briefs`: a note of many facts -> a summary of at most so many words with the facts that matter."""

from __future__ import annotations

from dpo_workbench.tasks import scores
from dpo_workbench.tasks.task import Example, Score, Task, load_splits

INSTRUCTION = "Summarise the note in one sentence of at most {limit} words: who or what, and the main figures."
FAILURES = ("too_long", "copied", "invented_fact", "missing_fact")


def load() -> Task:
    """The built-in task with its three splits (see `data/briefs/DATASHEET.md`)."""
    return Task(
        "briefs",
        load_splits("briefs"),
        score,
        description="summarisation: a note of many facts -> one short sentence with those that matter",
        max_new_tokens=64,
    )


def score(example: Example, answer: str) -> Score:
    """Share of the note's main facts that the summary has; see `scores.summary` for the failure classes."""
    return scores.summary(max_words=example.extra["max_words"], facts="facts")(example, answer)
