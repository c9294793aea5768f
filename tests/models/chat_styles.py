"""Small tokenizers with chat templates of every style, and what the contract of `Chat` says about a text.

Tests and benchmarks/chat_contract.py import this module.
"""

from __future__ import annotations

import datetime
import json
from functools import cache
from types import SimpleNamespace

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dpo_workbench.models.chat import Chat

CORPUS = [
    "the answer to the question is yes: no, 12 34\n\n\nand so on.\n\n\n\n",
    "be brief\n\nA: yes",
    "assistant\n\nyes\n",
    " yes  yes   yes\n\n\n",
    "user\nmodel\n",
    "system\n",
    "Question: is it? Answer: yes",
] * 20

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (  # trims, as Llama 3 does
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m.role }}<|/head|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
DATED = (
    "{{ bos_token }}{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "<|head|>system<|/head|>\n\nToday: {{ date_string }}\n\n"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% set messages = messages[1:] %}{% endif %}<|eot|>"
    + HEADERS.removeprefix("{{ bos_token }}")
)
INST = (  # spaces around an answer, and no sign for its start
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }} {{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant, please.') }}{% endif %}{% endfor %}"
)
INST_SYSTEM = (  # system text goes into the turn that is last, which is the user's only while there is no answer
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}"
    "{% endif %}{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]"
    "{% if loop.last and system %}{{ system + '\n\n' }}{% endif %}{{ m.content }}[/INST]"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Alternate!') }}"
    "{% endif %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
    "{% set parts = m.content.split('</think>') %}{% set said = parts[-1].lstrip('\n') %}<think>\n"
    "{{ parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '' }}\n</think>\n\n{{ said }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
STRIPS_THINKING = (  # and opens it in the prompt, as reasoning models do
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}<|assistant|>"
    "{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)
DROPS_SYSTEM = CHATML.replace(
    "<|im_start|>{{ m.role", "{% if m.role == 'system' %}{% continue %}{% endif %}<|im_start|>{{ m.role"
)
NEXT_TURN = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
PLAIN_END = (
    "{{ bos_token }}{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
FIRST_OF_TWO = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"  # as Phi 3: two end tokens
CHANNEL = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
    "{{ m.content }}{{ '<|return|>' if loop.last and m.role == 'assistant' else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
SPECIAL = sorted(
    "<|im_start|> <|im_end|> <|head|> <|/head|> <|eot|> [INST] [/INST] <start_of_turn> <end_of_turn> <|user|> "
    "<|assistant|> <|start|> <|channel|> <|message|> <|return|> <|end|>".split()
)


@cache
def _byte_level() -> str:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [  # newlines of one run are one piece, so that they merge, as in Qwen2.5
            pre_tokenizers.Split(Regex(r"\n+|[^\S\n]?[^\s]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.normalizer = normalizers.NFC()
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(CORPUS, trainer)
    return raw.to_str()


@cache
def _sentence_piece(scheme: str) -> str:
    """As in Llama 2: a space is put in front of the text (`first`), or of every piece between special tokens too."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=150, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    vocab = {token: k for k, token in enumerate(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))])}
    for token in model["vocab"]:
        if token != "\n" and "\n" not in token:
            vocab.setdefault(token, len(vocab))
    merges = [tuple(merge) for merge in model["merges"] if "\n" not in "".join(merge)]
    raw = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return raw.to_str()


def tokenizer(template: str | None, kind: str = "bytes", bos: bool = False, adds_eos: bool = False):
    """A small tokenizer with this template; `adds_eos` appends </s> to every text by itself."""
    raw = Tokenizer.from_str(_byte_level() if kind == "bytes" else _sentence_piece(kind))
    raw.add_special_tokens(["<s>", "</s>", *SPECIAL])
    names = {"bos_token": "<s>"} if bos else {}
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", **names)
    made.add_tokens(["<think>", "</think>"])
    if bos or adds_eos:
        single = f"{'<s> ' * bos}$A{' </s>' * adds_eos}"
        ids = [(token, made.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
        made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    made.chat_template = template
    return made


STYLES = {  # name: (tokenizer, arguments of Chat, end token)
    "chatml": (tokenizer(CHATML), {}, "<|im_end|>"),
    "headers": (tokenizer(HEADERS, bos=True), {}, "<|eot|>"),
    "dated": (tokenizer(DATED, bos=True), {}, "<|eot|>"),
    "inst": (tokenizer(INST, bos=True), {}, "</s>"),
    "inst, system": (tokenizer(INST_SYSTEM, bos=True), {}, "</s>"),
    "turns": (tokenizer(TURNS, bos=True), {}, "<end_of_turn>"),
    "thinking": (tokenizer(THINKING), {}, "<|im_end|>"),
    "no thinking": (tokenizer(THINKING), {"template": {"enable_thinking": False}}, "<|im_end|>"),
    "strips thinking": (tokenizer(STRIPS_THINKING, bos=True), {}, "</s>"),
    "drops system": (tokenizer(DROPS_SYSTEM), {}, "<|im_end|>"),
    "two ends": (tokenizer(FIRST_OF_TWO), {}, "<|im_end|>"),
    "channel": (tokenizer(CHANNEL), {}, "<|return|>"),
    "plain end": (tokenizer(PLAIN_END, bos=True), {}, "</s>"),
    "next turn": (
        tokenizer(NEXT_TURN),
        {"generation_config": SimpleNamespace(eos_token_id=[])},  # filled in below
        "<|user|>",
    ),
    "appends eos": (tokenizer(CHATML, adds_eos=True), {}, "<|im_end|>"),
    "appends eos, no template": (tokenizer(None, bos=True, adds_eos=True), {}, "</s>"),
    "no template": (tokenizer(None), {}, "</s>"),
    "no template, bos": (tokenizer(None, bos=True), {"template": {"join": "\n"}}, "</s>"),
    "sentencepiece": (tokenizer(INST, "first", bos=True), {}, "</s>"),
    "sentencepiece, newline": (tokenizer(PLAIN_END, "first", bos=True), {}, "</s>"),
    "sentencepiece, always": (tokenizer(TURNS, "always", bos=True), {}, "<end_of_turn>"),
    "sentencepiece, no template": (tokenizer(None, "first", bos=True), {"template": {"join": "\n"}}, "</s>"),
}
_user_id = STYLES["next turn"][0].convert_tokens_to_ids("<|user|>")
STYLES["next turn"][1]["generation_config"].eos_token_id = [_user_id]
HOSTILE = [
    *("yes", " yes", "yes ", "yes\n", "\nyes", "\n\n\nyes\n\n\n", "\t x", "  ", "1", "'s", "\r\n", "\x00"),
    *("é", "e\u0301", "\u0301x", "🙂", "\u2028", "\u00a0", "\u200b", "ﬁ", "▁", "▁yes", "yes." * 50),
    *("{{ 1 }}", "{% if %}", "[INST", "<|im_", "</think>", "<think>\nhm\n</think>\n\nyes", "<think>hm"),
]


def rendered(chat: Chat, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of the whole conversation by transformers' own call, with the date of the chat."""
    if not chat.tokenizer.chat_template:
        ids = chat._encode(
            messages[0]["content"] + chat.arguments.get("join", "") + messages[1]["content"] + chat.tokenizer.eos_token
        )
        return chat._prefix + ids
    extra = {"date_string": f"{datetime.date.fromisoformat(chat.date):%d %b %Y}"} if chat.date else {}
    return chat.tokenizer.apply_chat_template(messages, return_dict=False, **chat.arguments, **extra)


def outcome(chat: Chat, prompt: str, answer: str) -> str:
    """Whether prompt, answer and end are the beginning of what transformers makes of the whole conversation.

    Returns:
        "holds"; "edited" where they are, with an answer that the template changed and `check` reports; "reported" where
        they are not and `check` says so; "broken" for anything else.
    """
    ids = chat.answer_ids(prompt, answer)
    ours = chat.prompt_ids(prompt) + (ids if chat.end_from == "template" else ids[:-1])
    whole = rendered(chat, [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}])
    found = {kind for kind, _ in chat.check(prompt, answer)}
    if whole[: len(ours)] != ours:
        return "reported" if {"join", "contract"} & found else "broken"
    return "edited" if "answer" in found else "holds"
