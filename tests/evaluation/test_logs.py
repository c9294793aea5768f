"""Answers of other trainers: JSONL, logs that lm-eval and inspect_ai wrote, and files that are none of these."""

from __future__ import annotations

import json
import math
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
           "explanation": "too late"}  # fmt: skip
    (found,) = dw.Evaluation.from_jsonl(jsonl(tmp_path / "f.jsonl", [row])).rows
    assert (found.id, found.group, found.value, found.failure, found.n_tokens) == ("7", "g", 0.25, "late", 3)
    assert found.explanation == "too late"


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
    for said in ("`score` of nan (1 rows, the first: 1)", "as `prompt` or `answer` (4 rows, the first: 2)", "37.5",
                 "`failure` that is no text"):  # fmt: skip
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


# --- logs of other packages -----------------------------------------------------------------------------------------

CHOICE = next((DATA / "lm_eval-0.4.13").glob("samples_capitals_choice_*"))
WORDS = next((DATA / "lm_eval-0.4.13").glob("samples_capitals_2*"))
INSPECT = {name: DATA / f"inspect_ai-0.3.285-{name}" for name in ("before.eval", "after.eval", "before.json")}
INSPECT["epochs"] = DATA / "inspect_ai-0.3.285-after.json"


def test_lm_eval_choices() -> None:
    found = dw.read_evaluation(CHOICE, metric="acc")
    assert (found.name, found.task, found.n) == ("lm_eval-0.4.13", "capitals_choice (acc,none)", 4)
    assert [row.answer for row in found.rows] == [" Paris", " Rome", " Tokyo", " Nairobi"]
    assert found.mean_score == 1.0 and found.rows[0].prompt == "What is the capital of France?"
    assert dw.read_evaluation(CHOICE, metric="acc_norm,none").task == "capitals_choice (acc_norm,none)"


def test_lm_eval_generations_with_two_filters() -> None:
    found = dw.read_evaluation(WORDS, metric="exact_match,whole")
    raw = [json.loads(line) for line in WORDS.read_text().splitlines()]
    assert [row.answer for row in found.rows] == [s["filtered_resps"][0] for s in raw if s["filter"] == "whole"]
    assert [row.value for row in found.rows] == [s["exact_match"] for s in raw if s["filter"] == "whole"]
    other = dw.read_evaluation(WORDS, metric="exact_match,last-word")
    assert other.n == 4 and other.task != found.task


@pytest.mark.parametrize("metric", [None, "acc", "exact_match"])
def test_several_metrics_are_listed(metric) -> None:
    with pytest.raises(dw.WorkbenchError, match="exact_match,last-word; exact_match,whole"):
        dw.read_evaluation(WORDS, metric=metric)


def test_inspect_logs_zipped_or_not() -> None:
    zipped, plain = (dw.read_evaluation(INSPECT[name], metric="includes") for name in ("before.eval", "before.json"))
    assert zipped == plain
    assert [row.answer for row in plain.rows] == ["Paris", "It is Milan.", "Tokyo", "Lima"]
    assert [row.value for row in plain.rows] == [1, 0, 1, 0] and plain.failures == {"wrong": 2}
    assert (plain.name, plain.task, plain.rows[0].n_tokens) == ("mockllm/model", "capitals (includes)", 2)
    after = dw.read_evaluation(INSPECT["after.eval"], metric="includes")
    decided = dw.verdict(plain, after)
    assert (after.n_failed, plain.n_failed) == (1, 2) and "Cannot tell" in str(decided)
    assert dw.read_evaluation(INSPECT["after.eval"], metric="exact").failures == {"wrong": 2}


def test_inspect_epochs_are_one_group() -> None:
    found = dw.read_evaluation(INSPECT["epochs"], metric="includes")
    assert (found.n, len({row.group for row in found.rows})) == (8, 4)
    assert {row.id for row in found.rows} == {f"c{k}/{epoch}" for k in range(4) for epoch in (1, 2)}
    with pytest.raises(dw.WorkbenchError, match="same prompts"):
        dw.verdict(dw.read_evaluation(INSPECT["before.json"], metric="includes"), found)


def test_an_inspect_sample_with_an_error_is_a_hole(tmp_path) -> None:
    log = json.loads(INSPECT["before.json"].read_text())
    log["samples"][1] |= {"scores": {}, "error": {"message": "timeout"}, "output": {"choices": []}}
    log["samples"][2]["input"] = [{"role": "system", "content": "Be short."},
                                  {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]  # fmt: skip
    (tmp_path / "l.json").write_text(json.dumps(log))
    found = dw.read_evaluation(tmp_path / "l.json", metric="includes")
    assert (found.n, found.n_unscored, found.rows[1].explanation) == (3, 1, "timeout")
    assert found.rows[2].prompt == "system: Be short.\n\nuser: Hi"


def changed(path: Path, to: Path, change) -> Path:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)
    return jsonl(to / path.name, rows)


@pytest.mark.parametrize("field", ["metrics", "arguments", "filtered_resps", "filter", "doc_id"])
def test_an_lm_eval_log_of_another_version(tmp_path, field) -> None:
    with pytest.raises(dw.WorkbenchError, match=f"lm-eval 0.4.13.*KeyError: '{field}'"):
        dw.read_evaluation(changed(CHOICE, tmp_path, lambda row: row.pop(field)), metric="acc")


def test_scores_outside_0_to_1_and_holes_of_lm_eval(tmp_path) -> None:
    for value in (37.5, math.nan):
        with pytest.raises(dw.WorkbenchError, match="4 rows"):
            dw.read_evaluation(changed(CHOICE, tmp_path, lambda row, v=value: row.update(acc=v)), metric="acc")
    hole = changed(CHOICE, tmp_path, lambda row: row["doc_id"] == 2 and row.pop("acc"))
    found = dw.read_evaluation(hole, metric="acc")
    assert (found.n, found.n_unscored, found.rows[2].explanation) == (3, 1, "the log has no acc")


def test_damaged_and_other_inspect_logs(tmp_path) -> None:
    log = json.loads(INSPECT["before.json"].read_text())
    (tmp_path / "l.json").write_text(json.dumps(log | {"version": 1}))
    with pytest.raises(dw.WorkbenchError, match="only format 2"):
        dw.read_evaluation(tmp_path / "l.json", metric="includes")
    (tmp_path / "cut.eval").write_bytes(INSPECT["before.eval"].read_bytes()[:900])
    with pytest.raises(dw.WorkbenchError, match=r"cut\.eval"):
        dw.read_evaluation(tmp_path / "cut.eval")
    with zipfile.ZipFile(tmp_path / "none.eval", "w") as archive:
        archive.writestr("header.json", "{}")
    with pytest.raises(dw.WorkbenchError, match=r"none\.eval"):
        dw.read_evaluation(tmp_path / "none.eval")
    with pytest.raises(dw.WorkbenchError, match="nowhere"):
        dw.read_evaluation(tmp_path / "nowhere.json")


def test_the_command_compares_logs(monkeypatch, capsys) -> None:
    from dpo_workbench import cli

    files = [str(INSPECT["before.eval"]), str(INSPECT["after.eval"])]
    monkeypatch.setattr("sys.argv", ["dpo-workbench", "compare", *files, "--metric", "includes"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    told = capsys.readouterr().out
    assert stop.value.code == 0 and "mockllm/model (A)" in told and "cannot tell" in told.lower()
