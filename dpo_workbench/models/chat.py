"""`Chat`: conversations as token ids, the way the model's own chat template writes them.

The contract: `prompt_ids(prompt) + answer_ids(prompt, answer)` is the beginning of the template's own rendering of the
whole conversation, and `prompt_ids(prompt)` is exactly what generation starts from. `check` reports the rows for which
the template or the tokenizer makes that impossible.
"""

from __future__ import annotations

import os.path
import re
from copy import copy
from datetime import date as Date
from functools import cached_property
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.messages import Prompt, messages_of

PROBLEMS = {  # kinds of problems that `Chat.check` reports
    "prompt": "have a prompt of which the template drops or rewrites a message",
    "answer": "are written with changed white space or thinking; training uses what the template writes",
    "thinking": "do not close the thinking block that the prompt opens",
    "special": "contain a special token, or their prompt does, which is not read as text",
    "join": "begin with a token that would merge with the prompt's last one; training keeps them apart",
    "contract": "are written differently in a whole conversation; training continues the prompt",
    "end": "get an end token that the template does not write",
}
PLAIN = (  # of models that have no template: a prompt of one turn, and the answer right after it
    "{% if messages[0].role != 'user' or messages | length > 2 %}{{ raise_exception('a model without a chat template "
    "must get a prompt of one turn. Write the turns as one text.') }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{{ join if loop.first else eos_token }}{% endfor %}"
)
MARK = "9071370917"  # in place of a message, to see what a template writes around it; no filter changes digits
_OPEN_THINKING = re.compile(r"<(think\w*|reason\w*)>\s*$")


