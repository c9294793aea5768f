"""Tasks refuse what would make a split dishonest, and data files name the line that is wrong."""

import json
from dataclasses import asdict

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.tasks.builtin import load_task, task_names
from dpo_workbench.tasks.examples import load_splits
from dpo_workbench.tasks.task import Example, Score, Split, Task


def example(number: int, group: str = "") -> Example:
    return Example(f"e{number}", f"prompt {number}", f"reference {number}", group or f"g{number}")


def passes(_: Example, answer: str) -> Score:
    return Score(1.0)


def test_group_on_two_sides_raises() -> None:
    with pytest.raises(WorkbenchError, match="group 'g'.*'train'.*'test'.*'e2'.*Move"):
        Task("t", {"train": [example(1, "g")], "test": [example(2, "g")]}, passes)
    Task("t", {"train": [example(1, "g"), example(2, "g")], "test": [example(3)]}, passes)  # negative control


@pytest.mark.parametrize("splits", [{"train": [1, 1]}, {"train": [1], "dev": [1]}])
def test_id_twice_raises(splits: dict[str, list[int]]) -> None:
    with pytest.raises(WorkbenchError, match="ids must differ.*'e1' twice"):
        Task("t", {name: [example(n, name) for n in numbers] for name, numbers in splits.items()}, passes)


def test_missing_or_empty_split_names_the_filled_ones() -> None:
    task = Task("t", {"train": [example(1)], "dev": []}, passes)
    assert len(task.train) == 1
    for name in ("dev", "test", "validation"):
        with pytest.raises(WorkbenchError, match=f"split '{name}'. It has train"):
            task.split(name)


def test_split_slices_and_indexes() -> None:
    task = Task("t", {"train": [example(n) for n in range(5)]}, passes)
    part = task.train[1:4]
    assert isinstance(part, Split) and part.name == "train" and part.task is task
    assert [e.id for e in part] == ["e1", "e2", "e3"] and part[-1].id == "e3"
    assert len(task.train[9:]) == 0 and len(task.train) == 5
    assert repr(part) == "Split(t/train: 3 examples in 3 groups)" and repr(task) == "Task(t: train 5)"


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_score_outside_0_to_1_raises(value: float) -> None:
    with pytest.raises(WorkbenchError, match="between 0 and 1"):
        Score(value)


def test_generic_failures_come_before_the_verifier() -> None:
    task = Task("t", {"train": [example(1)]}, passes)
    row = task.train[0]
    assert task.score(row, "fine").failure is None
    assert task.score(row, "   \n").failure == "empty" and task.score(row, " ").value == 0.0
    cut = task.score(row, "fine", finished=False)
    assert (cut.failure, cut.value) == ("truncated", 0.99)  # cut off is a failure, so never a full score
    assert task.score(row, "again and " * 40, finished=False).failure == "loop"
    assert task.score(row, row.prompt).failure == "echo"


def test_score_zero_without_a_class_is_called_wrong() -> None:
    task = Task("t", {"train": [example(1)]}, lambda e, a: Score(0.0 if "no" in a else 0.5))
    assert task.score(task.train[0], "no").failure == "wrong"
    assert task.score(task.train[0], "half").failure is None


def test_examples_are_read_with_any_line_ends(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("dpo_workbench.tasks.examples.data_folder", lambda: tmp_path)
    rows = [Example("a", "line\nline \u2028 \x85 é", "{}", "g", {"items": 3}), example(2)]
    text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_bytes(text.encode())
    assert load_splits("") == {"train": rows, "dev": rows, "test": rows}
    (tmp_path / "dev.jsonl").write_bytes(text.replace("\n", "\r\n").rstrip().encode())  # CRLF, no final newline
    assert load_splits("")["dev"] == rows


def test_builtin_tasks_load_and_unknown_ones_get_the_nearest_name() -> None:
    assert task_names() == ["briefs", "instructions", "long_answers", "python", "receipts", "science", "sql"]
    task = load_task("receipts")
    assert {name: len(rows) for name, rows in task.splits.items()} == {"train": 2480, "dev": 200, "test": 320}
    with pytest.raises(WorkbenchError, match="Got 'receipt'. Did you mean 'receipts'"):
        load_task("receipt")


def test_a_task_from_a_python_file(tmp_path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from dpo_workbench.tasks.task import Example, Score, Task\n"
        "rows = [Example(str(k), f'{k}?', str(k), str(k)) for k in range(3)]\n"
        "task = Task('mine', {'train': rows}, lambda e, a: Score(float(a == e.reference)))\n"
    )
    assert load_task(str(path)).name == "mine"
    for text, words in [
        ("task = 3", "must have `load"),
        ("1 / 0", "ZeroDivisionError"),
        ("def load(: pass", "SyntaxError"),
    ]:
        path.write_text(text)
        with pytest.raises(WorkbenchError, match=words):
            load_task(str(path))
    with pytest.raises(WorkbenchError, match="no file at"):
        load_task(str(tmp_path / "none.py"))
