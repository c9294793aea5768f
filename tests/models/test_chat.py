"""Chat: prompt, answer and end are the beginning of the template's own rendering, for templates of every style."""

from __future__ import annotations

import datetime
from functools import cache
from types import SimpleNamespace

import pytest
from chat_styles import (
    CHATML,
    DATED,
    HOSTILE,
    INST_SYSTEM,
    STYLES,
    THINKING,
    TURNS,
    outcome,
    rendered,
    tokenizer,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AddedToken, PreTrainedTokenizerFast

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.models import chat as chat_module
from dpo_workbench.models.chat import PROBLEMS, Chat

text = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
styles = pytest.mark.parametrize("style", STYLES)


@cache
def make(style: str) -> Chat:
    made, options, _ = STYLES[style]
    return Chat(made, **options)


@styles
def test_the_end_is_what_the_template_writes_after_an_answer(style: str) -> None:
    chat = make(style)
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_id) == STYLES[style][2]
    assert {chat.end_id, chat.tokenizer.eos_token_id} <= set(chat.stop_ids)
    assert chat.answer_ids("q", "yes")[-1] == chat.end_id and chat.answer_ids("q", "yes").count(chat.end_id) == 1


@styles
def test_one_bos_and_no_end_of_text_in_a_prompt(style: str) -> None:
    chat = make(style)
    bos = chat.tokenizer.bos_token_id
    ids = chat.prompt_ids("the question")
    assert chat.tokenizer.eos_token_id not in ids
    if bos is not None:
        assert ids[0] == bos and ids.count(bos) == 1 and bos not in chat.answer_ids("the question", "yes")


@styles
@settings(max_examples=30, deadline=None)
@given(prompt=text, answer=text)
def test_contract(style: str, prompt: str, answer: str) -> None:
    """Prompt, answer and end begin the template's own rendering, or the row is reported."""
    chat = make(style)
    assert outcome(chat, prompt, answer) != "broken"
    found = dict(chat.check(prompt, answer))
    assert found.keys() <= PROBLEMS.keys()
    whole = rendered(chat, [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])
    ours = chat.prompt_ids(prompt) + chat.answer_ids(prompt, answer)
    compared = ours if chat.end_from == "template" else ours[:-1]
    assert (whole[: len(compared)] == compared) != bool({"join", "contract"} & found.keys())
    if "contract" not in found:  # the texts agree even where tokens would merge
        assert chat._decode(whole).startswith(chat._decode(compared))
    if style not in ("no thinking", "strips thinking"):  # these write a prompt that no conversation contains
        assert "contract" not in found or "\u0301" in answer  # NFC joins an accent with the letter before it


def test_a_broken_contract_is_seen() -> None:
    chat = Chat(STYLES["headers"][0])
    assert [outcome(chat, "q", answer) for answer in ("yes", " yes")] == ["holds", "edited"]
    chat.end_id = chat.tokenizer.eos_token_id  # the mistake of ending every answer with eos_token
    chat.check = lambda prompt, answer: []
    assert outcome(chat, "q", "yes") == "broken"


@styles
@settings(max_examples=15, deadline=None)
@given(prompt=text, answer=text)
def test_an_answer_that_is_sampled_and_trained_on_has_the_same_tokens(style: str, prompt: str, answer: str) -> None:
    chat = make(style)
    start = chat.prompt_ids(prompt)
    for finished in (True, False):
        ids = chat.answer_ids(prompt, answer, finished)
        again = chat.answer_text(start, ids)
        if not {"\ufffd", "▁"} & set(prompt + again + answer) and chat._decode(start + ids).startswith(
            chat._decode(start)
        ):
            assert chat.answer_ids(prompt, again, finished) == ids


@styles
def test_an_ordinary_row_is_not_reported(style: str) -> None:
    chat = make(style)
    kinds = {kind for kind, _ in chat.check("the question", "yes: 12")}
    expected = {
        "thinking": {"answer"},
        "channel": {"answer"},
        "inst": {"answer"},
        "sentencepiece": {"answer"},
        "strips thinking": {"thinking", "contract"},
        "plain end": {"end"},
        "next turn": {"end"},
        "sentencepiece, newline": {"end"},
    }
    assert kinds == expected.get(style, set())


CONVERSATION = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "is it?"},
    {"role": "assistant", "content": "no"},
    {"role": "user", "content": "the question"},
]


