"""Models with chat templates of several styles, from the tokens of training to generation, mining and exports."""

import datetime
import json
from copy import copy
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import dpo_workbench as dw
from dpo_workbench import cli
from dpo_workbench.cli_shared import template_arguments
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.export.runs import export_merged, export_trl
from dpo_workbench.mining.branch import _failed_answers
from dpo_workbench.mining.sample import Found, Sample, mine
from dpo_workbench.models import chat as chat_module
from dpo_workbench.models import server
from dpo_workbench.models.decoding import Answer
from dpo_workbench.models.generation import generate
from dpo_workbench.models.loading import load_model
from dpo_workbench.models.server import ask
from dpo_workbench.pairs.pair import Pairs
from dpo_workbench.studies.compare import compare
from dpo_workbench.studies.logps import answer_rows
from dpo_workbench.studies.recipe import recipe_for
from dpo_workbench.studies.reward_model import with_second_end
from dpo_workbench.studies.study import open_study
from dpo_workbench.tasks.task import Score, Task
from dpo_workbench.training.run import record_run, sft, train
from dpo_workbench.training.tokens import Unfinished, tokenize

CONFIG = dw.TrainConfig(lr=1e-2, batch_size=4, epochs=2, rank=4, alpha=8, probes=2, held_out=0.2)
RECIPE = replace(recipe_for("smol", "receipts"), sft=CONFIG, sft_prompts=8, probe_prompts=4, test_prompts=4)
TURNS = (  # as Gemma: the end of a turn is not the tokenizer's eos_token, and texts are trimmed
    "{% for m in messages %}{{ '<|answer|>' if m.role == 'assistant' else '<|user|>' }}{{ m.content | trim }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|answer|>{% endif %}"
)
THINKING = (  # as Qwen 3: an empty thinking block in front of an answer, which an argument moves into the prompt
    "{% for m in messages %}{% if m.role == 'assistant' %}<|answer|>(no)\n{{ m.content }}<|end|>{% else %}"
    "<|user|>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|answer|>{{ '(no)\n' if thinking is defined and not thinking }}{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}\n" + TURNS


class Clock(datetime.date):
    now = (2024, 7, 26)

    @classmethod
    def today(cls) -> datetime.date:
        return cls(*cls.now)


@pytest.fixture
def make(make_tiny_folder, tmp_path):
    """Makes a tiny model with a template."""

    def load(template: str, **arguments):
        folder = tmp_path / "model"
        if not folder.exists():
            make_tiny_folder(folder, template, eos="<eos>")
        return load_model(folder, device="cpu", dtype=torch.float32, template=arguments or None)

    return load


def decoded(model, ids) -> str:
    return model.tokenizer.decode(ids)


def test_rows_of_training_end_with_the_turn(make) -> None:
    model = make(TURNS)
    (row,) = tokenize(model, [("r", " q ", (" yes\n", Unfinished("no ")))], 100)
    assert decoded(model, row.prompt_ids) == "<|user|>q<|end|>\n<|answer|>"
    assert [decoded(model, ids) for ids in row.answer_ids] == ["yes<|end|>", "no "]
    assert sorted(model.tokenizer.convert_ids_to_tokens(model.chat.stop_ids)) == ["<eos>", "<|end|>"]


def test_generation_stops_at_the_end_of_the_turn_and_mining_does_not_call_it_truncated(make, toy_task) -> None:
    model = make(TURNS)
    prompts = [e.prompt for e in toy_task.train]
    answers = [a for (a,) in generate(model, prompts, max_new_tokens=60)]
    finished = [a for a in answers if a.finished]
    assert finished and all(a.n_tokens < 60 and "<|end|>" not in a.text for a in finished)
    blind = replace(model, chat=copy(model.chat))
    blind.chat.stop_ids = [model.tokenizer.eos_token_id]  # negative control: what the tokenizer alone would give
    assert sum(a.finished for (a,) in generate(blind, prompts, max_new_tokens=60)) < len(finished)
    task = Task("t", {k: v.examples for k, v in toy_task.splits.items()}, lambda e, a: Score(1.0), max_new_tokens=60)
    found = mine(model, task.train, 4, seed=1, show=False)
    assert {s.failure for s in found.samples if s.finished} <= {None, "empty", "loop"}
    assert sum(s.finished and s.failure is None for s in found.samples) > 10


def test_branching_begins_with_what_the_model_wrote(make, toy_task) -> None:
    model = make(THINKING)
    example = toy_task.train[0]
    samples = (Sample("yes", True, 0.0, "wrong", ""), Sample("(no)\nye", False, 0.0, "wrong", ""))
    found = Found(toy_task, ((example, samples),), {"max_new_tokens": 50})
    tokens = _failed_answers(model, found, ("wrong",), 2)
    assert [decoded(model, ids) for ids in tokens.values()] == ["(no)\nyes", "(no)\nye"]


def test_a_rewarded_or_measured_answer_has_the_tokens_of_training(make) -> None:
    model = make(TURNS)
    answers = ["yes ", Answer("yes ", 2, False), Answer("", 0, False)]
    (row,) = answer_rows(model, ["q"], [answers])
    assert [decoded(model, ids) for ids in row.answer_ids] == ["yes<|end|>", "yes ", "<|end|>"]
    assert decoded(model, with_second_end(model, row).answer_ids[0]) == "yes<|end|><|end|>"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (("yes", "yes\n"), "must differ from `chosen` as tokens, also once the template trimmed both"),
        (("yes", " \n"), "must have text, also after the chat template has trimmed it"),
        (("yes<|end|>", "no"), "must not contain the end token '<|end|>'"),
        (("yes", "no<eos>"), "must not contain the end token '<eos>'"),
        (("yes", "no " * 2100), "must fit into the model's 2048 positions"),
    ],
)
def test_rows_that_cannot_be_trained_on_are_refused_and_counted(make, answers, message: str) -> None:
    rows = [("good", "q", ("yes", "no")), *((f"bad{k}", "q", answers) for k in range(7))]
    with pytest.raises(WorkbenchError) as caught:
        tokenize(make(TURNS), rows, 100_000)
    text = str(caught.value)
    assert message in text and "Got 7 of 8 rows where this is not so: 'bad0' (" in text
    assert "'bad6' (" in text and "good" not in text and caught.value.rows == [f"bad{k}" for k in range(7)]


