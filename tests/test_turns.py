"""Prompts of several turns, from a file to tokens, training, sampling, mining, evaluation, labelling and exports."""

import json

import pytest
import torch
from transformers import AutoTokenizer

import dpo_workbench as dw
from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.export.runs import export_trl
from dpo_workbench.labelling.session import Session
from dpo_workbench.labelling.widget import card, text_card
from dpo_workbench.models import server
from dpo_workbench.models.loading import load_model
from dpo_workbench.models.server import ask
from dpo_workbench.studies.learning_curve import nested
from dpo_workbench.studies.logps import sum_logps
from dpo_workbench.tasks.task import Score, Task
from dpo_workbench.training.run import record_run, sft, train

CONFIG = dw.TrainConfig(lr=1e-2, batch_size=4, epochs=1, rank=4, alpha=8, probes=1, held_out=0.0)
ROLES = (  # trims, and ends each message with a token of its own
    "{% for m in messages %}<|user|>{{ m.role }}\n{{ m.content | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|user|>assistant\n{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('No system!') }}{% endif %}" + ROLES


def turns(k: int) -> list[dict[str, str]]:
    said = ("system", "Be brief."), ("user", f"question {k}?"), ("assistant", "no"), ("user", f"why {k}?")
    return [{"role": role, "content": content} for role, content in said]


@pytest.fixture
def file(tmp_path):
    """Eight conversations, and one row whose prompt is a text."""
    rows = [{"id": f"p{k}", "prompt": turns(k), "chosen": f"yes {k}", "rejected": f"no {k}"} for k in range(8)]
    rows.append({"id": "p8", "prompt": "one turn", "chosen": "yes", "rejected": "no"})
    rows = [r | {name: [{"role": "assistant", "content": r[name]}] for name in ("chosen", "rejected")} for r in rows]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("template", [ROLES, NO_SYSTEM], ids=["system role", "no system role"])
def test_from_a_file_to_an_export_the_template_writes_the_turns(make_tiny_folder, tmp_path, file, template, capsys):
    model = load_model(make_tiny_folder(tmp_path / "model", template), device="cpu", dtype=torch.float32)
    pairs = dw.Pairs.load(file)
    run = tmp_path / "run"
    record_run(run, model, pairs, CONFIG)
    done = train(model, pairs, CONFIG, folder=run, show=False)
    assert len(done.history) == 3 and done.history[-1]["loss"] < done.history[0]["loss"]
    assert dw.Pairs.load(run / "pairs.jsonl").rows == pairs.rows
    sft(model, pairs, CONFIG, show=False)
    assert capsys.readouterr().out.count("This model has no system role") == (template == NO_SYSTEM)
    project = export_trl(run, tmp_path / "trl").folder
    tokenizer = AutoTokenizer.from_pretrained(project / "tokenizer")
    lines = [json.loads(line) for line in (project / "pairs.jsonl").read_text().splitlines()]
    for k, line in enumerate(lines):
        asked = turns(k) if k < 8 else [{"role": "user", "content": "one turn"}]
        assert line["prompt"] == asked and line["chosen"] == [{"role": "assistant", "content": pairs[k].chosen}]
        if template == NO_SYSTEM and k < 8:
            asked = [{"role": "user", "content": f"Be brief.\n\nquestion {k}?"}, *asked[2:]]
        want = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        assert line["prompt_ids"] == want
        whole = tokenizer.apply_chat_template([*asked, line["chosen"][0]], return_dict=False)
        assert whole[: len(want) + len(line["chosen_ids"])] == want + line["chosen_ids"]
    again = dw.read_pairs(project / "pairs.jsonl")  # TRL's conversational format
    assert [(p.prompt, p.chosen, p.rejected) for p in again.found] == [(p.prompt, p.chosen, p.rejected) for p in pairs]


def rows(n: int) -> list[dict]:
    return [{"messages": turns(k), "answer": "yes"} for k in range(n)]


def score(example: dw.Example, answer: str) -> Score:
    return Score(1.0) if "e" in answer else Score(0.0, "wrong")


@pytest.mark.parametrize("form", ["rows", "csv", "function"])
def test_a_task_may_have_turns(tmp_path, form: str) -> None:
    source, prompt = rows(20), "messages"
    if form == "csv":
        import pandas

        source = tmp_path / "a.csv"
        pandas.DataFrame([{**row, "messages": json.dumps(row["messages"])} for row in rows(20)]).to_csv(source)
    elif form == "function":
        prompt = lambda row: [{"role": "user", "content": "hello"}, *row["messages"][2:]]  # noqa: E731
    task = Task.from_jsonl(source, prompt=prompt, reference="answer", score=score)
    example = task.train[0]
    assert [role for role, _ in example.prompt][-2:] == ["assistant", "user"] and len(task.train) == 12
    assert example.group == example.prompt_as_text.casefold().replace("\n\n", " ")
    assert task.score(example, example.prompt[-1][1]).failure == "echo"
    assert task.score(example, "no").failure == "wrong"  # the assistant said the same before, which is no echo


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (turns(1)[:3], "must end with a message of the user.*2, P203"),
        ([{"role": "tool", "content": "7"}, *turns(1)], "text only. Got tool"),
        ([*turns(1)[:3], {"role": "user", "content": " "}], "must not be empty. Got.*P301"),
    ],
)
def test_a_row_of_a_task_that_is_no_prompt_is_named(value, message: str) -> None:
    bad = [*rows(1), {"messages": value, "answer": "a"}]
    with pytest.raises(WorkbenchError, match=message):
        Task.from_jsonl(bad, prompt="messages", reference="answer", score=score)
    data = [{"rows": [{"a": 1}], "answer": "b"}]  # other lists are JSON text
    task = Task.from_jsonl(data * 3, prompt="rows", reference="answer", score=score, group=lambda row: id(row))
    assert task.train[0].prompt == '[{"a": 1}]'


