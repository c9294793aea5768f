"""The whole chain on nano, small: repeatable, resumable, and honest about what is in its folder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import dpo_workbench as dw
from dpo_workbench.common.environment import data_folder
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.mining.sample import Found, Sample
from dpo_workbench.studies import arms, study
from dpo_workbench.studies.compare import shell_command
from dpo_workbench.studies.demo import DEMO_ARMS, demo
from dpo_workbench.studies.recipe import NATURAL, PLANTED, RECIPES, recipe_for
from dpo_workbench.tasks.builtin import shipped_adapter
from dpo_workbench.training.config import TrainConfig

SMALL = replace(
    RECIPES["nano"],
    test_prompts=10,
    mine_prompts=16,
    max_pairs=8,
    probe_prompts=6,
    dpo=TrainConfig(epochs=1, batch_size=4, probes=1, held_out=0.0),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "one"
    return demo("nano", folder, task_name="receipts", recipe=SMALL, show=False)


def without_times(folder):
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert results.pop("times")
    return results


@pytest.mark.slow
def test_every_arm_and_result_is_there(finished):
    assert tuple(finished.arms) == DEMO_ARMS
    assert all(e.n == 10 for e in finished.arms.values())
    for name in ("results.json", "report.html", "pairs.jsonl", "mined.json", "settings.json"):
        assert (finished.folder / name).stat().st_size > 0
    assert (finished.folder / "dpo+nll" / "adapter" / "adapter_model.safetensors").is_file()
    results = without_times(finished.folder)
    assert results["verdict"]["outcome"] == finished.verdict().outcome
    assert results["arms"]["start"]["n_failed"] == finished.arms["start"].n_failed


@pytest.mark.slow
def test_the_model_card_of_a_demo_tells_its_verdict(finished, tmp_path):
    card = (Path(dw.publish(finished.folder, "me/x", out=tmp_path / "out")) / "README.md").read_text()
    decided = finished.verdict()
    told, alone = (
        dw.publish(finished.folder / "dpo+nll", "me/x", out=tmp_path / n, verdict=v)
        for n, v in (("a", decided), ("b", None))
    )
    assert card == (Path(told) / "README.md").read_text() != (Path(alone) / "README.md").read_text()
    assert decided.outcome in card.lower()


@pytest.mark.slow
def test_the_demo_says_that_its_flaw_was_planted(finished, capsys):
    demo("nano", finished.folder, task_name="receipts", recipe=SMALL)
    out = capsys.readouterr().out
    assert (
        "we planted the flaw" in out
        and PLANTED["receipts"][1] in out
        and "fine-tuned on the chosen answers alone" in out
    )


@pytest.mark.slow
def test_another_seed_mines_other_answers(finished, tmp_path):
    other = study.open_study("nano", "receipts", tmp_path / "seed", recipe=SMALL, seed=1, show=False)
    assert dict(other.found.failures) != without_times(finished.folder)["mined"]["failures"]


@pytest.mark.slow
def test_a_stopped_demo_goes_on_and_ends_the_same(finished, tmp_path, monkeypatch):
    folder, calls = tmp_path / "stopped", []

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(arms, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            demo("nano", folder, task_name="receipts", recipe=SMALL, show=False)
    assert (folder / "mined.json").is_file() and not (folder / "results.json").exists()
    monkeypatch.setattr(study, "mine", lambda *a, **k: calls.append(a))
    demo("nano", folder, task_name="receipts", recipe=SMALL, show=False)
    assert not calls, "a finished stage ran again"
    assert without_times(folder) == without_times(finished.folder)


@pytest.mark.slow
def test_a_folder_holds_one_run(finished):
    with pytest.raises(WorkbenchError, match="other settings"):
        demo("nano", finished.folder, task_name="receipts", recipe=SMALL, seed=5, show=False)


def test_a_demo_can_start_from_an_adapter_of_your_own(tmp_path):
    adapter = data_folder() / "adapters" / "nano-science"
    with pytest.raises(dw.WorkbenchError, match="Leave one of them out"):
        demo("nano", tmp_path / "both", task_name="receipts", from_scratch=True, adapter=adapter)
    given = study.open_study("nano", "science", tmp_path / "given", adapter=adapter, show=False)
    shipped = study.open_study("nano", "science", tmp_path / "shipped", show=False)
    assert given.start.fingerprint() == shipped.start.fingerprint() != given.base.fingerprint()
    assert f"--adapter {adapter}" in shell_command([given], "demo") and "--adapter" not in shell_command(
        [shipped], "demo"
    )


@pytest.mark.parametrize("model", ("nano", "smol", "another/model"))
def test_each_planted_task_has_a_recipe_that_mines_after_what_sft_has_seen(model):
    for name in PLANTED:
        recipe, task = recipe_for(model, name), dw.load_task(name)
        assert recipe.mine_from >= recipe.sft_prompts
        assert len(task.train) >= recipe.mine_from + recipe.mine_prompts and len(task.test) >= recipe.test_prompts
        if recipe.sft_prompts:
            assert recipe.target and all(e.label is None for e in task.train[recipe.mine_from :])
        else:
            assert name in NATURAL and recipe.gap and recipe.greedy and not recipe.target


def own_task(n):
    """Dates typed in two ways, as in notebook 11."""
    days = [f"2024-{k % 12 + 1:02}-{k % 28 + 1:02}" for k in range(n)]
    rows = [{"day": day, "n": k, "typed": day if k % 2 else day.replace("-", "/")} for k, day in enumerate(days)]
    given = {"prompt": "When? {n}: {day}", "reference": "day", "label": "typed", "score": "exact_match"}
    return dw.Task.from_jsonl(rows, **given, name="days", max_new_tokens=12)


@pytest.mark.parametrize("model", ("nano", "smol", "another/model"))
@pytest.mark.parametrize("n", (60, 300, 4000))
def test_a_recipe_fits_a_task_of_ones_own(model, n):
    task = own_task(n)
    recipe, train = recipe_for(model, task), len(task.train)
    assert recipe.target == () and recipe.mine_from >= recipe.sft_prompts
    assert 0 < recipe.mine_prompts <= train - recipe.mine_from and recipe.mine_prompts == min(300, train // 3)
    seen = recipe.sft.epochs * recipe.sft_prompts
    assert seen >= 1200 or recipe.sft.epochs == 8
    assert recipe.sft.probes == 0, "dev would choose against the habit that the labels teach"


@pytest.mark.parametrize("name", ("receipts", "sql"))
def test_a_task_of_ones_own_may_have_the_name_of_a_built_in_one(name):
    own, built_in = own_task(300), dw.load_task(name)
    own.name = name
    assert recipe_for("nano", own) == recipe_for("nano", own_task(300))
    assert recipe_for("nano", built_in) == recipe_for("nano", name)
    assert shipped_adapter("nano", built_in) == name and shipped_adapter("nano", own) is None
    assert shipped_adapter("another/model", built_in) is None and shipped_adapter("nano", None) is None


def test_too_few_rows_of_ones_own_say_so_before_anything_is_trained(tmp_path):
    with pytest.raises(WorkbenchError, match="at least 30 training prompts"):
        demo("nano", tmp_path / "few", task_name=own_task(40), show=False)


@pytest.mark.slow
def test_the_job_runs_on_a_small_task_of_ones_own(tmp_path):
    done = demo("nano", tmp_path / "own", task_name=own_task(60), show=False)
    results = without_times(done.folder)
    assert results["mined"]["samples"] == 12 * 5 and (done.folder / "sft" / "adapter").is_dir()
    assert done.arms["DPO+NLL"].failed_share < done.arms["start"].failed_share


def test_the_demo_of_nano_takes_the_short_task(monkeypatch, tmp_path):
    opened = {}
    monkeypatch.setattr("dpo_workbench.studies.demo.open_study", lambda *args, **given: opened.update(given, args=args))
    for task in (None, "science", "receipts"):
        with pytest.raises(AttributeError):  # there is no study to run
            demo("nano", tmp_path, task_name=task, show=False)
        name, recipe = opened["args"][1], opened["recipe"]
        assert (name, recipe and recipe.test_prompts) == (
            ("receipts", None) if task == "receipts" else ("science", 200)
        )
    with pytest.raises(AttributeError):
        demo("smol", tmp_path, show=False)
    assert opened["args"][1] == "long_answers" and opened["recipe"].test_prompts == 40


def natural_task(score) -> dw.Task:
    science = dw.load_task("science")
    splits = {name: split[:60].examples for name, split in science.splits.items()}
    return dw.Task("sums", splits, score or science.score, max_new_tokens=64)


def natural_recipe(**changes):
    sizes = {
        "sft_prompts": 0,
        "mine_from": 0,
        "mine_prompts": 24,
        "test_prompts": 8,
        "probe_prompts": 4,
        "max_pairs": 16,
    }
    return replace(SMALL, **(sizes | changes), target=(), greedy=True, gap=0.1)


@pytest.mark.slow
def test_a_model_as_it_is_needs_no_fine_tuning(tmp_path, capsys):
    done = demo(
        "nano", tmp_path / "own", task_name=natural_task(None), recipe=natural_recipe(mine_prompts=60, per_prompt=2)
    )
    assert tuple(done.arms) == ("start", "control", "DPO+NLL") and not (tmp_path / "own" / "sft").exists()
    out = capsys.readouterr().out
    assert "start    the model as it is" in out and "planted" not in out
    pairs = dw.Pairs.load(tmp_path / "own" / "pairs.jsonl")
    assert all(pair.chosen_score >= pair.rejected_score for pair in pairs)


@pytest.mark.parametrize("value, says", [(1.0, "every sample passed"), (0.0, "could be paired")])
def test_without_headroom_nothing_is_trained(tmp_path, value, says):
    task = natural_task(lambda example, answer: dw.Score(value, None if value else "wrong"))
    with pytest.raises(WorkbenchError, match=says):
        demo("nano", tmp_path / "none", task_name=task, recipe=natural_recipe(), show=False)
    assert (tmp_path / "none" / "mined.json").is_file() and not (tmp_path / "none" / "evaluations").exists()


def test_too_few_pairs_stop_before_training(tmp_path, monkeypatch):
    task = natural_task(None)
    good, bad = Sample("a", True, 1.0, None, ""), Sample("b", True, 0.5, "wrong", "")
    rows = [(example, (good, bad) if k < 3 else (good, good)) for k, example in enumerate(task.train)]
    settings = {"greedy": True, "max_new_tokens": 8}
    monkeypatch.setattr(study, "mine", lambda *args, **given: Found(task, tuple(rows), settings))
    with pytest.raises(WorkbenchError, match=r"at least 4 pairs. Got 3 from 60 prompts"):
        demo("nano", tmp_path / "few", task_name=task, recipe=natural_recipe(), show=False)


@pytest.mark.slow
def test_a_demo_without_its_control_has_no_verdict(finished, monkeypatch, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "copy")
    (tmp_path / "copy" / "evaluations" / "control.json").unlink()

    def fails(*args):
        raise RuntimeError("the disk is full")

    monkeypatch.setitem(arms.ARMS, "control", fails)
    with pytest.raises(WorkbenchError, match=r"Got none for control: the disk is full. Remove the cause"):
        demo("nano", tmp_path / "copy", task_name="receipts", recipe=SMALL, show=False)


def test_a_study_on_4_bit_weights_says_so(tmp_path) -> None:
    pytest.importorskip("bitsandbytes")
    given = {"recipe": SMALL, "show": False}
    opened = study.open_study("nano", "receipts", tmp_path / "q", quantize="4bit", **given)
    assert opened.base.quantize == "4bit" and "--quantize 4bit" in shell_command([opened], "demo")
    with pytest.raises(WorkbenchError, match="holds a run with other settings"):
        study.open_study("nano", "receipts", tmp_path / "q", **given)
    plain = study.open_study("nano", "receipts", tmp_path / "plain", **given)
    assert plain.base.quantize is None and "quantize" not in shell_command([plain], "demo")
