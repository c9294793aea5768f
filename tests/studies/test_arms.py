"""Every arm on nano, small; resumed without running again; a hole where an arm fails."""

import json
from dataclasses import replace

import pytest

import dpo_workbench as dw
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.studies import arms as module
from dpo_workbench.studies.arms import ARMS
from dpo_workbench.studies.compare import compare
from dpo_workbench.studies.recipe import recipe_for

SMALL = replace(recipe_for("nano", "science"), test_prompts=12, mine_prompts=16, max_pairs=8, probe_prompts=4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare") / "one"
    return compare("science", recipe=SMALL, split="dev", folder=folder, show=False)


def test_every_arm_answers_the_same_prompts_and_costs_something(finished):
    assert tuple(finished.arms) == tuple(ARMS) and not finished.holes
    assert len({tuple(row.id for row in arm.rows) for arm in finished.arms.values()}) == 1
    names = ("sft+dpo", "sft+sft on chosen", "sft, reward best of 4")
    trained = [finished.costs[name] for name in names]
    assert len({cost.steps for cost in trained}) == 1 and all(cost.train_seconds > 0 for cost in trained)
    assert finished.costs["sft"].steps == 0 and finished.costs["sft"].train_seconds == 0
    assert all(cost.answer_seconds >= 0 for cost in finished.costs.values())
    assert [name for name, cost in finished.costs.items() if cost.sampled_tokens] == ["sft, reward best of 4"]
    text = str(finished)
    assert all(name in text for name in ARMS) and "can detect differences of about" in text


def test_the_results_trace_to_the_file(finished):
    results = json.loads((finished.folder / "results.json").read_text(encoding="utf-8"))
    for row, (name, arm) in zip(results["comparison"], finished.arms.items(), strict=True):
        assert row["arm"] == name and row["failed"] == arm.n_failed
    assert (finished.folder / "report.html").stat().st_size < 3_000_000
    assert finished.verdict().outcome == results["verdict"]["outcome"]
    display = finished.plot()
    assert len(display.rows) == len(ARMS) - 1 and "Compared with sft" in str(display)


def test_a_finished_arm_is_not_run_again(finished, monkeypatch):
    for name in ARMS:
        monkeypatch.setitem(module.ARMS, name, lambda study, cost: pytest.fail("an arm ran again"))
    again = compare("science", recipe=SMALL, split="dev", folder=finished.folder, show=False)
    assert again.rows() == finished.rows() and again.costs == finished.costs


@pytest.mark.slow
def test_an_arm_that_fails_leaves_a_hole(finished, tmp_path, monkeypatch):
    def broken(study, cost):
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setitem(module.ARMS, "sft+sft on chosen", broken)
    some = ("sft", "sft+sft on chosen", "sft, repetition penalty")
    done = compare("science", some, recipe=SMALL, split="dev", folder=tmp_path / "holes", show=False)
    assert done.holes == {"sft+sft on chosen": "out of luck"} and set(done.arms) == {"sft", "sft, repetition penalty"}
    assert "sft+sft on chosen: no result (out of luck)" in str(done)
    with pytest.raises(WorkbenchError, match="no answers"):
        done.verdict("sft+sft on chosen")


def test_unknown_arms_are_named(tmp_path):
    with pytest.raises(WorkbenchError, match="sft\\+magic"):
        compare("science", ["sft", "sft+magic"], folder=tmp_path)
    with pytest.raises(WorkbenchError, match="Got none"):
        compare("science", [], folder=tmp_path)


@pytest.mark.slow
def test_other_pairs_are_another_run(finished, tmp_path):
    pairs = dw.Pairs.load(finished.folder / "pairs.jsonl")
    given = {"recipe": SMALL, "split": "dev", "folder": tmp_path / "own", "show": False}
    compare("science", ["sft"], pairs=pairs[:4], **given)
    with pytest.raises(WorkbenchError, match="other settings"):
        compare("science", ["sft"], pairs=pairs[1:5], **given)
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert "What each arm cost" in page and "Change of the score compared with sft" in page


def test_without_the_baseline_nothing_is_compared(finished):
    alone = dw.Comparison({"base": finished.arms["base"]}, {}, {"sft": "broke"})
    with pytest.raises(WorkbenchError, match="broke"):
        alone.rows()


def test_the_same_arms_from_the_shell(finished, run, tmp_path):
    code, out, err = run("report", str(finished.folder), str(finished.folder), "--out", str(tmp_path / "page"))
    assert code == 0 and "cannot tell" in out and (tmp_path / "page" / "report.html").is_file(), err
    file = finished.folder / "evaluations" / "base.json"
    code, out, err = run("report", str(finished.folder), str(file))
    assert code == 0 and "Any failure" in out
    code, out, err = run("report", str(finished.folder), str(tmp_path))
    assert code == 1 and "evaluation must be a whole file" in err


def test_runs_with_other_prompts_are_not_compared(finished, run, tmp_path):
    other = replace(finished.arms["sft"], rows=finished.arms["sft"].rows[:6])
    other.save(tmp_path / "other.json")
    code, _, err = run("report", str(finished.folder), str(tmp_path / "other.json"))
    assert code == 1 and "same prompts" in err
