"""Prompts and answers out of texts and messages, and where an implicit prompt ends."""

from __future__ import annotations

import math
import os.path
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dpo_workbench.pairs.checks import Refusal

ROLES = ("system", "developer", "user", "assistant", "tool")
IMPLICIT = object()  # in place of a prompt: the answers begin with it
_SHAREGPT = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "chatgpt": "assistant"}
_MARK = re.compile(
    r"(?:^|\n)[#* \t]{0,9}(?:assistant|answer|response|output|completion|sql|code|a)[ \t]?:\*{0,2}[ \t]*\n?", re.I
)
_OPENING = re.compile(r"[ \t]*(?:```\w*|[\[({<]+|<[\w:]+>|SELECT|WITH)[ \t]*", re.I)
_SENTENCE = re.compile(r"[.?!:][\"')\]]*\s+")


@dataclass
class Judged:
    """One prompt with answers in the order of the row, and how good each is: a higher rank is better."""

    prompt: str
    answers: list[str]
    ranks: list[float]
    id: str | None = None
    scored: bool = False  # ranks are scores, not only an order
    grades: list[dict[str, float]] = field(default_factory=list)  # of each answer by person, where several graded it
    beside: dict[str, Any] = field(default_factory=dict)  # other fields of `Pair`
    sides: Sequence[str] = ()  # where the answers stood, when two were shown side by side
    annotator: str = ""
    votes: list[tuple[str, int]] = field(default_factory=list)  # who found which of two answers better
    split: str = ""
    notes: list[tuple[str, str, str]] = field(default_factory=list)  # warnings: code, field, excerpt


def text(value: Any, name: str) -> str:
    """The value if it is text. Raises Refusal."""
    if not isinstance(value, str):
        raise Refusal("P108", name, f"{type(value).__name__}: {value}", "Text is due here.")
    return value


def number(value: Any, name: str, above: float = -math.inf) -> float:
    """A finite number, also one written as text (CSV). Raises Refusal."""
    try:
        if isinstance(value, bool):
            raise ValueError
        found = float(value)
        if not (math.isfinite(found) and found > above):
            raise ValueError
        return found
    except (TypeError, ValueError, OverflowError):
        fix = f"A number{f' above {above:g}' if above > -math.inf else ''} is due here."
        raise Refusal("P108", name, f"{type(value).__name__}: {value}", fix) from None


Turn = tuple[str, str]  # role, content


def messages(value: Any, name: str) -> list[Turn]:
    """Checked turns of a conversation (`role` and `content`, or `from` and `value`). Raises Refusal."""
    if isinstance(value, dict) and "messages" in value:
        value = value["messages"]
    if not isinstance(value, list):
        raise Refusal("P108", name, f"{type(value).__name__}: {value}", "A list of messages is due here.")
    if not value:
        raise Refusal("P201", name, "[]")
    turns: list[Turn] = []
    for k, message in enumerate(value):
        at = f"{name}[{k}]"
        if not isinstance(message, dict):
            raise Refusal("P108", at, f"{type(message).__name__}: {message}", "A message with role and content is due.")
        role = message.get("role", message.get("from"))
        role = _SHAREGPT.get(role, role) if isinstance(role, str) else role
        if role not in ROLES:
            raise Refusal("P202", f"{at}.role", role)
        content = message.get("content", message.get("value"))
        if isinstance(content, list) and content and all(_is_text_part(part) for part in content):
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise Refusal("P205", f"{at}.content", content)
        if turns and role == turns[-1][0] and role in ("user", "assistant"):
            raise Refusal("P204", f"{at}.role", f"{role}, {role}")
        turns.append((role, content))
    return turns


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def conversation(prompt: Any, answers: Sequence[Any], names: Sequence[str]) -> Judged:
    """A prompt (text or messages; IMPLICIT: what two answers share) and answers (text or messages). Raises Refusal."""
    notes: list[tuple[str, str, str]] = []
    turns = None
    if prompt is not IMPLICIT:
        turns = messages(prompt, "prompt") if isinstance(prompt, (list, dict)) else [("user", text(prompt, "prompt"))]
        if turns[-1][0] == "assistant":
            raise Refusal("P203", "prompt", turns[-1][1])
    if turns is None and all(isinstance(a, str) for a in answers):
        cut = split_texts(answers[0], answers[1])
        return Judged(answers[0][:cut], [a[cut:] for a in answers], [1.0, 0.0])
    said = [messages(a, n) if isinstance(a, (list, dict)) else text(a, n) for a, n in zip(answers, names, strict=True)]
    if turns is None:
        turns = _shared([s if isinstance(s, list) else [("assistant", s)] for s in said])
        said = [s[len(turns) :] if isinstance(s, list) else s for s in said]
        if not turns:
            raise Refusal("P310", "prompt", "no message in common")
    elif len(lists := [s for s in said if isinstance(s, list)]) == len(said) == 2:
        shared = _shared(lists)
        turns = shared if shared[-len(turns) :] == turns else turns  # the answers know more of it, a system message
    texts = []
    for value, name in zip(said, names, strict=True):
        if isinstance(value, list):
            value, repeated = _answer(value, turns, name)
            notes += [("P206", name, turns[-1][1])] if repeated else []
        texts.append(value)
    if len(turns) > 1:
        notes.append(("P209", "prompt", ", ".join(role for role, _ in turns)))
    asked = turns[0][1] if len(turns) == 1 else "\n\n".join(f"{role}: {content}" for role, content in turns)
    return Judged(asked, texts, [1.0, 0.0], notes=notes)


def _shared(conversations: Sequence[list[Turn]]) -> list[Turn]:
    first, second = conversations
    n = 0
    while n < min(len(first), len(second)) - 1 and first[n] == second[n]:
        n += 1
    return first[:n]


def _answer(turns: list[Turn], prompt: list[Turn], name: str) -> tuple[str, bool]:
    """The one message of the assistant, and whether the prompt stood before it."""
    if not turns:
        raise Refusal("P201", name, "[]")
    if repeated := len(turns) > 1 and turns[:-1] in (prompt, prompt[-1:]):
        turns = turns[-1:]
    if len(turns) > 1:
        system = any(role in ("system", "developer") for role, _ in turns)
        raise Refusal("P207" if system else "P208", name, ", ".join(role for role, _ in turns))
    if turns[0][0] != "assistant":
        raise Refusal("P207", name, f"{turns[0][0]}: {turns[0][1]}")
    return turns[0][1], repeated


def split_texts(chosen: str, rejected: str) -> int:
    """Where the prompt ends that two texts begin with: never where they begin to differ, never inside a word or a line.

    Within what both share: behind the last mark such as `Answer:` or `### Response:`, else behind the last empty line,
    else behind the last line, else behind the last sentence. A line that only opens (`{`, a fence, `<answer>`,
    `SELECT`) and all that follows belongs to the answers.

    Raises:
        Refusal: nothing in common ends like a prompt.
    """
    shared = os.path.commonprefix([chosen, rejected])
    end = max((m.end() for m in _MARK.finditer(shared)), default=0)
    if not end:
        end = shared.rfind("\n\n") + 2 if "\n\n" in shared else shared.rfind("\n") + 1
        while end and _OPENING.fullmatch(shared, start := shared.rfind("\n", 0, end - 1) + 1, end - 1):
            end = start
    end = end or max((m.end() for m in _SENTENCE.finditer(shared)), default=0)
    if not shared[:end].strip():
        raise Refusal("P310", "prompt", f"in common: {shared[:40]!r}")
    return end
