"""The pre-flight check: what it finds in good and bad pairs, and its claims about TRL against the installed one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import trl
from chat_styles import CHATML, HEADERS, STYLES, THINKING, TURNS, tokenizer
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM

import dpo_workbench as dw
from dpo_workbench.models.chat import Chat
from dpo_workbench.models.rows import encode_all, pair_texts, refuse
from dpo_workbench.pairs.messages import messages_of
from dpo_workbench.studies import preflight as module
from dpo_workbench.studies.preflight import TRL, TRL_DOES, preflight, show, trl_row
from dpo_workbench.training.tokens import Unfinished, tokenize

ROOT = Path(__file__).parents[2]
GOOD = [dw.Pair(f"p{k}", f"What is {k} plus {k}?", f"It is {2 * k}.", f"It is {2 * k + 1}.") for k in range(10)]
NARROW = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def folder(tmp_path):
    """Makes a model's folder without weights, with a small tokenizer."""

    def make(template: str | None, **options) -> Path:
        LlamaConfig(vocab_size=600, max_position_embeddings=200, **NARROW).save_pretrained(tmp_path / "m")
        tokenizer(template, **options).save_pretrained(tmp_path / "m")
        return tmp_path / "m"

    return make


def kinds(found) -> list[str]:
    return [issue.severity for issue in found.issues]


def test_good_pairs_have_nothing_to_fix(folder) -> None:
    found = preflight(GOOD, folder(HEADERS, bos=True))
    assert "nothing to fix" in found.title and not found.failed and found.issues == []
    text = repr(found)
    assert len(text.splitlines()) < 25 and "0 of 10 pairs (0%) have over max_tokens=1024; the model has 200" in text
    assert "BOS: '<s>', 1 in 20 of 20" in text and "end token: '<|eot|>', 1 in 20 of 20 answers, from template" in text
    assert "thinking" not in text and "without the chat template): the same tokens as here" in text
    chat = Chat(tokenizer(HEADERS, bos=True))
    assert found.lengths["prompt"] == [len(chat.prompt_ids(GOOD[0].prompt))] * 3
    longest = max(len(chat.prompt_ids(p.prompt) + chat.answer_ids(p.prompt, p.chosen)) for p in GOOD)
    assert found.lengths["prompt and longer answer"][2] == longest < found.lengths["packed row"][2]


def test_pairs_that_training_refuses_are_errors_and_all_are_listed(folder) -> None:
    bad = [dw.Pair(f"long{k}", "q", "yes " * 90, "no") for k in range(5)]
    bad += [dw.Pair("equal", "q", "yes", "yes "), dw.Pair("end", "q", "yes<|eot|>no", "no")]
    found = preflight([*GOOD, *bad], folder(HEADERS, bos=True), max_tokens=100)
    assert found.failed and kinds(found) == ["error"] * 3 + ["warning"] + ["note"]
    assert "4 things to fix; training refuses some pairs" in found.title
    long, equal, end = found.issues[:3]
    assert list(long.rows) == [f"long{k}" for k in range(5)] and "5 of 17 pairs: A prompt with one answer" in long.what
    assert list(equal.rows) == ["equal"] and list(end.rows) == ["end"] and "(29%) have over" in repr(found)
    assert "'long2': 1" in repr(found) and "'long3'" not in repr(found) and "(and 2 more" in repr(found)
    assert "long4" in found.to_dict()["issues"][0]["rows"] and json.loads(json.dumps(found.to_dict()))
    rows = [pair_texts(pair) for pair in (*GOOD, *bad)]  # the same rules as in training
    with pytest.raises(dw.WorkbenchError, match="Got 5 of 17.*Got 1 of 17.*Got 1 of 17"):
        refuse(encode_all(Chat(tokenizer(HEADERS, bos=True)), rows, 100, 200)[1], len(rows))


def test_what_the_template_does_is_told(folder) -> None:
    pairs = [*GOOD, dw.Pair("special", "a<|im_end|>b", "yes", "no"), dw.Pair("join", "q", "\n\nyes", "no")]
    found = preflight(pairs, folder(CHATML))
    assert kinds(found) == ["warning", "note"] and list(found.issues[0].rows) == ["special"]
    assert found.issues[0].what.startswith("2 of 24 answers contain a special token")
    assert found.issues[0].rows["special"] == "chosen: '<|im_end|>' in 'a<|im_end|>b'"
    assert found.issues[1].what.startswith("1 of 24 answers begin with a token that would merge")


