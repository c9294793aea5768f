"""Messages: how they are read from rows and from calls, and a prompt of several turns as one text for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dpo_workbench.pairs.codes import Refusal, stop

Message = tuple[str, str]  # role (system, user or assistant) and content
Turns = tuple[Message, ...]  # a prompt of several messages, of which the user says the last one
Prompt = str | Sequence[Any]  # what functions take: a text, or messages as dicts with role and content, or as `Turns`

KEYS = ({"role", "content"}, {"from", "value"})  # of a message
_ROLES = {
    **{"system": "system", "developer": "system", "user": "user", "human": "user"},
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt"), "assistant"),
}
_OF_TOOLS = ("tool", "function", "function_call", "observation", "ipython")  # roles
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
NOT_TEXT = ("tools", "tool_calls", "functions", "function_call", *_MEDIA)  # columns that can't be trained on
_NOT_TEXT_IN_MESSAGE = (*NOT_TEXT, "tool_call_id", "reasoning_content", "reasoning", "thinking")


def read_prompt(given: Any, where: str = "") -> str | Turns:
    """A prompt as `Pair` and `Example` hold it: one user message as its text, several messages as `Turns`.

    `developer` is a newer name of the role `system`. Of a message, only role and content are used.

    Raises:
        WorkbenchError: not a text, nor messages with text only, of which the user says the last one.
    """
    if isinstance(given, str):
        return given
    try:
        return as_prompt(read_messages(given, "prompt"))
    except Refusal as refusal:
        raise stop(refusal.code, refusal.got, f"`{refusal.field}`{where and f' of {where}'}", refusal.fix) from None


def as_prompt(messages: Sequence[Message]) -> str | Turns:
    """The prompt that messages make. Raises Refusal if the last one is not from the user, or empty."""
    role, asked = messages[-1]
    if role != "user":
        raise Refusal("P203", "prompt", role)
    if not asked.strip():
        raise Refusal("P301", "prompt", repr(asked[:9]))
    return asked if len(messages) == 1 else tuple(messages)


def are_messages(value: Any) -> bool:
    """Whether a value is a list that begins with a message, and not other data."""
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, dict) and any(keys <= first.keys() for keys in KEYS)


def read_messages(given: Any, name: str) -> list[Message]:
    """Messages as dicts with `role` and `content`, or `from` and `value`, or as tuples. Raises Refusal."""
    if not isinstance(given, (list, tuple)):
        raise Refusal("P108", name, f"{type(given).__name__}: {given}", "Write text or a list of messages here.")
    if not given:
        raise Refusal("P201", name, "[]")
    found: list[Message] = []
    for k, message in enumerate(given):
        role, content = _message(message, f"{name}[{k}]")
        if found and role == found[-1][0] and role in ("user", "assistant"):
            raise Refusal("P204", f"{name}[{k}].role", f"{role}, {role}")
        found.append((role, content))
    return found


def _message(given: Any, at: str) -> Message:
    message = dict(zip(("role", "content"), given, strict=False)) if isinstance(given, tuple) else given
    if not isinstance(message, dict):
        raise Refusal("P108", at, f"{type(message).__name__}: {message}", "Write text or a list of messages here.")
    check_text_only(message, at, _NOT_TEXT_IN_MESSAGE)
    message = {key: v for key, v in message.items() if v is not None}  # without the columns of other sources
    said = message.get("role", message.get("from"))
    role = _ROLES.get(str(said))
    if role is None:
        raise Refusal("P205" if said in _OF_TOOLS else "P202", f"{at}.role", said)
    content = message.get("content", message.get("value"))
    if isinstance(content, list):  # parts
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        content = "".join(texts) if len(texts) == len(content) > 0 else content
    if not isinstance(content, str):
        raise Refusal("P205", f"{at}.content", content)
    return role, content


def check_text_only(given: Mapping[str, Any], at: str = "", keys: Sequence[str] = NOT_TEXT) -> None:
    """Raise Refusal if a row or a message has tool calls, images or the like; null and empty ones are no fault."""
    for key in keys:
        if key in given and _has_content(given[key]):
            raise Refusal("P205", f"{at}.{key}" if at else key, given[key])


def _has_content(value: Any) -> bool:
    """False for null, for what is empty, and for containers of nothing else: Arrow gives each row all columns."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return any(map(_has_content, value))
    return bool(value) and value not in ("[]", "{}", "null")


def messages_of(prompt: Prompt) -> list[dict[str, str]]:
    """The messages of a prompt as chat templates, servers and files take them. Raises as `read_prompt` does."""
    read = read_prompt(prompt)
    turns = (("user", read),) if isinstance(read, str) else read
    return [{"role": role, "content": content} for role, content in turns]


def prompt_as_text(prompt: str | Turns) -> str:
    """The prompt for people and for checks: several messages below one another, each with its role in front."""
    return prompt if isinstance(prompt, str) else "\n\n".join(f"{role}: {content}" for role, content in prompt)
