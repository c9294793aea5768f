"""`evaluate` with answers from a fake model: counts, unscored rows, saving, showing."""

import math

import pytest
import torch

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.run import Evaluation, Judged, evaluate, judge
from dpo_workbench.models import generation, server
from dpo_workbench.models.generation import Answer
from dpo_workbench.tasks.task import Example, Score, Task


class FakeModel:
    name, adapter = "fake", "adapter1"


def score(example: Example, answer: str) -> Score:
    if "boom" in answer:
        raise RuntimeError("verifier broke")
    if "stop" in answer:
        raise KeyboardInterrupt
    if "none" in answer:
        return None
    right = answer == example.reference
    return Score(1.0, None, answer, "right") if right else Score(0.25, "wrong_value", answer, "no")


def task_with(n: int = 8) -> Task:
    return Task("toy", {"test": [Example(f"e{i}", f"p{i}", f"a{i}", f"g{i}") for i in range(n)]}, score, "", 17)


@pytest.fixture
def answers(monkeypatch):
    """Sets the texts that the fake model gives; returns the arguments that `generate` was called with."""
    seen = {}

    def set_texts(texts: list[str], finished: list[bool] | None = None) -> dict:
        done = finished or [True] * len(texts)

        def generate(model, prompts, **kwargs):
            seen.update(kwargs, prompts=prompts)
            kwargs["on_answers"](len(prompts))
            return [[Answer(text, 5, end)] for text, end in zip(texts, done, strict=True)]

        monkeypatch.setattr(server, "generate", generate)
        return seen

    return set_texts


def test_counts_classes_and_means(answers, capsys):
    seen = answers(["a0", "a1", "x", "x", "", "a5", "x", "a7"], [True] * 6 + [False, True])
    result = evaluate(FakeModel(), task_with().test, show=False)
    assert (result.n, result.n_failed, result.n_unscored) == (8, 4, 0)
    assert list(result.failures.items()) == [("wrong_value", 2), ("empty", 1), ("truncated", 1)]
    assert (
        result.failed_share == 0.5
        and result.interval("empty").estimate == 0.125
        and result.interval("loop").estimate == 0
    )
    assert result.mean_score == pytest.approx((4 + 3 * 0.25) / 8)
    assert seen["max_new_tokens"] == 17 and seen["temperature"] == 0.0 and seen["prompts"][3] == "p3"
    assert (result.name, result.task, result.split) == ("fake+adapter", "toy", "test")
    assert capsys.readouterr() == ("", "")


def test_settings_reach_the_model_and_the_result(answers):
    seen = answers(["a0"])
    result = evaluate(
        FakeModel(), task_with(1).test, name="warm", temperature=0.7, max_new_tokens=3, seed=9, show=False
    )
    want = {"temperature": 0.7, "max_new_tokens": 3, "seed": 9, "repetition_penalty": 1.0}
    assert result.decoding == want and want.items() <= seen.items()
    assert result.name == "warm"


def test_what_cannot_be_scored_is_neither_right_nor_wrong(answers, capsys):
    answers(["a0", "boom", "none", "x"])
    result = evaluate(FakeModel(), task_with(4).test)
    assert (result.n, result.n_unscored, result.n_failed) == (2, 2, 1)
    assert result.failed_share == 0.5 and result.mean_score == pytest.approx(0.625)
    assert result.rows[1].value is None and result.rows[1].failure is None
    assert "RuntimeError: verifier broke" in result.rows[1].explanation
    assert "2 of 4 answers could not be scored; the first is 'e1'" in capsys.readouterr().out
    assert "2 could not be scored" in str(result)


def test_an_interrupt_is_no_failure_of_the_verifier():
    task = task_with(1)
    with pytest.raises(KeyboardInterrupt):
        judge(task, task.test[0], Answer("stop", 1, True))


def test_nothing_scored_raises(answers):
    answers(["boom"])
    with pytest.raises(WorkbenchError, match="none scored .*verifier broke"):
        evaluate(FakeModel(), task_with(1).test, show=False)


@pytest.mark.parametrize("split", [[], task_with().test[:0], task_with()])
def test_a_split_with_examples_is_needed(split):
    with pytest.raises(WorkbenchError, match="needs a split with examples"):
        evaluate(FakeModel(), split, show=False)


def evaluation() -> Evaluation:
    rows = (
        Judged("a", "g", "pröömpt \ud800\u2028", "<b>x</b>", 3, True, 1.0, None, ""),
        Judged("b", "g", "p", "y", 9, False, 0.5, "<i>", "why"),
        Judged("c", "h", "q", "z", 9, True, None, None, "not scored"),
    )
    return Evaluation("arm", "toy", "test", "fake", {"temperature": 0.0}, rows)


def test_saved_and_loaded_is_the_same(tmp_path):
    path = evaluation().save(tmp_path / "deep" / "arm.jsonl")
    assert Evaluation.load(path) == evaluation()


@pytest.mark.parametrize("damage", ["cut in a row", "a row is missing", "empty", "a list"])
def test_a_damaged_file_is_refused(tmp_path, damage):
    path = evaluation().save(tmp_path / "arm.jsonl")
    whole = path.read_bytes()
    less = b"\n".join(whole.split(b"\n")[:-2])
    path.write_bytes({"cut in a row": whole[:-20], "a row is missing": less, "empty": b"", "a list": b"[]"}[damage])
    with pytest.raises(WorkbenchError, match="must be a whole file"):
        Evaluation.load(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(WorkbenchError, match="must be a whole file"):
        Evaluation.load(tmp_path / "no.jsonl")


def test_shown_as_text():
    text = str(evaluation())
    assert "any failure" in text and "50.0 %" in text and "can detect differences of about 100 points or more" in text


def test_the_summary_counts():
    summary = evaluation().summary()
    assert summary["n_failed"] == 1 and math.isclose(summary["failed_share"], 0.5)


def test_out_of_memory_in_an_evaluation_changes_no_answer(moved, toy_task, monkeypatch, capsys) -> None:
    want, honest, failed = evaluate(moved, toy_task.test, show=False), generation._decode, []

    def decode(network, ids, *rest):
        if len(ids) > 1:
            failed.append(len(ids))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return honest(network, ids, *rest)

    monkeypatch.setattr(generation, "_decode", decode)
    assert evaluate(moved, toy_task.test, show=False).rows == want.rows
    assert failed == [4, 2] and "memory ran out" in capsys.readouterr().out