class Chat:
    """A tokenizer together with the model's chat template and its settings.

    Args:
        tokenizer: with or without a chat template.
        template: arguments of the template, such as {"enable_thinking": False}; for models without a template `join`,
            the text between prompt and answer.
        generation_config: the model's. Its `eos_token_id` adds tokens that end a generated answer.

    Raises:
        WorkbenchError: an argument that the template does not use, or a template that does not write answers.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: dict[str, Any] | None = None,
        generation_config: Any = None,
    ):
        self.tokenizer, self.arguments = tokenizer, dict(template or {})
        own = tokenizer.get_chat_template() if tokenizer.chat_template else PLAIN
        given = {"messages", "tools", "documents", "add_generation_prompt", *tokenizer.special_tokens_map}
        self.template = own  # what an export saves: the arguments become defaults, which a caller can still change
        for name, value in self.arguments.items():
            if name in given or not name.isidentifier() or not re.search(rf"\b{name}\b", own):
                raise WorkbenchError(f"`template` must hold arguments that the chat template uses. Got {name!r}.")
            new = f"{{%- set {name} = {name} if {name} is defined else {value!r} %}}\n"
            self.template = new + self.template
        # A template that prints the date always prints this one (ISO), so prompts stay the same after midnight.
        self.date = Date.today().isoformat() if "strftime_now" in own else None
        ends = getattr(generation_config, "eos_token_id", None)
        listed = {tokenizer.eos_token_id, *(ends if isinstance(ends, (list, tuple)) else [ends])} - {None, -1}
        added, unknown = tokenizer.added_tokens_decoder, {tokenizer.unk_token_id} - listed
        self._special = ({i for i, t in added.items() if t.special} | set(tokenizer.all_special_ids)) - unknown
        marks = self._special | ({i for i, t in added.items() if t.content.strip()} - unknown)
        plain, full = self._encode(MARK), tokenizer(MARK)["input_ids"]
        at = next((k for k in range(len(full)) if full[k : k + len(plain)] == plain), 0)
        self._prefix = full[:at]  # what the tokenizer puts in front of every text: BOS, or nothing
        self.end_id, self.end_from = self._find_end(listed, marks)
        self.stop_ids: list[int] = sorted({self.end_id, *listed})  # each of them ends a generated answer

    @property
    def settings(self) -> dict[str, Any]:
        """What a run records about the template."""
        return {"template": self.arguments, "date": self.date}

    def dated(self, date: str | None) -> Chat:
        """The same with another date, where the template prints one and a date is given."""
        if self.date is None or date in (None, self.date):
            return self
        other = copy(self)
        other.date = date
        return other

    def prompt_text(self, prompt: Prompt) -> str:
        """The prompt as the template writes it, up to where the answer starts."""
        return self._render(self._messages(prompt), generate=True) + self._header

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids up to where the answer starts: what generation starts from."""
        ids = self._encode(self.prompt_text(prompt))
        return ids if ids[: len(self._prefix)] == self._prefix else self._prefix + ids

    def answer_ids(self, prompt: Prompt, answer: str, finished: bool = True) -> list[int]:
        """Token ids of an answer to that prompt, as the template writes it, and its end token.

        An unfinished answer, which was cut off at a limit, is taken as it is and gets no end token.
        """
        body = self._body(prompt, answer) if finished else None
        ids = self._after(self.prompt_text(prompt), answer if body is None else body)
        return [*ids, self.end_id] if finished else ids

    def answer_text(self, prompt_ids: list[int], ids: list[int]) -> str:
        """The answer that was generated as `ids` after `prompt_ids`: the reverse of `answer_ids`.

        It is decoded after its prompt, because a SentencePiece tokenizer drops the space that a text begins with.
        """
        finished = bool(ids) and ids[-1] in self.stop_ids
        text = self._decode(prompt_ids + ids[: len(ids) - finished])[len(self._decode(prompt_ids)) :]
        if finished:
            text = text.removeprefix(self._head).removesuffix(self._lead)
        for token in self.tokenizer.convert_ids_to_tokens(sorted(self._special.intersection(ids))):
            text = text.replace(token, "")
        return text

    def check(self, prompt: Prompt, answer: str) -> list[tuple[str, str]]:
        """What template and tokenizer do to a prompt and a finished answer, as (kind, detail); see PROBLEMS."""
        messages, start, body = self._messages(prompt), self.prompt_text(prompt), self._body(prompt, answer)
        texts = [m["content"] for m in messages]
        found = [("prompt", f"{_short(text)} is not in it") for text in texts if text.strip() not in start]
        if body is not None and body != answer:
            found.append(("answer", f"{_short(answer)} is written as {_short(body)}"))
        if (opened := _OPEN_THINKING.search(start)) and f"</{opened[1]}>" not in answer:
            found.append(("thinking", f"the prompt ends with <{opened[1]}>"))
        for text in (*texts, answer):
            special = [i for i in self._encode(text) if i in self._special]
            found += [("special", f"{self.tokenizer.decode([i])!r} in {_short(text)}") for i in special[:1]]
        ours, whole = self._encode(start), self._encode(self._render(messages, answer))
        ours += self.answer_ids(prompt, answer)
        if self.end_from != "template":
            ours = ours[:-1]
            found.append(("end", f"{self.tokenizer.decode([self.end_id])!r}, from {self.end_from}"))
        if (same := len(os.path.commonprefix([ours, whole]))) < len(ours):
            kind = "join" if self._decode(whole).startswith(self._decode(ours)) else "contract"
            differ = [_short(self._decode(ids[same:])) for ids in (whole, ours)]
            found.append((kind, f"{differ[0]} where training has {differ[1]}"))
        return found

    def _messages(self, prompt: Prompt) -> list[dict[str, str]]:
        """The messages as the model can take them: system text in the first user turn if there is no such role."""
        messages = messages_of(prompt)
        system = [m["content"] for m in messages if m["role"] == "system"]
        if not system or self.has_system_role:
            return messages
        rest = [m for m in messages if m["role"] != "system"]
        first = next(m for m in rest if m["role"] == "user")
        first["content"] = "\n\n".join([*filter(str.strip, system), first["content"]])
        return rest

    @cached_property
    def has_system_role(self) -> bool:
        """True if the template writes a system message; said once if it does not."""
        try:
            asked = [{"role": "system", "content": MARK}, {"role": "user", "content": "x"}]
            found = MARK in self._render(asked, generate=True)
        except WorkbenchError:
            found = False
        if not found:
            print("This model has no system role: system text is put in front of the first user turn.")
        return found

    def _render(self, messages: list[dict[str, str]], answer: str | None = None, generate: bool = False) -> str:
        messages = messages if answer is None else [*messages, {"role": "assistant", "content": answer}]
        template = self.template
        if self.date:  # a macro in place of transformers' `strftime_now`, which always takes the clock's time
            day = Date.fromisoformat(self.date)
            parts = {c: day.strftime(f"%{c}") for c in "aAbBdejmyYHIMSp"} | {"-d": str(day.day), "-m": str(day.month)}
            written = "{{ format" + "".join(f"|replace('%{c}', {text!r})" for c, text in parts.items()) + " }}"
            template = "{%- macro strftime_now(format) %}" + written + "{%- endmacro %}\n" + template
        options = {"chat_template": template, "tokenize": False, "add_generation_prompt": generate}
        try:
            return self.tokenizer.apply_chat_template(messages, **options)
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            roles = ", ".join(m["role"] for m in messages)
            raise WorkbenchError(f"The chat template can't write the turns {roles}: {error}") from error

    def _find_end(self, listed: set[int], marks: set[int]) -> tuple[int, str]:
        """The token that ends an answer, and where it was found. Also sets what the template writes around it."""
        asked = [{"role": "user", "content": "x"}]
        before, mark, self._tail = self._render(asked, MARK).rpartition(MARK)
        if not mark:
            raise WorkbenchError("A chat template must write assistant messages. This one drops or changes them.")
        start = self._render(asked, generate=True)
        self._head, self._lead, self._header = (before[len(start) :] if before.startswith(start) else ""), "", ""
        if self._head.strip() and start == self._render(asked):  # a template without a generation prompt gets one
            self._header = self._head.rstrip(" ")
            self._head = self._head[len(self._header) :]
        if ends := [i for i in self._encode(self._tail) if i in marks]:
            lead, token, _ = self._tail.partition(self.tokenizer.convert_ids_to_tokens(ends[0]))
            self._lead = lead if token else ""
            return ends[0], "template"
        # Some models (GLM) end an answer with the token that opens the next turn.
        follows = self._render([*asked, {"role": "assistant", "content": MARK}, *asked]).rpartition(MARK)[2]
        ends = [i for i in self._encode(follows) if i in marks][:1]
        if listed.intersection(ends):
            return ends[0], "the next turn"
        if self.tokenizer.eos_token_id is None:
            raise WorkbenchError("A tokenizer must have an end token. Set eos_token in tokenizer_config.json.")
        return self.tokenizer.eos_token_id, "eos_token"

    def _body(self, prompt: Prompt, answer: str) -> str | None:
        """The answer as the template writes it between prompt and end token; None if that can't be told.

        Some templates move the system text once an answer follows. The last turn alone then shows how they write it.
        """
        messages = self._messages(prompt)
        for said in (messages, messages[-1:]):
            start, whole = self._render(said, generate=True) + self._header, self._render(said, answer)
            if whole.startswith(start) and whole.endswith(self._tail):
                return whole[len(start) : len(whole) - len(self._tail)] + self._lead
        return None

    def _after(self, start: str, body: str) -> list[int]:
        """Ids of `body` that continue the ids of `start` to the text that both give in one piece."""
        first, both = self._encode(start), self._encode(start + body)
        if both[: len(first)] == first:
            return both[len(first) :]
        wanted = self._decode(both)
        # Tokens merge at the join, so `body` is tokenized alone, or after a text that keeps a space from being put in.
        for anchor in ("", self.tokenizer.eos_token or "", "\n", "."):
            lead, ids = self._encode(anchor), self._encode(anchor + body)
            if ids[: len(lead)] == lead and self._decode(first + ids[len(lead) :]) == wanted:
                return ids[len(lead) :]
        return self._encode(body)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:25]} ... {text[-10:]}")