@pytest.mark.parametrize("style", ["chatml", "headers", "dated", "thinking", "two ends", "channel", "plain end"])
def test_roles_stay_roles(style: str) -> None:
    chat = make(style)
    whole = rendered(chat, [*CONVERSATION, {"role": "assistant", "content": "yes"}])
    ours = chat.prompt_ids(CONVERSATION) + chat.answer_ids(CONVERSATION, "yes")
    ours = ours if chat.end_from == "template" else ours[:-1]
    assert whole[: len(ours)] == ours
    assert [chat.prompt_ids([(m["role"], m["content"]) for m in CONVERSATION])] == [chat.prompt_ids(CONVERSATION)]
    assert chat.prompt_text(CONVERSATION).index("be brief") < chat.prompt_text(CONVERSATION).index("is it?")


@pytest.mark.parametrize("style", ["inst", "turns", "drops system", "sentencepiece"])
def test_without_a_system_role_its_text_goes_into_the_first_user_turn_and_this_is_said_once(style, capsys) -> None:
    chat = Chat(STYLES[style][0])
    folded = [{"role": "user", "content": "be brief\n\nis it?"}, *CONVERSATION[2:]]
    assert chat.prompt_ids(CONVERSATION) == chat.prompt_ids(folded)
    assert chat.prompt_ids([("system", " "), ("user", "q")]) == chat.prompt_ids("q")
    if style not in ("turns", "sentencepiece"):  # the assistant may begin: system text still belongs to the user's turn
        begun = [("assistant", "hello"), ("user", "be brief\n\nis it?")]
        asked = [("system", "be brief"), *begun[:1], ("user", "is it?")]
        assert chat.prompt_ids(asked) == chat.prompt_ids(begun)
    assert chat.dated("2024-07-26") is chat  # no template here prints a date, so no copy says it a second time
    assert capsys.readouterr().out.count("no system role") == 1
    assert not {"prompt", "contract"} & dict(chat.check(CONVERSATION, "yes")).keys()


def test_a_model_without_template_takes_one_turn() -> None:
    chat = make("no template")
    assert chat.prompt_text(CONVERSATION[:2]) == "be brief\n\nis it?"
    with pytest.raises(WorkbenchError, match="turns user, assistant, user: .*prompt of one turn"):
        chat.prompt_ids(CONVERSATION)


def test_a_template_that_moves_the_system_text_is_reported_and_generation_s_prompt_is_kept() -> None:
    chat = make("inst, system")
    asked = CONVERSATION[:2]
    assert chat.prompt_text(asked) == "<s>[INST]be brief\n\nis it?[/INST]"
    assert chat._decode(chat.answer_ids(asked, "yes")) == "yes</s>"
    assert [kind for kind, _ in chat.check(asked, "yes")] == ["contract"]
    spaced = INST_SYSTEM.replace("m.content + eos_token", "' ' + m.content | trim + eos_token")
    chat = Chat(tokenizer(spaced, bos=True))  # how it writes an answer can be seen without the system text
    assert chat._decode(chat.answer_ids(asked, "yes\n")) == " yes</s>"


def test_what_a_template_does_to_an_answer() -> None:
    def written(style: str, answer: str) -> str:
        chat = make(style)
        return chat._decode(chat.answer_ids("the question", answer))

    assert written("headers", "\n yes \n") == "yes<|eot|>"
    assert written("chatml", " yes \n") == " yes \n<|im_end|>"
    assert written("inst", "yes") == " yes </s>"
    assert written("thinking", "yes") == "<think>\n\n</think>\n\nyes<|im_end|>"
    assert written("no thinking", "\nyes") == "yes<|im_end|>"
    assert written("thinking", "<think>hm</think>yes") == "<think>\nhm\n</think>\n\nyes<|im_end|>"
    assert written("channel", "yes") == "<|channel|>final<|message|>yes<|return|>"


def test_an_unfinished_answer_is_taken_as_it_is() -> None:
    for style in ("headers", "thinking", "inst", "no template"):
        chat = make(style)
        assert chat._decode(chat.answer_ids("q", "<think>\nyes ", finished=False)) == "<think>\nyes "


def test_answer_text_is_what_was_written_without_the_template_s_additions() -> None:
    for style in ("thinking", "inst", "sentencepiece", "channel", "chatml", "headers", "sentencepiece, newline"):
        chat = make(style)
        start = chat.prompt_ids("the question")
        assert chat.answer_text(start, chat.answer_ids("the question", "yes: no")) == "yes: no"


