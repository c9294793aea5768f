"""`Found.pairs`: which answer is chosen, which failures come first, and the error where no pair can be made."""

from dataclasses import replace

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.mining.sample import Found, Sample
from dpo_workbench.tasks.task import Example, Score, Task

ROW = Example("e", "prompt", "the reference", "g")
GOOD, BETTER = Sample("good", True, 1.0, None, ""), Sample("also good", True, 1.0, None, "")


def bad(text: str, failure: str, value: float = 0.2) -> Sample:
    return Sample(text, failure not in ("loop", "truncated"), value, failure, "why")


def task_of(value: float = 1.0) -> Task:
    return Task("t", {"train": [ROW]}, lambda e, a: Score(value, None if value == 1 else "wrong"))


def build(samples, per_prompt: int = 9, classes=None, use_reference: bool = True, task: Task | None = None):
    found = Found(task or task_of(), ((ROW, tuple(samples)),), {})
    return found.pairs(per_prompt=per_prompt, classes=classes, use_reference=use_reference)


def test_own_pass_against_own_failure() -> None:
    (pair,) = build([bad("no", "wrong", 0.3), GOOD, BETTER])
    assert (pair.chosen, pair.rejected, pair.chosen_from, pair.rejected_from) == ("good", "no", "own", "own")
    assert (pair.chosen_score, pair.rejected_score, pair.failure) == (1.0, 0.3, "wrong")
    assert (pair.id, pair.prompt, pair.group, pair.rejected_finished) == ("e/0", "prompt", "g", True)


def test_of_passing_answers_the_one_with_the_highest_score_is_chosen() -> None:
    (pair,) = build([Sample("poor", True, 0.3, None, ""), bad("no", "wrong"), Sample("rich", True, 0.7, None, "")])
    assert (pair.chosen, pair.chosen_score) == ("rich", 0.7)


def test_reference_as_chosen_says_so() -> None:
    (pair,) = build([bad("no", "wrong")])
    assert (pair.chosen, pair.chosen_from) == ("the reference", "reference")
    with pytest.raises(WorkbenchError, match="none of the 1 failed samples could be paired"):
        build([bad("no", "wrong")], use_reference=False)
    with pytest.raises(WorkbenchError, match="the reference answers should"):  # one that does not pass is not chosen
        build([bad("no", "wrong")], task=task_of(0.5))


def test_own_better_answer_outside_the_named_classes() -> None:
    samples = [bad("slip", "wrong", 0.8), bad("lost", "missing", 0.5), bad("one lost", "missing", 0.79)]
    pair, other = build(samples, classes=("missing",))
    assert (other.rejected, other.chosen_from) == ("one lost", "reference")  # too close
    assert (pair.chosen, pair.rejected, pair.chosen_from, pair.chosen_score) == ("slip", "lost", "own", 0.8)
    assert {p.chosen_from for p in build(samples)} == {"reference"}  # all classes are rejected
    assert build([*samples, GOOD], classes=("missing",))[0].chosen == "good"
    cut = bad("on and on", "truncated", 0.9)
    assert {p.chosen_from for p in build([cut, *samples[1:]], classes=("missing",))} == {"reference"}


def test_at_most_so_many_pairs_own_good_answers_first() -> None:
    rows = [
        (Example(f"e{k}", f"p{k}", "the reference", "g"), [bad("no", "wrong")] + [GOOD] * (k % 2)) for k in range(4)
    ]
    found = Found(task_of(), tuple(rows), {})
    pairs = found.pairs(most=3)
    assert [(p.id, p.chosen_from) for p in pairs] == [("e1/0", "own"), ("e3/0", "own"), ("e0/0", "reference")]
    assert [p.id for p in found.pairs()] == [f"e{k}/0" for k in range(4)]


def test_loops_come_first_then_cut_off_answers_then_the_other_classes() -> None:
    samples = [
        GOOD,
        bad("w1", "wrong"),
        bad("w2", "wrong"),
        bad("w3", "wrong"),
        bad("j1", "invalid"),
        bad("j2", "invalid"),
        bad("t1", "truncated"),
        bad("l1", "loop"),
        bad("l2", "loop"),
    ]
    pairs = build(samples)
    assert [p.rejected for p in pairs] == ["l1", "t1", "w1", "j1", "l2", "w2", "j2", "w3"]
    assert [p.id for p in pairs] == [f"e/{k}" for k in range(8)]
    assert [p.rejected_finished for p in pairs[:3]] == [False, False, True]
    assert [p.rejected for p in build(samples, per_prompt=1)] == ["l1"]
    assert [p.rejected for p in build(samples, per_prompt=3)] == ["l1", "t1", "w1"]


def test_each_text_once_and_never_the_chosen_one() -> None:
    samples = [GOOD, bad("no", "wrong"), bad(" no\n", "wrong"), bad("good", "truncated"), bad("no", "loop")]
    assert [p.rejected for p in build(samples)] == ["no"]


def test_empty_answers_are_left_out_and_classes_can_be_named() -> None:
    samples = [GOOD, bad("", "empty"), bad("j", "invalid"), bad("w", "wrong")]
    assert {p.rejected for p in build(samples)} == {"j", "w"}
    assert [p.rejected for p in build(samples, classes=("invalid",))] == ["j"]
    with pytest.raises(WorkbenchError, match="could be paired"):
        build(samples, classes=("empty",))
    with pytest.raises(WorkbenchError, match="among those that were found: empty, invalid, wrong. Got loop"):
        build(samples, classes=("loop",))


def test_if_everything_passed_there_is_nothing_to_fix() -> None:
    with pytest.raises(WorkbenchError, match="Of 2 samples, every sample passed, so there is nothing to fix"):
        build([GOOD, BETTER])


def test_pairs_know_their_task() -> None:
    task = task_of()
    assert build([GOOD, bad("no", "wrong")], task=task).task is task


def test_with_a_gap_the_chosen_answer_is_better_and_of_similar_length() -> None:
    long, short, worse = ("a" * 90, 0.5), ("a" * 10, 0.52), ("a" * 80, 0.2)
    drawn = [Sample(text, True, value, "words", "") for text, value in (long, short, worse)]
    loop = Sample("b" * 200, False, 0.5, "loop", "")
    found = Found(task_of(0.5), ((ROW, (loop, *drawn)),), {})
    made = found.pairs(per_prompt=4, gap=0.2, use_reference=False)
    # The loop and the worst answer lose against the longer of the two best ones; those two differ by less than the gap.
    assert [(len(pair.rejected), len(pair.chosen)) for pair in made] == [(200, 90), (80, 90)]
    with pytest.raises(WorkbenchError, match="none of the 4 failed samples could be paired"):
        found.pairs(use_reference=False)
    only_unfinished = Found(task_of(0.5), ((ROW, (loop, replace(drawn[0], finished=False))),), {})
    with pytest.raises(WorkbenchError):
        only_unfinished.pairs(gap=0.0, use_reference=False)
