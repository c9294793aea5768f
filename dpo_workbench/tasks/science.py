"""The task `science`: a problem with units -> its steps and `Answer: 3.2 m/s`. The flaw is planted."""

from __future__ import annotations

from dpo_workbench.tasks.examples import Example, Score, load_splits
from dpo_workbench.tasks.final_answer import judge_quantity
from dpo_workbench.tasks.quantities import Quantity, wrong_step
from dpo_workbench.tasks.task import Task

INSTRUCTION = "Solve the problem. Show each step, then end with a line 'Answer: ' with the number and its unit."
TOLERANCE = 0.01  # relative
HARM = {"wrong_unit": 2, "arithmetic_slip": 2, "wrong_value": 3}  # the reasons are in the datasheet


def load() -> Task:
    """The built-in task with its three splits (see `data/science/DATASHEET.md`)."""
    about = "scientific reasoning: a problem with units -> steps and an answer (planted flaw: no unit)"
    return Task("science", load_splits("science"), score, about, max_new_tokens=96, harm=HARM)


def score(example: Example, answer: str) -> Score:
    """Judge the final quantity, and each step that is plain arithmetic.

    A number within 1 % of the reference, in a unit of the same kind and after steps that are right, scores 1.0. A right
    number after a wrong step scores 0.8, a right number in a wrong unit 0.5, and everything else 0. Classes, in this
    order: `no_answer`, `wrong_unit`, `arithmetic_slip` (a step is wrong), `wrong_value`.
    """
    wanted = Quantity(example.extra["number"], example.extra["unit"])
    found = judge_quantity(answer, wanted, TOLERANCE)
    slip = wrong_step(answer)
    if slip and found.failure in (None, "wrong_value"):
        return Score(0.8 if found.failure is None else 0.0, "arithmetic_slip", found.answer, f"{slip} is wrong")
    return found