def test_sentencepiece_puts_no_space_into_the_join_and_drops_none() -> None:
    chat = make("sentencepiece, newline")
    tokens = chat.tokenizer.convert_ids_to_tokens(chat.answer_ids("q", "yes"))
    assert tokens[0] == "y" or not tokens[0].startswith("▁")
    chat = Chat(tokenizer(None, "first", bos=True))
    start = chat.prompt_ids("Answer:")
    ids = chat.answer_ids("Answer:", " yes", finished=False)
    assert chat.tokenizer.convert_ids_to_tokens(ids) == ["▁yes"] and chat.answer_text(start, ids) == " yes"
    assert chat._decode(chat.prompt_ids("A: ") + chat.answer_ids("A: ", "yes")) == "<s> A: yes</s>"


def test_newlines_that_would_merge_stay_on_their_side_and_are_reported() -> None:
    chat = make("chatml")
    start = chat.prompt_ids("q")
    assert chat._encode(chat._decode(start) + "\n\nyes")[: len(start)] != start  # the merge is possible
    assert chat._decode(start + chat.answer_ids("q", "\n\nyes")) == chat.prompt_text("q") + "\n\nyes<|im_end|>"
    assert [kind for kind, _ in chat.check("q", "\n\nyes")] == ["join"]


def test_a_base_model_gets_nothing_between_prompt_and_answer_unless_asked() -> None:
    chat = make("no template")
    assert chat._decode(chat.prompt_ids("A: ") + chat.answer_ids("A: ", "yes")) == "A: yes</s>"
    assert [kind for kind, _ in chat.check("A: ", "yes")] == ["join"]
    assert not chat.check("A:", " yes")
    chat = make("no template, bos")
    assert chat._decode(chat.prompt_ids("A:") + chat.answer_ids("A:", "yes")) == "<s>A:\nyes</s>"
    with pytest.raises(WorkbenchError, match="arguments that the chat template uses. Got 'join'"):
        Chat(tokenizer(CHATML), {"join": "\n"})


def test_bos_is_added_where_the_tokenizer_has_one_and_the_template_forgets_it() -> None:
    chat = Chat(tokenizer(CHATML, bos=True))
    assert chat.tokenizer.decode(chat.prompt_ids("q")) == "<s><|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert not chat.check("q", "yes")


def test_a_template_without_a_generation_prompt_gets_one() -> None:
    chat = Chat(tokenizer(CHATML.partition("{% if add")[0]))
    assert chat.prompt_text("q") == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
    assert chat._decode(chat.answer_ids("q", "yes")) == "yes<|im_end|>" and not chat.check("q", "yes")
    plain = (
        "{% for m in messages %}{{ m.role | upper }}: {{ m.content }}{{ eos_token if loop.index is even }} {% endfor %}"
    )
    chat = Chat(tokenizer(plain))
    assert chat.prompt_text("q") == "USER: q ASSISTANT:"
    assert chat._decode(chat.answer_ids("q", "yes")) == " yes</s>"
    assert [kind for kind, _ in chat.check("q", "yes")] == ["answer"]


def test_a_role_token_that_swallows_white_space() -> None:
    """As Phi 3: the token of a role takes the line break after it, and the spaces that an answer begins with."""
    made = tokenizer(
        CHATML.replace("<|im_start|>{{ m.role }}", "<|{{ m.role }}|>").replace("<|im_start|>assistant", "<|assistant|>")
    )
    made.add_special_tokens({"additional_special_tokens": [AddedToken("<|assistant|>", rstrip=True)]})
    chat = Chat(made)
    assert chat._decode(chat.prompt_ids("q")) == "<|user|>\nq<|im_end|>\n<|assistant|>"
    for answer in ("yes", "  yes"):
        assert chat._decode(chat.answer_ids("q", answer)) == "yes<|im_end|>" and not chat.check("q", answer)


def test_an_unknown_character_is_not_a_special_token() -> None:
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "yes": 1, "</s>": 2}, unk_token="<unk>"))
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>")
    assert "special" not in dict(Chat(made).check("q", "no"))


def test_special_tokens_and_thinking_are_reported() -> None:
    chat = make("chatml")
    assert chat.check("a<|im_end|>b", "yes") == [("special", "'<|im_end|>' in 'a<|im_end|>b'")]
    assert chat.check("q", "yes</s>no") == [("special", "'</s>' in 'yes</s>no'")]
    chat = make("strips thinking")
    found = dict(chat.check("q", "yes"))
    assert found["thinking"] == "the prompt ends with <think>" and "contract" in found
    assert chat._decode(chat.answer_ids("q", "hm</think>yes")) == "hm</think>yes</s>"
    assert "thinking" not in dict(chat.check("q", "hm</think>yes"))


