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
    names = ("DPO", "DPO+NLL", "control", "reward best of 4")
    trained = [finished.costs[name] for name in names]
    assert len({cost.steps for cost in trained}) == 1 and all(cost.train_seconds > 0 for cost in trained)
    assert finished.costs["start"].steps == 0 and finished.costs["start"].train_seconds == 0
    assert all(cost.answer_seconds >= 0 for cost in finished.costs.values())
    assert [name for name, cost in finished.costs.items() if cost.sampled_tokens] == [
        "finished of 4",
        "reward best of 4",
    ]
    text = str(finished)
    assert all(name in text for name in ARMS) and "can detect differences of about" in text


def test_the_results_trace_to_the_file(finished):
    results = json.loads((finished.folder / "results.json").read_text(encoding="utf-8"))
    for row, (name, arm) in zip(results["comparison"], finished.arms.items(), strict=True):
        assert row["arm"] == name and row["failed"] == arm.n_failed
    assert (finished.folder / "report.html").stat().st_size < 3_000_000
    assert finished.verdict().outcome == results["verdict"]["outcome"]
    assert {row.sides for row in finished.plot().rows} == {"DPO minus start", "DPO minus control"}


def test_a_finished_arm_is_not_run_again(finished, monkeypatch):
    for name in ARMS:
        monkeypatch.setitem(module.ARMS, name, lambda study, cost: pytest.fail("an arm ran again"))
    again = compare("science", recipe=SMALL, split="dev", folder=finished.folder, show=False)
    assert again.rows() == finished.rows() and again.costs == finished.costs


@pytest.mark.slow
def test_an_arm_that_fails_leaves_a_hole(finished, tmp_path, monkeypatch):
    def broken(study, cost):
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setitem(module.ARMS, "control", broken)
    some = ("start", "control", "repetition penalty")
    done = compare("science", some, recipe=SMALL, split="dev", folder=tmp_path / "holes", show=False)
    assert done.holes == {"control": "out of luck"} and set(done.arms) == {"start", "repetition penalty"}
    assert "control: no result (out of luck)" in str(done)
    with pytest.raises(WorkbenchError, match="no answers"):
        done.verdict("control")


def test_each_trained_arm_chooses_one_of_three_learning_rates_on_dev(finished):
    for stage, rates in {
        "dpo": (1e-4, 3e-4, 9e-4),
        "dpo+nll": (1e-4, 3e-4, 9e-4),
        "control": (3e-4, 7.7e-4, 2e-3),  # from the rate of DPO to that of fine-tuning
    }.items():
        note = json.loads((finished.folder / "tuning" / f"{stage}.json").read_text(encoding="utf-8"))
        tried = {float(lr): score for lr, score in note["dev_scores"].items()}
        assert tuple(tried) == pytest.approx(rates)
        assert note["chosen"] == next(lr for lr, score in tried.items() if score == max(tried.values()))
        training = json.loads((finished.folder / stage / "training.json").read_text(encoding="utf-8"))
        assert max(probe["score"] for probe in training["probes"]) == max(tried.values())  # that run was kept
    results = json.loads((finished.folder / "results.json").read_text(encoding="utf-8"))
    assert set(results["tuning"]) == {"dpo", "dpo+nll", "control", "repetition_penalty", "no_repeat_ngram"}


def test_plain_dpo_and_dpo_with_nll_are_separate_arms(finished):
    weights = {
        stage: json.loads((finished.folder / stage / "run.json").read_text(encoding="utf-8"))["config"]["nll_weight"]
        for stage in ("dpo", "dpo+nll")
    }
    assert weights == {"dpo": 0.0, "dpo+nll": 1.0}


@pytest.mark.slow
def test_each_seed_has_a_start_of_its_own(tmp_path):
    recipe = replace(SMALL, target=(), sft_prompts=16, sft=replace(SMALL.sft, epochs=1))
    given = {"recipe": recipe, "split": "dev", "folder": tmp_path / "seeds", "show": False}
    done = compare("science", ["base", "start", "DPO", "control"], seeds=(0, 1), **given)
    assert len(done.runs) == 2 and done.runs[0]["base"].rows == done.runs[1]["base"].rows
    first, second = ([row.answer for row in run["start"].rows] for run in done.runs)
    assert first != second and (tmp_path / "seeds" / "seed-1" / "sft" / "adapter").is_dir()
    notes = [(folder / "tuning" / "dpo.json").read_text() for folder in (done.folder, done.folder / "seed-1")]
    assert notes[0] == notes[1]
    got = done.verdict()
    assert got.numbers["n_seeds"] == 2 and "means over 2 seeds" in " ".join(got.details)
    start = next(row for row in done.rows() if row["arm"] == "start")
    assert start["failed"] == sum(run["start"].n_failed for run in done.runs) / 2
    results = json.loads((done.folder / "results.json").read_text(encoding="utf-8"))
    assert len(results["other_seeds"]) == 1 and results["command"].endswith("--seed 0 --seed 1")


def test_seeds_must_differ(tmp_path):
    for seeds in ((), (1, 1)):
        with pytest.raises(WorkbenchError, match="all different"):
            compare("science", ["start"], seeds=seeds, folder=tmp_path)


def test_unknown_arms_are_named(tmp_path):
    with pytest.raises(WorkbenchError, match="magic"):
        compare("science", ["start", "magic"], folder=tmp_path)
    with pytest.raises(WorkbenchError, match="Got none"):
        compare("science", [], folder=tmp_path)


@pytest.mark.slow
def test_other_pairs_are_another_run(finished, tmp_path):
    pairs = dw.Pairs.load(finished.folder / "pairs.jsonl")
    given = {"recipe": SMALL, "split": "dev", "folder": tmp_path / "own", "show": False}
    compare("science", ["start"], pairs=pairs[:4], **given)
    with pytest.raises(WorkbenchError, match="other settings"):
        compare("science", ["start"], pairs=pairs[1:5], **given)
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert "What each arm cost" in page and "Each arm compared with start" in page


def test_without_the_baseline_nothing_is_compared(finished):
    alone = dw.Comparison(({"base": finished.arms["base"]},), {}, {"start": "broke"})
    with pytest.raises(WorkbenchError, match="broke"):
        alone.rows()


def test_the_same_arms_from_the_shell(finished, run, tmp_path):
    code, out, err = run("compare", str(finished.folder), str(finished.folder), "--out", str(tmp_path / "page"))
    assert code == 0 and "Cannot tell" in out and (tmp_path / "page" / "report.html").is_file(), err
    file = finished.folder / "evaluations" / "base.json"
    code, out, err = run("compare", str(finished.folder), str(file))
    assert code == 0 and "failed of 12" in out and "What got worse" in out
    code, out, err = run("compare", str(finished.folder), str(tmp_path))
    assert code == 1 and "evaluation must be a whole file" in err


def test_runs_with_other_prompts_are_not_compared(finished, run, tmp_path):
    other = replace(finished.arms["start"], rows=finished.arms["start"].rows[:6])
    other.save(tmp_path / "other.json")
    code, _, err = run("compare", str(finished.folder), str(tmp_path / "other.json"))
    assert code == 1 and "same prompts" in err
