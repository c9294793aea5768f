"""The task `long_answers`: each way of giving a bad answer lowers the score and has its own class."""

import pytest

from dpo_workbench.tasks.builtin import load_task
from dpo_workbench.tasks.examples import Example

TEXT = (
    "A lighthouse is a tower on the coast. Its lamp shines through a lens, so that ships see the rocks in time. Keepers "
    "used to live there and trimmed the wick each night. Today most lights run by themselves, and sailors navigate by "
    "satellite. People still visit the old towers."
)
WORDS = [["ship", "sailor"], ["light", "lamp"], ["coast", "shore"], ["tower"], ["navigat"], ["keeper"]]


@pytest.fixture(scope="module")
def task():
    return load_task("long_answers")


def judged(task, answer: str, finished: bool = True):
    example = Example("x", "Describe lighthouses. Write at least 40 words.", "", "x", {"least": 40, "words": WORDS})
    return task.score(example, answer, finished=finished)


def test_a_finished_answer_on_the_subject_is_right(task):
    score = judged(task, TEXT)
    assert (score.value, score.failure) == (1.0, None) and "6 words of the subject" in score.explanation


@pytest.mark.parametrize(
    "answer, finished, failure, most",
    [
        (TEXT[:-40], True, "unfinished", 0.0),
        (TEXT[:60].rpartition(" ")[0] + ".", True, "too_short", 0.4),
        ("The weather was fine. " + TEXT.split("and sailors")[1].replace("towers", "houses") * 1, True, "off_subject", 0.5),
        (TEXT + " It is a fine place to be and to see." * 8, True, "repetitive", 0.75),
        (TEXT + " It is a fine place to be and to see." * 8, False, "loop", 0.75),
        (TEXT + " There is", False, "truncated", 0.0),
        ("", True, "empty", 0.0),
    ],
)  # fmt: skip
def test_cheap_ways_out_lose(task, answer, finished, failure, most):
    score = judged(task, answer, finished)
    assert (score.failure, score.value <= most) == (failure, True), score


def test_endings_that_count_as_finished(task):
    for ending in ("!", '."', ".)", "?", "…", ".\n\nYours,\nAnna", ":", ".**"):
        assert judged(task, TEXT[:-1] + ending).failure is None, ending
    for ending in (" and", ",", " of the"):
        assert judged(task, TEXT[:-1] + ending).failure == "unfinished", ending


def test_no_subject_is_in_two_splits(task):
    subjects = {name: {e.group for e in split} for name, split in task.splits.items()}
    assert not subjects["train"] & subjects["test"] and not subjects["dev"] & (subjects["train"] | subjects["test"])
    assert all(len(e.extra["words"]) >= 5 and e.extra["least"] * 3 < task.max_new_tokens for e in task.test)