def test_positions_count_prompt_and_one_answer(make) -> None:
    model = make(TURNS)
    long = ("no " * 1400, "yes " * 700)
    (row,) = tokenize(model, [("r", "q", long)], 100_000)
    assert row.n_tokens > model.max_positions > max(map(len, row.answer_ids)) + len(row.prompt_ids)


def test_errors_of_the_template_name_the_row(make) -> None:
    text = "{{ raise_exception('No x!') if m.content == 'xx' else m.content }}"
    model = make(TURNS.replace("{{ m.content | trim }}", text))
    with pytest.raises(WorkbenchError, match="can't write the turns user.*: No x!.*Got 1 of 2 .*: 'r'. Drop"):
        tokenize(model, [("s", "x", ("yes", "no")), ("r", "xx", ("yes", "no"))], 100)


def test_prompts_that_leave_no_room_are_refused(make) -> None:
    model, long = make(TURNS), "ab " * 2000
    with pytest.raises(WorkbenchError, match=r"must fit into the 2048 positions.*Got 1 of 2 that do not: prompts\[1\]"):
        generate(model, ["q", long], max_new_tokens=100)
    size = len(model.chat.prompt_ids("q"))
    assert generate(model, ["q"], max_new_tokens=2048 - size, begun=[model.chat.answer_ids("q", "yes")])


def test_changes_are_printed_once(make, toy_pairs, capsys) -> None:
    rows = [replace(p, chosen=f" {p.chosen}" if k < 3 else p.chosen) for k, p in enumerate(toy_pairs.rows)]
    config = replace(CONFIG, probes=0, held_out=0.0)
    train(make(TURNS), Pairs(rows), config)
    out = capsys.readouterr().out
    assert out.count("chat template: 3 of 24 answers are written with changed white space") == 1
    sft(make(TURNS), Pairs(rows), config)
    assert "chat template: 3 of 12 answers are written with changed white space" in capsys.readouterr().out
    train(make(TURNS), toy_pairs, config)
    sft(make(TURNS), Pairs(rows), config, show=False)
    assert "chat template" not in capsys.readouterr().out


