"""The task `science`: a quantitative problem with units -> its steps and `Answer: 3.2 m/s`."""

from __future__ import annotations

import re

from dpo_workbench.tasks import quantities, scores
from dpo_workbench.tasks.task import Example, Score, Task, load_splits

INSTRUCTION = "Solve the problem. Show each step, then end with a line 'Answer: ' with the number and its unit."
FAILURES = ("no_answer", "wrong_unit", "arithmetic_slip", "wrong_value")
TOLERANCE = 0.01  # relative
# `40 finches` are a count, although pint can read them as inches
_SYMBOL = re.compile(r"[A-Za-zµ]{1,3}(?:\s?[/*^·].*)?")


def load() -> Task:
    """The built-in task with its three splits (see `data/science/DATASHEET.md`)."""
    return Task(
        "science",
        load_splits("science"),
        score,
        description="scientific reasoning: a problem with units -> steps and an answer",
        max_new_tokens=96,
    )


def score(example: Example, answer: str) -> Score:
    """Judge the final quantity, and each step that is plain arithmetic.

    Right is a number within 1 % of the reference in a unit of the same kind, with steps that compute: 1.0. A right
    number after a step that does not compute is worth 0.8, a right number in a wrong unit 0.5, all else 0. Classes, in
    order: `no_answer`, `wrong_unit`, `arithmetic_slip` (some step does not compute), `wrong_value`.
    """
    wanted = quantities.Quantity(example.extra["number"], example.extra["unit"])
    ends = quantities.final_answer(answer)
    found = scores.judge_quantity(ends, wanted, TOLERANCE)
    if ends and found.failure is None and not wanted.unit and _SYMBOL.fullmatch(ends.unit) and ends.measured:
        found = Score(0.5, "wrong_unit", ends, f"{ends} has a unit, and the result has none")
    slip = quantities.wrong_step(answer)
    if slip and found.failure in (None, "wrong_value"):
        return Score(0.8 if found.failure is None else 0.0, "arithmetic_slip", found.answer, f"{slip} does not compute")
    return found