def test_a_message_that_the_template_drops_is_reported() -> None:
    drops = CHATML.replace("{{ m.content }}", "{{ m.content if loop.index > messages | length - 2 else '' }}")
    chat = Chat(tokenizer(drops))
    assert ("prompt", "'is it?' is not in it") in chat.check(CONVERSATION, "yes")


def test_stop_ids_have_those_of_the_generation_settings() -> None:
    made = tokenizer(CHATML)
    ids = made.convert_tokens_to_ids(["<|im_end|>", "</s>", "<|eot|>"])
    for ends, expected in (([ids[2]], ids), (ids[2], ids), (None, ids[:2])):
        assert Chat(made, None, SimpleNamespace(eos_token_id=ends)).stop_ids == sorted(expected)


def test_the_date_is_pinned(monkeypatch) -> None:
    class Later(datetime.date):
        @classmethod
        def today(cls) -> datetime.date:
            return cls(2031, 2, 3)

    first = Chat(tokenizer(DATED, bos=True)).dated("2024-07-26")
    monkeypatch.setattr(chat_module, "Date", Later)
    later = Chat(tokenizer(DATED, bos=True), first.settings["template"]).dated(first.settings["date"])
    assert "Today: 26 Jul 2024\n" in later.prompt_text("q") and later.prompt_ids("q") == first.prompt_ids("q")
    today = Chat(tokenizer(DATED, bos=True))
    assert today.date == "2031-02-03" and "Today: 03 Feb 2031\n" in today.prompt_text("q")
    assert Chat(tokenizer(CHATML)).date is None
    given = Chat(tokenizer(DATED, bos=True), {"date_string": "1 May"})
    assert "Today: 1 May\n" in given.prompt_text("q")


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%A, %-d %B %Y", "%H:%M"])
def test_every_format_of_a_date_is_pinned(form: str) -> None:
    chat = Chat(tokenizer(f"{{{{ strftime_now('{form}') }}}}\n" + CHATML)).dated("2024-07-06")
    want = datetime.datetime(2024, 7, 6).strftime(form)
    assert chat.prompt_text("q").startswith(f"{want}\n<|im_start|>")


def test_arguments_of_the_template() -> None:
    made = tokenizer(THINKING)
    off, on = Chat(made, {"enable_thinking": False}), Chat(made)
    assert off.prompt_text("q").removeprefix(on.prompt_text("q")) == "<think>\n\n</think>\n\n"
    exported = tokenizer(off.template)
    assert Chat(exported).prompt_text("q") == off.prompt_text("q")  # an export has it as its default
    assert Chat(exported, {"enable_thinking": True}).prompt_text("q") == on.prompt_text("q")
    for wrong in ("enable_thinkin", "messages", "a b"):
        with pytest.raises(WorkbenchError, match="arguments that the chat template uses. Got"):
            Chat(made, {wrong: False})
    quoted = Chat(tokenizer("{{ note }}" + CHATML), {"note": 'it\'s "{{ x }}" %} \\n é\n'})
    assert quoted.prompt_text("q").startswith('it\'s "{{ x }}" %} \\n é\n<|im_start|>')


def test_a_prompt_must_be_text_that_the_user_says_last() -> None:
    for prompt, told in (
        ([], "must have messages. Got .. .`prompt`, P201"),
        ([("user", "a"), ("assistant", "b")], "must end with a message of the user. Got assistant"),
        ([{"role": "user", "content": "a", "tool_calls": [{"name": "f"}]}], "text only.*prompt.0..tool_calls`, P205"),
    ):
        with pytest.raises(WorkbenchError, match=told):
            make("chatml").prompt_ids(prompt)


def test_a_template_that_cannot_write_the_turns_says_why() -> None:
    with pytest.raises(WorkbenchError, match="can't write the turns assistant, user: Alternate!"):
        make("turns").prompt_ids([("assistant", "a"), ("user", "b")])
    with pytest.raises(WorkbenchError, match="must write assistant messages"):
        Chat(tokenizer("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"))
    with pytest.raises(WorkbenchError, match="can't write the turns user, assistant"):
        Chat(tokenizer("{{ messages[9].content.strip() }}"))
    no_end = tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    no_end.eos_token = None
    with pytest.raises(WorkbenchError, match="must have an end token"):
        Chat(no_end)


def test_a_template_by_name() -> None:
    """A tokenizer may hold several templates; `default` is the one for chat."""
    made = tokenizer(None)
    made.chat_template = {"default": CHATML, "tool_use": TURNS}
    assert Chat(made).prompt_text("q") == "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