def test_thinking_blocks_are_counted(folder) -> None:
    pairs = [*GOOD, dw.Pair("own", "q", "<think>hm</think>yes", "no")]
    found = preflight(pairs, folder(THINKING))
    assert found.facts["thinking"] == "1 of 22 answers have a block; the template adds 21 and removes 0"
    off = preflight(pairs, folder(THINKING), template={"enable_thinking": False})
    assert off.facts["thinking"] == "1 of 22 answers have a block; the template adds 0 and removes 0"
    opens = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n")
    found = preflight(GOOD, folder(opens))
    assert any("do not close the thinking block" in issue.what for issue in found.issues)
    strips = CHATML.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
    assert preflight(pairs, folder(strips)).facts["thinking"].endswith("the template adds 0 and removes 1")


def test_roles_that_the_template_cannot_render(folder, capsys) -> None:
    """System text is put into the first user turn, and a conversation that the assistant begins is an error."""
    prompt = (("system", "be brief"), ("user", "q"))
    pairs = [*GOOD, dw.Pair("system", prompt, "yes", "no")]
    found = preflight(pairs, folder(TURNS, bos=True))
    assert kinds(found) == ["note"] and "1 of 11 pairs have a system message" in found.issues[0].what
    (said,) = found.trl.values()
    assert [issue.what for issue in said] == [
        "1 of 11 pairs " + TRL_DOES["fails"][0],
        "10 of 11 pairs " + TRL_DOES["tail"][0],
    ]
    assert "System role not supported" in said[0].rows["system"]
    begun = dw.Pair("begun", (("assistant", "a"), ("user", "b")), "yes", "no")
    found = preflight([*GOOD, begun], folder(TURNS, bos=True))
    assert found.failed and list(found.issues[0].rows) == ["begun"] and "Alternate!" in found.issues[0].what
    assert preflight([begun], folder(TURNS, bos=True)).mask is None


def test_the_page_is_escaped_and_has_a_legend_in_words(folder) -> None:
    found = preflight([dw.Pair("<b>", "<script>x</script>", "$yes$ <i>", "no")], folder(CHATML))
    html = found._repr_html_()
    assert "<script>" not in html and "<i>" not in html and "&lt;</span>" in html and "$" not in html
    for kind in ("no loss", "scored", "end token"):
        assert f'title="{kind}"' in html and f">{kind}</span>" in html
    scored = re.findall(r'<span title="(scored|end token)"[^>]*>([^<]*)</span>', html)[:-2]
    assert [kind for kind, token in scored if token == "&lt;|im_end|&gt;"] == ["end token"] * 2
    assert "http" not in html


def test_show_decodes_what_is_scored(tiny) -> None:
    (row,) = tokenize(tiny, [("r", "ab", ("yes", Unfinished("no")))], 100)
    text = str(show(tiny, row))
    assert text == str(show(tiny.chat, row)) and "no loss): '<|user|>ab<|answer|>'" in text
    assert "scored): 'yes<|end|>'" in text and "scored): 'no'" in text
    assert show(tiny, row).ended == [False, True, False]


# What TRL does, by the installed TRL.

ROWS = [  # of the kind of each of TRL_DOES, and ordinary ones
    ("q", "yes", "no"),
    ("the question", " yes", "no\n"),
    ("A: ", "\n\nyes", "no"),
    ("q", "<think>hm</think>yes", "no"),
    ("is t", "he answer", "no"),
]


def network() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(vocab_size=600, **NARROW))


def trainer(made, rows, form: str, max_length: int | None, tmp_path: Path) -> trl.DPOTrainer:
    """TRL's trainer, which has tokenized the rows."""
    if form == "messages":
        rows = [(messages_of(p), *([{"role": "assistant", "content": a}] for a in answers)) for p, *answers in rows]
    data = Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows])
    config = trl.DPOConfig(output_dir=str(tmp_path), max_length=max_length, report_to="none", use_cpu=True, bf16=False)
    return trl.DPOTrainer(network(), network(), args=config, processing_class=made, train_dataset=data)