def test_a_run_goes_on_after_midnight_with_the_date_it_began_with(make, toy_pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(chat_module, "Date", Clock)
    pairs, folder = Pairs(toy_pairs.rows), tmp_path / "run"
    first = make(DATED)
    assert first.chat.prompt_text("q").startswith("26 Jul 2024\n")
    record_run(folder, first, pairs, CONFIG)
    whole = train(first, pairs, CONFIG, folder=folder, show=False)
    whole.model.save(folder / "adapter")
    monkeypatch.setattr(Clock, "now", (2024, 7, 27))
    later = make(DATED)
    assert later.chat.prompt_text("q").startswith("27 Jul 2024\n")
    again = train(later, pairs, CONFIG, folder=folder, show=False)
    assert "continuing after step" in capsys.readouterr().out and again.history == whole.history
    assert again.model.chat.prompt_ids("q") == first.chat.prompt_ids("q") != later.chat.prompt_ids("q")
    record_run(folder, later, pairs, CONFIG)  # as the command line does before it goes on
    assert json.loads((folder / "run.json").read_text())["date"] == "2024-07-26"
    project = export_trl(folder, tmp_path / "trl").folder
    line = json.loads((project / "pairs.jsonl").read_text().splitlines()[0])
    assert decoded(first, line["prompt_ids"]).startswith("26 Jul 2024\n")
    fresh = sft(later, pairs, replace(CONFIG, epochs=1), folder=tmp_path / "other", show=False)
    assert fresh.model.chat.date == "2024-07-27"  # another folder begins today
    template = AutoTokenizer.from_pretrained(export_merged(folder, tmp_path / "merged").folder).chat_template
    assert template == DATED  # a served model prints the day's date


def test_other_arguments_of_the_template_are_another_run(make, toy_pairs, tmp_path, capsys) -> None:
    pairs = Pairs(toy_pairs.rows)
    train(make(THINKING), pairs, CONFIG, folder=tmp_path / "run", show=False)
    train(make(THINKING, thinking=False), pairs, CONFIG, folder=tmp_path / "run", show=False)
    out = capsys.readouterr().out
    assert "belongs to a run with other settings" in out and "{'thinking': False}" in out and "continuing" not in out


def test_arguments_go_into_exports_and_to_servers(make, toy_pairs, tmp_path, monkeypatch) -> None:
    pairs, folder = Pairs(toy_pairs.rows), tmp_path / "run"
    model = make(THINKING, thinking=False)
    assert model.chat.prompt_text("q") == "<|user|>q<|answer|>(no)\n"
    record_run(folder, model, pairs, CONFIG)
    model.with_new_adapter().save(folder / "adapter")
    merged, project = export_merged(folder, tmp_path / "merged").folder, export_trl(folder, tmp_path / "trl").folder
    for path in (merged, project / "tokenizer"):
        messages = [{"role": "user", "content": "q"}]
        text = AutoTokenizer.from_pretrained(path).apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        assert text == model.chat.prompt_text("q")
    for path in (merged, project / "model"):
        ends = AutoModelForCausalLM.from_pretrained(path).generation_config.eos_token_id
        assert ends == model.chat.stop_ids and len(ends) == 2
    line = json.loads((project / "pairs.jsonl").read_text().splitlines()[0])
    assert line["prompt_ids"] == model.chat.prompt_ids(line["prompt"])
    assert load_model(merged, device="cpu").chat.stop_ids == model.chat.stop_ids

    sent = []
    reply = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
    monkeypatch.setattr(server, "_send", lambda url, body, timeout: (sent.append(body), (200, json.dumps(reply)))[1])
    monkeypatch.setattr(server, "_served_names", lambda url: ["m"])
    for arguments in (model.chat.arguments, {}):
        ask("http://h/v1", "m", ["q"], template=arguments)
    assert [body.get("chat_template_kwargs") for body in sent] == [{"thinking": False}, None]


def test_a_study_goes_on_after_midnight_with_the_date_it_began_with(
    make, make_tiny_folder, toy_task, toy_pairs, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(chat_module, "Date", Clock)
    name = str(make_tiny_folder(tmp_path / "model", DATED + "{{ '!' if loud }}", eos="<eos>"))
    given = {"folder": tmp_path / "study", "pairs": toy_pairs, "recipe": RECIPE, "show": False}
    monkeypatch.setattr(Clock, "now", (2024, 7, 26))
    first = compare(toy_task, ("start",), model=name, template={"loud": True}, **given)
    settings = json.loads((first.folder / "settings.json").read_text())
    assert (settings["template"], settings["date"]) == ({"loud": True}, "2024-07-26")
    assert "--template loud=true" in json.loads((first.folder / "results.json").read_text())["command"]
    monkeypatch.setattr(Clock, "now", (2024, 7, 27))
    same = {"template": {"loud": True}, "pairs": toy_pairs, "recipe": RECIPE, "tune": settings["tune"]}
    study = open_study(name, toy_task, tmp_path / "study", **same)
    assert study.base.chat.prompt_text("q").startswith("26 Jul 2024\n") and study.base.chat.prompt_text("q")[-1] == "!"
    assert study.start.chat.date == "2024-07-26" and study.settings == settings
    for other in (None, {"loud": False}):
        with pytest.raises(WorkbenchError, match="holds a run with other settings"):
            compare(toy_task, ("start",), model=name, template=other, **given)
    fresh = open_study(name, toy_task, tmp_path / "other", pairs=toy_pairs, recipe=RECIPE)
    assert fresh.base.chat.date == "2024-07-27"  # another folder begins today


def test_side_effects_use_one_template_for_both_models(make, toy_task, monkeypatch) -> None:
    monkeypatch.setattr(chat_module, "Date", Clock)
    before = make(DATED)
    after = replace(before, chat=before.chat.dated("2020-01-02"))
    kl = next(e for e in dw.side_effects(before, after, toy_task, others=[], prompts=2).effects if "KL" in e.name)
    assert kl.after == 0  # the same weights, so only the date could make a difference


def test_a_served_model_that_is_named_gets_arguments_too(make, toy_task, tmp_path, monkeypatch) -> None:
    sent = []
    reply = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
    monkeypatch.setattr(server, "_send", lambda url, body, timeout: (sent.append(body), (200, json.dumps(reply)))[1])
    monkeypatch.setattr(server, "_served_names", lambda url: ["m"])
    given = {"engine": "http://h/v1", "template": {"thinking": False}, "show": False}
    done, found = dw.evaluate("m", toy_task.test, **given), dw.mine("m", toy_task.train, 1, **given)
    assert all(body["chat_template_kwargs"] == {"thinking": False} for body in sent) and len(sent) == 16
    assert done.decoding["template"] == found.settings["template"] == {"thinking": False}
    with pytest.raises(WorkbenchError, match="with its own template arguments.*dw.load_model"):
        dw.evaluate(make(THINKING), toy_task.test, template={"thinking": False})


def test_template_arguments_on_the_command_line(make_tiny_folder, tmp_path, toy_pairs) -> None:
    folder = make_tiny_folder(tmp_path / "model", THINKING + "{{ note }}", eos="<eos>")
    toy_pairs.save(tmp_path / "pairs.jsonl")
    options = ["--model", folder, "--template", "thinking=false", "--template", "note=two words", "--epochs", "1"]
    options += ["--probes", "0", "--held-out", "0", "--adapter", "none", "--out", tmp_path / "run"]
    done = CliRunner().invoke(cli.app, list(map(str, ["train", tmp_path / "pairs.jsonl", *options])))
    assert done.exit_code == 0, done.output
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["template"] == {"thinking": False, "note": "two words"}
    assert template_arguments(['a="3"', "b=3", "c=null", "d=x=y"]) == {"a": "3", "b": 3, "c": None, "d": "x=y"}
    with pytest.raises(WorkbenchError, match="`--template` takes NAME=VALUE. Got 'thinking'"):
        template_arguments(["thinking"])


def test_join_of_a_model_without_template(make_tiny_folder, tmp_path) -> None:
    folder = make_tiny_folder(tmp_path / "m", template=None)
    for join in ("", "\n"):
        model = load_model(folder, device="cpu", template={"join": join} if join else None)
        (row,) = tokenize(model, [("r", "A: ", ("yes", "no"))], 100)
        assert decoded(model, row.prompt_ids) == f"A: {join}"
        assert decoded(model, row.answer_ids[0]) == "yes<|end|>"


def test_wrong_arguments_are_refused(make) -> None:
    with pytest.raises(WorkbenchError, match="arguments that the chat template uses. Got 'enable_thinking'"):
        make(TURNS, enable_thinking=False)


def test_whole_conversations_of_shipped_models_begin_with_prompt_and_answer(tiny) -> None:
    for model in (tiny, dw.load_model("nano", device="cpu")):
        for prompt, answer in (("Total 3.50 EUR?", '{"total": 3.5}'), ("a\n", "\n\nyes \n")):
            assert not model.chat.check(prompt, answer)
