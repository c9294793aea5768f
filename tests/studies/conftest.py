"""Made-up evaluations for the tests of verdict and report."""

import pytest

from dpo_workbench.evaluation.run import Evaluation, Judged


def make_judged(
    i: int, failure: str | None, value: float | None = None, text: str = "answer", group: str = ""
) -> Judged:
    score = (0.4 if failure else 1.0) if value is None else value
    end = failure != "loop"
    return Judged(f"t-{i:04d}", group or f"g{i}", f"prompt {i}", text, 30 + i % 5, end, score, failure, "why")


def make_arm(name: str, failures: list[str | None], values: list[float] | None = None, **facts: str) -> Evaluation:
    """An evaluation with these failures, prompt by prompt; `values` replace the scores."""
    rows = tuple(make_judged(i, f, values[i] if values else None) for i, f in enumerate(failures))
    where = {"task": "receipts", "split": "test", "model": "nano"} | facts
    return Evaluation(name, decoding={"temperature": 0.0}, rows=rows, seconds=1.0, **where)


@pytest.fixture(name="judged")
def _judged():
    """`make_judged`, a function."""
    return make_judged


@pytest.fixture(name="arm")
def _arm():
    """`make_arm`, a function."""
    return make_arm
