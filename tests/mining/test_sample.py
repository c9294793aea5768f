"""`mine`: scored samples, bad input, and tasks that always or never pass."""

from collections import Counter

import pytest
import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.mining.branch import branch
from dpo_workbench.mining.sample import Found, Sample, mine
from dpo_workbench.models import generation
from dpo_workbench.models.generation import generate
from dpo_workbench.studies.study import common_failures, right_and_wrong
from dpo_workbench.tasks.task import Score, Task


def judged(task: Task, score) -> Task:
    return Task(task.name, {k: v.examples for k, v in task.splits.items()}, score, max_new_tokens=30)


def half(example, answer: str) -> Score:
    """An answer passes if its length is even: any model gets some right and some wrong."""
    return Score(1.0) if len(answer) % 2 == 0 else Score(0.25, "odd")


@pytest.fixture
def found(tiny, toy_task) -> Found:
    return mine(tiny, judged(toy_task, half).train, 4, seed=3, show=False)


def test_every_prompt_has_its_scored_samples(found, toy_task) -> None:
    assert [e.id for e, _ in found.rows] == [e.id for e in toy_task.train]
    assert all(len(samples) == 4 for _, samples in found.rows) and found.n_samples == 48
    for _, samples in found.rows:
        for s in samples:
            if s.finished and s.text.strip():
                assert (s.failure, s.value) == ((None, 1.0) if len(s.text) % 2 == 0 else ("odd", 0.25))
            else:
                assert s.failure in ("truncated", "loop", "empty")
    assert {None, "odd", "truncated"} <= {s.failure for _, samples in found.rows for s in samples}
    assert sum(found.failures.values()) == sum(s.failure is not None for _, x in found.rows for s in x)
    settings = {"samples": 4, "temperature": 1.0, "max_new_tokens": 30, "seed": 3, "split": "train"}
    assert found.settings == settings | {"greedy": False, "unscored": 0}
    assert "12 prompts, 48 samples" in repr(found)


def test_same_seed_same_samples(found, tiny, toy_task) -> None:
    split = judged(toy_task, half).train
    assert mine(tiny, split, 4, seed=3, show=False).rows == found.rows
    assert mine(tiny, split, 4, seed=4, show=False).rows != found.rows


def test_the_greedy_answer_comes_first_where_it_is_asked_for(found, tiny, toy_task) -> None:
    split = judged(toy_task, half).train
    both = mine(tiny, split, 4, seed=3, greedy=True, show=False)
    answers = generate(tiny, [e.prompt for e in split], max_new_tokens=30)
    assert [[s.text for s in samples if s.greedy] for _, samples in both.rows] == [[a.text] for (a,) in answers]
    assert [(e, samples[1:]) for e, samples in both.rows] == list(found.rows)
    failed = [samples[0].failure for _, samples in both.rows if samples[0].failure]
    assert both.greedy_failures == Counter(failed) and not found.greedy_failures
    assert both.settings == found.settings | {"greedy": True} and "the 12 greedy answers" in repr(both)


def test_common_failures_are_those_of_greedy_answers(toy_task) -> None:
    def drawn(*classes: str | None, greedy: bool) -> tuple[Sample, ...]:
        return tuple(Sample("a", True, float(c is None), c, "", greedy=greedy) for c in classes)

    example = toy_task.train[0]
    sampled = drawn("long", "long", "long", "copied", None, greedy=False)
    assert common_failures(Found(toy_task, ((example, sampled),), {})) == ("long", "copied")
    first = drawn("copied", "copied", "copied", "echo", "wrong", None, greedy=True)
    assert common_failures(Found(toy_task, ((example, first + sampled),), {})) == ("copied",)
    right = drawn(None, greedy=True)
    assert common_failures(Found(toy_task, ((example, right + sampled[:4]),), {})) == ("long", "copied")
    assert common_failures(Found(toy_task, ((example, right),), {})) == ()
    many = drawn("a", "b", "c", "d", "e", greedy=False)
    assert common_failures(Found(toy_task, ((example, many),), {})) == ("a",)


def test_prompts_with_a_right_and_a_wrong_answer_are_counted(toy_task) -> None:
    rows = [(None, "long"), (None, "copied"), ("long", "long"), ("long", None, "copied"), (None, None)]
    drawn = [tuple(Sample("a", True, float(c is None), c, "") for c in classes) for classes in rows]
    found = Found(toy_task, tuple(zip(toy_task.train, drawn, strict=False)), {})
    assert right_and_wrong(found, ("long",)) == 2 and right_and_wrong(found, ("long", "copied")) == 3


def test_headroom_and_pairs_follow_from_the_samples(found) -> None:
    head = found.headroom()
    assert head.n_prompts == 12 and head.samples == 4
    assert head.failed_share == pytest.approx(sum(found.failures.values()) / 48)
    pairs = found.pairs()
    assert pairs.task is found.task and len(pairs) <= 12 and len(found.pairs(per_prompt=3)) > len(pairs)
    own = [p for p in pairs if p.chosen_from == "own"]
    assert own and all(len(p.chosen) % 2 == 0 for p in own)