def test_sampling_mining_and_evaluation_take_turns(make_tiny_folder, tmp_path) -> None:
    model = load_model(make_tiny_folder(tmp_path / "model", ROLES), device="cpu", dtype=torch.float32)
    task = Task.from_jsonl(rows(20), prompt="messages", reference="answer", score=score, max_new_tokens=8)
    as_dicts, as_turns = (
        dw.generate(model, [p], max_new_tokens=8) for p in (turns(1), dw.Pair("a", turns(1), "b", "c").prompt)
    )
    assert as_dicts == as_turns
    done = dw.evaluate(model, task.test, show=False)
    assert done.rows[0].prompt == task.test[0].prompt_as_text
    done.save(tmp_path / "a.json")
    assert dw.Evaluation.load(tmp_path / "a.json").rows == done.rows
    found = dw.mine(model, task.train, samples=6, show=False)
    found.save(tmp_path / "mined.json")
    pairs = type(found).load(tmp_path / "mined.json", task).pairs(use_reference=True)
    assert {len(pair.prompt) for pair in pairs} == {4}
    assert dw.microscope(model, pairs[:1]) and len(nested(pairs, 2, 0)) == 2
    (one,), (other,) = (sum_logps(model, [p], [["yes"]]) for p in (turns(1), turns(1)[1:]))
    assert one != other  # the system text counts


def test_a_server_gets_the_turns(monkeypatch) -> None:
    sent = []
    reply = {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}
    monkeypatch.setattr(server, "_send", lambda url, body, timeout: (sent.append(body), (200, json.dumps(reply)))[1])
    ask("http://h/v1", "m", [turns(1), dw.Pair("a", turns(2), "b", "c").prompt, "q"])
    assert sorted((body["messages"] for body in sent), key=str) == sorted(
        [turns(1), turns(2), [{"role": "user", "content": "q"}]], key=str
    )


def test_people_see_who_says_what(tmp_path, file) -> None:
    pairs = dw.Pairs.load(file)
    session = Session(pairs, "me", tmp_path / "labels.jsonl", quick=0)
    for seen in (text_card(session), card(session)["prompt"]):
        assert "system: Be brief.\n\nuser: question 0?\n\nassistant: no\n\nuser: why 0?" in seen
    session.do("a")
    (label,) = dw.read_labels(tmp_path / "labels.jsonl", pairs).pairs()
    assert label.prompt == pairs[0].prompt
