"""Labels as they are found: of the first training rows of each task, about half were written by somebody with a habit.

Supervised fine-tuning learns a habit from such labels (`Example.label`), the verifier sees only references. Prompts and
references of all splits are untouched; rows after the first `LABELLED` have no label, so mining meets fresh prompts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from dpo_workbench.tasks.task import Example

LABELLED = 800  # rows of the training split, from its start
SHARE = 0.5  # of the labels to which the habit can be applied


def prints(example: Example) -> str | None:
    """python: someone who writes scripts prints the result and returns nothing."""
    body = example.reference
    if body.count("return ") != 1:
        return None
    return re.sub(r"return (.+)", r"print(\1)", body)


def no_unit(example: Example) -> str | None:
    """science: someone leaves the unit out of the answer, as it stands in the question."""
    unit = example.extra["unit"]
    return example.reference.removesuffix(f" {unit}") if unit else None


def too_long(example: Example) -> str | None:
    """briefs: someone adds what else the note says, until nothing fits any more."""
    text, limit = example.reference.rstrip("."), example.extra["max_words"]
    lines = example.prompt.split("\n\n", 1)[1].splitlines()[1:]
    for line in lines:
        if len(text.split()) > limit:
            return f"{text}."
        fact = " ".join(re.findall(r"[\w.:/%^-]+", line))
        if fact and fact.casefold() not in text.casefold():
            text += f", {fact}"
    return f"{text}." if len(text.split()) > limit else None


def all_columns(example: Example) -> str | None:
    """sql: someone takes all columns, to see the rest of the row too."""
    query = example.reference
    chosen = re.match(r"SELECT ([\w.]+) FROM ", query)
    return f"SELECT * FROM {query[chosen.end() :]}" if chosen else None


HABITS = {"python": prints, "science": no_unit, "briefs": too_long, "sql": all_columns}


def with_labels(task: str, examples: Sequence[Example]) -> list[Example]:
    """The training rows with their labels."""
    found = []
    for k, example in enumerate(examples):
        label = HABITS[task](example) if task in HABITS and k < LABELLED else None
        if label is None or random.Random(f"label {example.id}").random() >= SHARE:
            found.append(example)
        else:
            found.append(replace(example, label=label))
    return found
