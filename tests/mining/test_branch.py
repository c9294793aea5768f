"""`branch`: the same beginning with a better ending by the model, and pairs that prefer it."""

import os

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.mining.branch import branch
from dpo_workbench.mining.sample import Found, mine
from dpo_workbench.tasks.task import Score, Task


def half(example, answer: str) -> Score:
    """An answer passes if its length is even: another ending often fixes it."""
    return Score(1.0) if len(answer) % 2 == 0 else Score(0.25, "odd")


@pytest.fixture
def found(tiny, toy_task) -> Found:
    task = Task("toy", {k: v.examples for k, v in toy_task.splits.items()}, half, max_new_tokens=30)
    return mine(tiny, task.train, 4, seed=3, show=False)


@pytest.fixture
def branched(tiny, found) -> Found:
    return branch(tiny, found, ("odd",), show=False)


def test_better_endings_of_failed_answers(found, branched) -> None:
    plain = [s for _, samples in found.rows for s in samples]
    seen = [s for _, samples in branched.rows for s in samples]
    assert [(s.text, s.failure) for s in seen] == [(s.text, s.failure) for s in plain]
    fixed = [s for s in seen if s.better]
    assert len(fixed) > 2 and {s.failure for s in fixed} == {"odd"}
    for s in fixed:
        assert s.better.finished and s.better.failure is None and s.better.value == 1.0
    shared = [len(os.path.commonprefix([s.text, s.better.text])) / len(s.text) for s in fixed]
    assert sorted(shared)[len(shared) // 2] > 0.3  # most begin alike; two samples from scratch do not
    assert sum(s.failure == "odd" for s in seen) >= len(fixed)
    assert branched.settings["branch"]["classes"] == ["odd"] and "branch" not in found.settings


def test_the_same_seed_gives_the_same_endings(tiny, found, branched) -> None:
    assert branch(tiny, found, ("odd",), show=False).rows == branched.rows
    assert branch(tiny, found, ("odd",), seed=9, show=False).rows != branched.rows


def test_at_most_per_prompt_samples_of_each_prompt(tiny, found) -> None:
    one = branch(tiny, found, ("odd",), per_prompt=1, show=False)
    assert max(sum(s.better is not None for s in samples) for _, samples in one.rows) == 1


def test_pairs_take_better_endings_first_and_survive_the_disk(branched, tmp_path) -> None:
    again = Found.load(branched.save(tmp_path / "mined.json"), branched.task)
    assert again.rows == branched.rows
    pairs = again.pairs(per_prompt=4, classes=("odd",), most=3)
    endings = {s.text: s.better.text for _, samples in branched.rows for s in samples if s.better}
    assert len(pairs) == 3 and all(p.chosen == endings[p.rejected] and p.chosen_from == "own" for p in pairs)


def test_missing_and_unknown_classes_are_refused(tiny, found) -> None:
    for call in (lambda c: branch(tiny, found, c, show=False), lambda c: found.pairs(classes=c)):
        with pytest.raises(WorkbenchError, match="must be among those that were found: .*odd.* Got no such class"):
            call(("no such class",))
    with pytest.raises(WorkbenchError, match="must know what to fix"):
        branch(tiny, found, (), show=False)
    with pytest.raises(WorkbenchError, match="must be a list. Got the text 'odd'"):
        branch(tiny, found, "odd", show=False)
    with pytest.raises(WorkbenchError, match="must be a list. Got the text 'odd'"):
        found.pairs(classes="odd")