def test_samples_survive_the_disk(found, tmp_path) -> None:
    again = Found.load(found.save(tmp_path / "deep" / "mined.json"), found.task)
    assert again.rows == found.rows and again.settings == found.settings
    assert again.pairs().rows == found.pairs().rows


def test_found_of_another_task_or_no_file_is_named(found, tmp_path) -> None:
    path = found.save(tmp_path / "mined.json")
    with pytest.raises(WorkbenchError, match=r"other\.json"):
        Found.load(tmp_path / "other.json", found.task)
    examples = found.task.train[:3].examples
    with pytest.raises(WorkbenchError, match="'train-3'.*mined from task 'toy'"):
        Found.load(path, Task("small", {"train": examples}, half))
    path.write_text(path.read_text()[:200])
    with pytest.raises(WorkbenchError, match=r"mined\.json"):
        Found.load(path, found.task)


def test_test_split_is_refused(tiny, toy_task) -> None:
    for split in (toy_task.test, toy_task.test[:1]):
        with pytest.raises(WorkbenchError, match="must not touch the test split"):
            mine(tiny, split, 2, show=False)
    assert mine(tiny, toy_task.dev, 1, max_new_tokens=2, show=False).n_samples == 4  # negative control


def test_empty_split_is_refused(tiny, toy_task) -> None:
    with pytest.raises(WorkbenchError, match="Mining needs prompts. Got an empty split"):
        mine(tiny, toy_task.train[:0], 2, show=False)


def test_a_task_that_always_passes_leaves_nothing_to_fix(tiny, toy_task, monkeypatch) -> None:
    task = judged(toy_task, lambda e, a: Score(1.0))
    monkeypatch.setattr(task, "score", lambda e, a, finished=True: Score(1.0))
    found = mine(tiny, task.train, 2, show=False)
    assert found.headroom().advice == "nothing to fix" and not found.failures
    with pytest.raises(WorkbenchError, match="every sample passed, so there is nothing to fix"):
        found.pairs()


def test_a_task_that_never_passes_says_so(tiny, toy_task) -> None:
    found = mine(tiny, judged(toy_task, lambda e, a: Score(0.0, "wrong")).train, 2, show=False)
    assert found.headroom().advice == "train more first" and found.headroom().forecast == 0.0
    with pytest.raises(WorkbenchError, match="none of the 24 failed samples.*check that `score` can pass"):
        found.pairs()


def test_limit_is_the_tasks_unless_given(tiny, toy_task) -> None:
    assert mine(tiny, toy_task.train[:1], 1, show=False).settings["max_new_tokens"] == toy_task.max_new_tokens
    assert mine(tiny, toy_task.train[:1], 1, max_new_tokens=3, show=False).settings["max_new_tokens"] == 3


def test_samples_that_cannot_be_scored_are_counted_and_left_out(tiny, toy_task, capsys) -> None:
    def broken(example, answer: str) -> Score:
        if len(answer) % 3 == 0:
            raise KeyError("no such column")
        return Score(2.0) if len(answer) % 3 == 1 else half(example, answer)

    found = mine(tiny, judged(toy_task, broken).train, 4, seed=3, show=False)
    told = capsys.readouterr().out
    assert 0 < found.n_samples == 48 - found.settings["unscored"] < 48
    assert f"{found.settings['unscored']} of 48 samples could not be scored" in told and "Error" in told
    assert all(len(s.text) % 3 == 2 or not s.finished or not s.text.strip() for _, x in found.rows for s in x)


def test_a_score_that_always_raises_is_an_error(tiny, toy_task) -> None:
    def broken(example, answer: str) -> Score:
        raise ZeroDivisionError

    task = judged(toy_task, broken)
    task.score = lambda *a, **k: broken(*a[:2])  # the generic failures too
    with pytest.raises(WorkbenchError, match="Mining needs scores.*ZeroDivisionError"):
        mine(tiny, task.train, 2, show=False)


def test_out_of_memory_in_mining_halves_the_batch(moved, toy_task, monkeypatch, capsys) -> None:
    task, honest, failed = judged(toy_task, half), generation._decode, []

    def decode(network, ids, *rest):
        if len(ids) > 3:
            failed.append(len(ids))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return honest(network, ids, *rest)

    monkeypatch.setattr(generation, "_decode", decode)
    found = mine(moved, task.train[:4], 4, greedy=True, show=False)
    assert found.n_samples == 4 * 5 and len(failed) == 2 and "memory ran out" in capsys.readouterr().out
    classes = [name for name in found.failures if name != "empty"]
    n_failed = len(failed)
    assert len(branch(moved, found, classes, per_prompt=4, show=False).rows) == 4 and len(failed) > n_failed