@pytest.mark.parametrize("form", ["messages", "text"])
@pytest.mark.parametrize(
    "style", ["chatml", "headers", "inst", "thinking", "strips thinking", "appends eos", "no template"]
)
def test_rows_of_trl_are_those_of_the_installed_version(style: str, form: str, tmp_path) -> None:
    made, options, _ = STYLES[style]
    if form == "messages" and not made.chat_template:
        pytest.skip("TRL refuses messages then")
    chat = Chat(made, **{key: value for key, value in options.items() if key != "template"})
    seen = trainer(made, ROWS, form, None, tmp_path).train_dataset
    for (prompt, *answers), row in zip(ROWS, seen, strict=True):
        asked = messages_of(prompt) if form == "messages" else prompt
        ids, _ = trl_row(chat, asked, answers)
        assert ids == [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]


def test_trl_cuts_and_drops_in_silence(tmp_path) -> None:
    made = tokenizer(CHATML)
    rows = [("q", "yes", "no"), ("q", "yes " * 30, "no"), ("q " * 60, "yes", "no")]
    seen = trainer(made, rows, "messages", 40, tmp_path)
    assert len(seen.train_dataset) == 2  # the last one is gone
    end = made.convert_tokens_to_ids("<|im_end|>")
    batch = seen.data_collator(list(seen.train_dataset))
    long = batch["input_ids"][1]
    assert len(long) == 40 and end not in long[batch["completion_mask"][1].bool()].tolist()
    pairs = [dw.Pair(f"p{k}", *row) for k, row in enumerate(rows)]
    texts = [pair_texts(pair) for pair in pairs]
    made_rows = encode_all(Chat(made), texts, 1000, 1000)[0]
    said = {
        issue.what.partition(" pairs ")[2]: list(issue.rows)
        for issue in module._trl_issues(Chat(made), made_rows, texts, 40)
    }
    assert said[TRL_DOES["cuts"][0]] == ["p1"] and said[TRL_DOES["drops"][0]] == ["p2"]


def did(chat: Chat, prompt, chosen: str, rejected: str) -> set[str]:
    texts = [("r", prompt, (chosen, rejected))]
    issues = module._trl_issues(chat, encode_all(chat, texts, 1000, 1000)[0], texts, 1000)
    return {key for key, (what, _) in TRL_DOES.items() if any(issue.what.endswith(what) for issue in issues)}


def test_each_kind_of_difference_is_found_and_none_where_there_is_none() -> None:
    headers, chatml = Chat(tokenizer(HEADERS, bos=True)), Chat(tokenizer(CHATML))
    assert did(headers, "q", "yes", "no") == set()
    assert did(chatml, "q", "yes", "no") == {"tail"}
    assert did(Chat(tokenizer("{{ bos_token }}" + HEADERS, bos=True)), "q", "yes", "no") == {"bos"}
    assert "bos" in did(Chat(tokenizer(CHATML, bos=True)), "q", "yes", "no")
    assert did(headers, "q", "yes", Unfinished("no")) == {"unfinished"}
    opens = Chat(tokenizer(STYLES["strips thinking"][0].chat_template, bos=True))
    assert "prompt" in did(opens, "q", "yes", "no")
    plain = Chat(tokenizer(None))
    assert did(plain, "A:", " yes", " no") == set()
    assert did(plain, "is t", "he", "x") == {"prompt"}  # tokens merge across the join
    assert did(Chat(tokenizer(None), {"join": "\n"}), "A:", "yes", "no") == {"other"}
    assert did(Chat(tokenizer(TURNS, bos=True)), (("system", "s"), ("user", "q")), "yes", "no") == {"fails"}


def test_the_version_is_the_one_that_the_project_tests_with() -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert re.search(rf"^trl=={re.escape(TRL)}\.", pins, re.MULTILINE)


def test_the_output_on_the_page_is_what_the_command_prints() -> None:
    pairs = dw.read_pairs(ROOT / "data" / "labelling" / "python_pairs.jsonl").found
    assert repr(preflight(pairs, "nano", max_tokens=120)) in (ROOT / "docs" / "preflight.md").read_text("utf-8")


def test_no_pairs_are_an_error() -> None:
    with pytest.raises(dw.WorkbenchError, match="needs pairs. Got none"):
        preflight([], "nano")
