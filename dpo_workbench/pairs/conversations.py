"""One prompt and its answers, made from texts or lists of messages; where an implicit prompt ends."""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import math
import os.path
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_workbench.pairs.codes import Note, Refusal
from dpo_workbench.pairs.messages import KEYS, Message, Turns, are_messages, as_prompt, check_text_only, read_messages

IMPLICIT = object()  # in place of a prompt: both answers begin with it
SHORT = 4  # an implicit prompt must have at least 1/SHORT of the characters of the longer answer
_OPENING = re.compile(r"[ \t]*(?:```\w*|[\[({<]+|<[\w:]+>|SELECT|WITH)[ \t]*", re.I)
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")  # of a dialogue
_LOOKS_LIKE_MESSAGES = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content|from|value)['"]\s*:""")


@dataclass
class Ranked:
    """One prompt with its answers, in the order of the row, and how good each one is."""

    prompt: str | Turns
    answers: list[str]
    ranks: list[float]  # a higher one is better
    scored: bool = False  # ranks are scores, not only an order
    fields: dict[str, Any] = field(default_factory=dict)  # other fields of `Pair`
    notes: list[Note] = field(default_factory=list)


def text(value: Any, name: str) -> str:
    """The value if it is text. Raises Refusal."""
    if not isinstance(value, str):
        raise Refusal("P108", name, f"{type(value).__name__}: {value}", "Write text here.")
    return value


def number(value: Any, name: str, above: float = -math.inf) -> float:
    """A finite number, also one written as text (CSV). Raises Refusal."""
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and above < float(value) < math.inf:
            return float(value)
    fix = "Write a number here." if above == -math.inf else f"Write a number above {above:g} here."
    raise Refusal("P108", name, f"{type(value).__name__}: {value}", fix)


def _messages(value: Any, speaker: str, name: str) -> list[Message]:
    """The messages of a cell: a list, one message, or an object with `messages`; text is one of `speaker`."""
    if isinstance(value, dict) and "messages" in value:
        check_text_only(value, name)
        value = value["messages"]
    value = [value] if isinstance(value, dict) and value.keys() & {"role", "from"} else value
    return read_messages(value, name) if isinstance(value, list) else [(speaker, text(value, name))]


def conversation(prompt: Any, answers: Sequence[Any], names: Sequence[str]) -> Ranked:
    """A prompt (text, messages, or IMPLICIT) with the answers from the columns `names`, the first one ranked best."""
    notes: list[Note] = []
    prompt, *answers = (decoded(v, n, notes) for v, n in zip((prompt, *answers), ("prompt", *names), strict=True))
    if isinstance(prompt, str) and _TURN.match(prompt) and prompt.rstrip().endswith("\n\nAssistant:"):
        prompt = _turns(prompt)[:-1]
    if prompt is IMPLICIT and all(isinstance(answer, str) and _TURN.match(answer) for answer in answers):
        answers = [_turns(answer) for answer in answers]
    if prompt is IMPLICIT and all(isinstance(answer, str) for answer in answers):
        cut = split_texts(answers[0], answers[1])
        return Ranked(answers[0][:cut], [a[cut:] for a in answers], [1.0, 0.0], notes=notes)
    said = [_messages(answer, "assistant", name) for answer, name in zip(answers, names, strict=True)]
    shared: list[Message] = []  # what both begin with; at least one message of each is left over
    if len(said) == 2:
        both = itertools.takewhile(lambda two: two[0] == two[1], zip(said[0][:-1], said[1][:-1], strict=False))
        shared = [message for message, _ in both]
    if prompt is IMPLICIT:
        if not shared:
            raise Refusal("P208", names[1], "no message in common")
        asked, said = shared, [s[len(shared) :] for s in said]
    else:
        asked = _messages(prompt, "user", "prompt")
        if shared[-len(asked) :] == asked:
            asked = shared  # may contain more than the prompt: a system message, earlier messages
    texts = [_answer(s, asked, name, notes) for s, name in zip(said, names, strict=True)]
    return Ranked(as_prompt(asked), texts, [1.0] + [0.0] * (len(texts) - 1), notes=notes)


def decoded(value: Any, name: str, notes: list[Note]) -> Any:
    """The messages that a text spells out, as JSON or as Python writes a list; any other value as it is."""
    is_text = isinstance(value, str) and _LOOKS_LIKE_MESSAGES.match(value)
    if not is_text or not any(all(key in value for key in keys) for keys in KEYS):
        return value
    found = None
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            found = found or parse(value)
    if found is None:
        raise Refusal("P108", name, value, "Write the messages as a JSON list of objects; this text can't be decoded.")
    if not are_messages(found):
        return value
    notes.append(("P210", name, value))
    return found


def _turns(dialogue: str) -> list[dict[str, str]]:
    """The messages of a dialogue as in HH-RLHF."""
    _, *parts = _TURN.split(dialogue)
    roles = ["user" if part == "Human" else "assistant" for part in parts[::2]]
    return [{"role": role, "content": said.strip()} for role, said in zip(roles, parts[1::2], strict=True)]


def _answer(said: list[Message], prompt: list[Message], name: str, notes: list[Note]) -> str:
    """The text of the one message that is left when the prompt, where it is repeated, is removed."""
    if len(said) > 1 and said[:-1] in (prompt, prompt[-1:]):
        notes.append(("P206", name, prompt[-1][1]))
        said = said[-1:]
    if len(said) > 1 or said[0][0] != "assistant":
        raise Refusal("P207", name, ", ".join(role for role, _ in said))
    return said[0][1]


def split_texts(chosen: str, rejected: str) -> int:
    """The length of the prompt that two texts begin with.

    It ends after the last empty line in what both share, else after the last line break. Lines that only open
    something (`{`, a code fence, `SELECT`) belong to the answers. Raises Refusal, also where the shared beginning may
    be a part of both answers: it has no line break, or it is short compared with the answers.
    """
    for name, value in (("chosen", chosen), ("rejected", rejected)):
        if not value.strip():
            raise Refusal("P301", name, repr(value[:9]))
    if chosen.strip() == rejected.strip():
        raise Refusal("P302", "rejected", rejected)
    shared = os.path.commonprefix([chosen, rejected])
    end = shared.rfind("\n\n") + 2 if "\n\n" in shared else shared.rfind("\n") + 1
    while end and _OPENING.fullmatch(shared, start := shared.rfind("\n", 0, end - 1) + 1, end - 1):
        end = start
    longer = max(len(chosen), len(rejected)) - end
    if not shared[:end].strip() or SHORT * end < longer:
        raise Refusal("P310", "prompt", f"both answers begin with {shared[:40]!r}" if shared else "nothing in common")
    return end
