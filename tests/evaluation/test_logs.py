"""Answers of other trainers: JSONL, logs that lm-eval and inspect_ai wrote, and files that are none of these."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dpo_workbench as dw

DATA = Path(__file__).parent / "data"


def jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# --- JSONL ----------------------------------------------------------------------------------------------------------


def test_scores_of_0_and_1_count_failures(tmp_path) -> None:
    rows = [{"prompt": f"q{k}", "answer": f"a{k}", "score": int(k > 2)} for k in range(10)]
    found = dw.Evaluation.from_jsonl(jsonl(tmp_path / "mine.jsonl", rows))
    assert (found.name, found.n, found.n_failed, found.mean_score) == ("mine", 10, 3, 0.7)
    assert found.failures == {"wrong": 3}
    rows[0]["score"] = 0.5  # a grade: nothing says which grades are failures
    assert dw.Evaluation.from_jsonl(jsonl(tmp_path / "mine.jsonl", rows)).failures == {}


def test_all_fields_are_read(tmp_path) -> None:
    row = {"prompt": "q", "answer": "a", "score": 0.25, "failure": "late", "group": "g", "id": 7, "n_tokens": 3,
           "finished": False, "explanation": "too late"}  # fmt: skip
    (found,) = dw.Evaluation.from_jsonl(jsonl(tmp_path / "f.jsonl", [row])).rows
    assert (found.id, found.group, found.value, found.failure, found.n_tokens) == ("7", "g", 0.25, "late", 3)
    assert (found.finished, found.explanation) == (False, "too late")


def test_a_failure_without_a_score_is_one(tmp_path) -> None:
    rows = [{"prompt": "q", "answer": "a", "failure": "rude"}, {"prompt": "r", "answer": "b", "failure": None}]
    found = dw.Evaluation.from_jsonl(jsonl(tmp_path / "f.jsonl", rows))
    assert [row.value for row in found.rows] == [0.0, 1.0] and found.failures == {"rude": 1}


def test_rows_are_matched_by_prompt_whatever_their_order(tmp_path) -> None:
    prompts = ["q1", "q2", "q1", "q3"]
    one = dw.Evaluation.from_jsonl(jsonl(tmp_path / "a", [{"prompt": p, "answer": "x", "score": 0} for p in prompts]))
    two = [{"prompt": p, "answer": "y", "score": 1} for p in reversed(prompts)]
    other = dw.Evaluation.from_jsonl(jsonl(tmp_path / "b", two))
    assert {row.id: row.prompt for row in one.rows} == {row.id: row.prompt for row in other.rows}
    assert len({row.id for row in one.rows}) == 4 and len({row.group for row in one.rows}) == 3
    assert dw.verdict(one, other).numbers


def test_answers_without_scores_can_be_judged_but_not_compared(tmp_path) -> None:
    file = jsonl(tmp_path / "f.jsonl", [{"prompt": "q", "answer": "a"}])
    found = dw.Evaluation.from_jsonl(file)
    assert found.n == 0 and "1 answers without scores" in repr(found)
    with pytest.raises(dw.WorkbenchError, match="scored"):
        dw.verdict(found, found)


def test_all_bad_rows_are_counted(tmp_path) -> None:
    rows = [{"prompt": "q", "answer": "a", "score": math.nan}, {"prompt": "q"}, {"answer": "a"}, {"prompt": "q"}, 3,
            {"prompt": "q", "answer": "a", "score": 37.5}, {"prompt": "q", "answer": "a", "failure": 1}]  # fmt: skip
    with pytest.raises(dw.WorkbenchError) as error:
        dw.Evaluation.from_jsonl(jsonl(tmp_path / "f.jsonl", rows))
    for said in ("`score` of nan (1 rows, the first: 1)", "`answer` is missing (2 rows, the first: 2)", "37.5",
                 "`prompt` is missing (1 rows, the first: 3)", "no object", "`failure` is no text"):  # fmt: skip
        assert said in str(error.value)


@pytest.mark.parametrize("text", ["", "\n", "not json\n", '{"prompt": "q", "ans'])
def test_a_file_that_holds_no_rows(tmp_path, text) -> None:
    (tmp_path / "f.jsonl").write_text(text)
    with pytest.raises(dw.WorkbenchError, match=r"f\.jsonl"):
        dw.Evaluation.from_jsonl(tmp_path / "f.jsonl")
    with pytest.raises(dw.WorkbenchError, match=r"f\.jsonl"):
        dw.read_evaluation(tmp_path / "f.jsonl")


def test_our_own_files_are_read_too(tmp_path) -> None:
    rows = [{"prompt": f"q{k}", "answer": "a", "score": 1} for k in range(3)]
    made = dw.Evaluation.from_jsonl(jsonl(tmp_path / "f.jsonl", rows))
    assert dw.read_evaluation(made.save(tmp_path / "own.json")) == made
    run = tmp_path / "run"
    made.save(run / "evaluations" / "sft+dpo.json")
    assert dw.read_evaluation(run).rows == made.rows and dw.read_evaluation(run).name == "run: f"
    with pytest.raises(dw.WorkbenchError, match="metric"):
        dw.read_evaluation(tmp_path / "f.jsonl", metric="acc")
