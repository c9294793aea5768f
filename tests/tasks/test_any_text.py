"""No text makes a built-in verifier raise, and what it gives is a whole `Score`."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_workbench.tasks.builtin import load_task, task_names
from dpo_workbench.tasks.task import Score

pytestmark = pytest.mark.slow

TASKS = {name: load_task(name, allow_weak_sandbox=True) for name in task_names()}
WORDS = "Answer: 3 m/s = 2 * 3 ^ ( ) [ ] { } \" ' SELECT FROM WHERE return for v in xs : \n    , ; ``` ```python 1e999 \x00 °C %".split(
    " "
)
texts = (
    st.text(st.characters(exclude_categories=()), max_size=300)
    | st.lists(st.sampled_from(WORDS), max_size=60).map(" ".join)
    | st.sampled_from(
        [
            "[" * 50_000,
            "9" * 50_000,
            "1+" * 20_000 + "1",
            "(" * 3000,
            "a " * 20_000,
            "Answer: " * 9999,
            "\ud800",
            "=" * 9999,
            "Answer: 5 m^9^9^9^9^9^9",
            "9^9^9^9^9^9 = 9**9**9**9**9",
        ]
    )
)


@pytest.mark.parametrize("name", ("science", "briefs", "receipts", "instructions"))
@given(text=texts, place=st.integers(0, 199))
@settings(max_examples=300, deadline=None)
def test_no_text_makes_a_verifier_raise(name: str, text: str, place: int) -> None:
    task = TASKS[name]
    assert isinstance(task.score(task.dev[place], text), Score)


@pytest.mark.parametrize("name", ("python", "sql"))
@given(text=texts, place=st.integers(0, 199))
@settings(max_examples=40, deadline=None)
def test_no_text_makes_a_sandboxed_verifier_raise(name: str, text: str, place: int) -> None:
    task = TASKS[name]
    assert isinstance(task.score(task.dev[place], text), Score)
