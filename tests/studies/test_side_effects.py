"""What training changed besides its target: measured on both models, called a regression by its interval."""

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.statistics import Interval
from dpo_workbench.studies.side_effects import Effect, plain_text, side_effects
from dpo_workbench.tasks.task import Example, Score, Task


def other_task() -> Task:
    rows = [Example(f"d{k}", f"ask {k}", "yes", f"g{k}") for k in range(6)]
    score = lambda example, answer: Score(min(1.0, len(answer) / 50), None if answer else "wrong")  # noqa: E731
    return Task("other", {"dev": rows}, score, max_new_tokens=12)


def test_an_unchanged_model_has_no_effects(tiny, toy_task):
    seen = side_effects(tiny, tiny, toy_task, others=[other_task()], show=False)
    assert [e.name for e in seen.effects] == [
        "log-likelihood of plain text",
        "log-likelihood of references",
        "KL from the start",
        "task other",
    ]
    assert all(e.change.estimate == pytest.approx(0, abs=1e-6) for e in seen.effects) and not seen.regressions


def test_a_changed_model_moves(tiny, moved, toy_task):
    seen = side_effects(tiny, moved, toy_task, others=[other_task()], show=False)
    named = {e.name: e for e in seen.effects}
    assert named["KL from the start"].after > 0
    assert named["log-likelihood of plain text"].before != named["log-likelihood of plain text"].after
    assert "KL from the start" in str(seen) and "nats an answer" in str(seen)


@pytest.mark.parametrize(
    ("change", "low", "high", "least", "wanted"),
    [
        (-0.1, -0.15, -0.05, 0.02, True),
        (-0.1, -0.25, 0.05, 0.02, False),  # not clear
        (-0.01, -0.015, -0.005, 0.02, False),  # clear, and too small to matter
        (0.1, 0.05, 0.15, 0.02, False),  # for the better
        (-0.5, -0.6, -0.4, None, False),  # neither direction is worse
    ],
)
def test_a_regression_is_clear_and_large_enough(change, low, high, least, wanted):
    interval = Interval(change, low, high, "made up", 10, 10)
    assert Effect("x", "score", 0.5, 0.5 + change, interval, least).regression is wanted


def test_no_dev_prompts_is_an_error(tiny, toy_task):
    with pytest.raises(WorkbenchError, match="split 'dev'"):
        side_effects(tiny, tiny, Task("bare", {"dev": []}, toy_task.score, max_new_tokens=4), others=[])


def test_plain_text_is_prose():
    paragraphs = plain_text()
    assert len(paragraphs) >= 20 and all(len(p) > 100 and "\n" not in p for p in paragraphs)
