"""Tasks from a user's own rows: columns, templates, splits by group, and clear words for what is wrong."""

import json

import pytest

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.evaluation.run import judge
from dpo_workbench.models.generation import Answer
from dpo_workbench.tasks.task import Score, Task, with_all_splits

ROWS = [{"question": f"What is {k} + 1?", "answer": k + 1.0, "topic": f"t{k // 4}"} for k in range(40)]
COLUMNS = {"prompt": "question", "reference": "answer", "score": "number"}


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_file_becomes_a_task(tmp_path) -> None:
    task = Task.from_jsonl(write(tmp_path / "sums.jsonl", ROWS), **COLUMNS, group="topic")
    assert task.name == "sums" and {k: len(v) for k, v in task.splits.items()} == {"train": 20, "dev": 8, "test": 12}
    example = task.train[0]
    assert example.reference == str(int(example.extra["answer"])) and example.id.startswith("sums-")
    assert task.score(example, f"Answer: {example.reference}") == Score(
        1.0, None, task.score(example, example.reference).answer
    )
    again = Task.from_jsonl(ROWS[::-1], **COLUMNS, group="topic", name="sums")
    assert {e.prompt for e in again.test} == {e.prompt for e in task.test}


def test_templates_functions_and_given_splits(tmp_path) -> None:
    rows = [{**row, "split": ("train", "validation", "test")[k % 3], "refs": ["a", "b"]} for k, row in enumerate(ROWS)]
    task = Task.from_jsonl(
        rows, prompt="{topic}: {question}", reference="refs", score=lambda e, a: Score(float(a == e.reference)),
        split="split", id=lambda row: row["question"], label="topic", max_new_tokens=9,
    )  # fmt: skip
    assert list(task.splits) == ["train", "dev", "test"] and task.max_new_tokens == 9
    first = next(example for example in task.train if example.id == "What is 0 + 1?")
    assert (first.prompt, first.reference, first.label) == ("t0: What is 0 + 1?", "a", "t0")


@pytest.mark.parametrize("given", [{"split": "part"}, {}])
def test_the_first_rows_of_a_split_stand_for_a_sorted_file(given) -> None:
    rows = [{**row, "part": "test" if k % 2 else "train"} for k, row in enumerate(ROWS * 5)]
    rows = [
        {**row, "question": f"{row['question']} ({k})"} for k, row in enumerate(sorted(rows, key=lambda r: r["topic"]))
    ]
    task = Task.from_jsonl(rows, **COLUMNS, **given)
    topics = {row["topic"] for row in rows}
    assert len({e.extra["topic"] for e in task.train[:30]}) >= 8 and len(topics) == 10
    again = Task.from_jsonl(rows[::-1], **COLUMNS, **given)
    assert [e.prompt for e in again.test] == [e.prompt for e in task.test]
    other = Task.from_jsonl(rows, **COLUMNS, **given, seed=1)
    assert [e.prompt for e in other.train] != [e.prompt for e in task.train]


def test_splits_in_files_of_their_own(tmp_path) -> None:
    files = {"train": write(tmp_path / "a.jsonl", ROWS[:30]), "test": write(tmp_path / "b.jsonl", ROWS[30:])}
    task = Task.from_jsonl(files, **COLUMNS)
    assert (len(task.train), len(task.test)) == (30, 10)
    with pytest.raises(WorkbenchError, match="on_leak"):
        Task.from_jsonl({"train": ROWS, "test": ROWS[:3]}, **COLUMNS)


@pytest.mark.parametrize("missing", (("dev",), ("test",), ("dev", "test")))
def test_missing_splits_are_cut_from_train_by_group(missing, capsys) -> None:
    whole = Task.from_jsonl(ROWS * 3, **COLUMNS, group="topic")
    given = whole.with_splits({name: rows for name, rows in whole.splits.items() if name not in missing})
    task = with_all_splits(given)  # a group in two splits would raise
    assert sum(map(len, task.splits.values())) == sum(map(len, given.splits.values()))
    assert all(len(task.splits[name]) >= 12 for name in ("train", "dev", "test"))
    told = capsys.readouterr().out
    assert all(f"for {name}" in told for name in missing)
    assert with_all_splits(task) is task and with_all_splits(whole) is whole
    with pytest.raises(WorkbenchError, match="split 'train'"):
        with_all_splits(whole.with_splits({"test": whole.test}))


def test_leaks_can_be_dropped(capsys) -> None:
    rows = {"train": ROWS[:9], "test": [{**row, "answer": 0} for row in ROWS[5:12]]}
    task = Task.from_jsonl(rows, **COLUMNS, on_leak="drop", id=lambda row: f"{row['question']} {row['answer']}")
    assert (len(task.train), len(task.test)) == (5, 7)
    assert "4 of 9 from train" in capsys.readouterr().out


def test_a_hub_set(monkeypatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: asked.append((a, k["split"])) or iter(ROWS))
    task = Task.from_jsonl("hub:owner/sums@main/test", **COLUMNS)
    assert asked == [(("owner/sums", "main"), "test")] and task.name == "sums" and len(task.train) == 24


@pytest.mark.parametrize(
    ("rows", "change", "words"),
    [
        (ROWS, {"prompt": "qestion"}, "Did you mean 'question'"),
        (ROWS, {"prompt": "{question} {hint}"}, "column 'hint'"),
        (ROWS, {"reference": "answr"}, "Did you mean 'answer'"),
        (ROWS, {"prompt": 'As {"id": 1}: {question}'}, "Double each brace"),
        (ROWS, {"prompt": "As {'id': {}}: {question}"}, "Double each brace"),
        (ROWS, {"prompt": "As {}: {question}"}, "Double each brace"),
        (ROWS, {"prompt": "As {: {question}"}, "Double each brace"),
        (ROWS, {"prompt": "} {question}"}, "Double each brace"),
        ([*ROWS, {"question": "x"}], {}, "column 'answer'.*:41"),
        ([*ROWS, {"question": " ", "answer": 1}], {}, "prompt with text.*:41"),
        ([*ROWS, {"question": "x", "answer": None}], {}, "reference with text.*:41"),
        ([*ROWS, 3], {}, "must have columns.*:41"),
        (ROWS, {"score": "numbr"}, "must be a function or one of"),
        (ROWS, {"prompt": lambda row: row["x"]}, "KeyError"),
        (ROWS[:2], {}, "3 splits need as many groups"),
        ([], {}, "must have rows"),
        (ROWS, {"id": lambda row: "same"}, "ids must differ"),
        ([{**row, "split": ""} for row in ROWS], {"split": "split"}, "split with text"),
    ],
)
def test_what_is_wrong_is_said(rows, change, words: str) -> None:
    with pytest.raises(WorkbenchError, match=words):
        Task.from_jsonl(rows, **{**COLUMNS, **change})


def test_doubled_braces_are_text() -> None:
    task = Task.from_jsonl(ROWS, **{**COLUMNS, "prompt": 'As {{"id": 1}}: {question}'})
    assert task.train[0].prompt.startswith('As {"id": 1}: What is')


def test_a_bare_number_is_a_score() -> None:
    task = Task.from_jsonl(ROWS, **{**COLUMNS, "score": lambda example, answer: example.reference == answer})
    example = task.train[0]
    assert task.score(example, example.reference) == Score(1.0)
    assert task.score(example, "none") == Score(0.0, "wrong")


def test_rows_of_an_array_in_one_line_have_ids_of_their_own(tmp_path) -> None:
    path = tmp_path / "sums.json"
    path.write_text(json.dumps(ROWS))
    task = Task.from_jsonl(path, **COLUMNS)
    assert sorted(e.id for rows in task.splits.values() for e in rows) == sorted(f"sums-{k}" for k in range(1, 41))


def test_a_broken_line_names_file_and_line(tmp_path) -> None:
    path = tmp_path / "a.jsonl"
    write(path, ROWS)
    path.write_text(path.read_text() + "{broken\n")
    with pytest.raises(WorkbenchError, match=r"a\.jsonl:41"):
        Task.from_jsonl(path, **COLUMNS)
    with pytest.raises(WorkbenchError, match="file that can be read"):
        Task.from_jsonl(tmp_path / "none.jsonl", **COLUMNS)


@pytest.mark.parametrize("value", [2.0, -0.1, float("nan"), "raise", None, "right"])
@pytest.mark.parametrize("bare", [True, False])
def test_a_score_that_is_none_leaves_the_answer_unscored(value, bare) -> None:
    def score(example, answer):
        if value == "raise":
            raise KeyError("x")
        return Score(value) if isinstance(value, float) and not bare else value

    task = Task.from_jsonl(ROWS, **{**COLUMNS, "score": score})
    row = judge(task, task.test[0], Answer("1", 1, True))
    assert row.value is None and row.failure is None and "not scored" in row.explanation
