"""Pairs in other people's formats: TRL's, OpenAI's and Together's, one JSON object a line, each line read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.pair import Pair

LAYOUTS = ("trl", "openai", "together")
OPENAI_MINIMUM = 10  # rows that a fine-tuning file must have


@dataclass(frozen=True)
class Lines:
    """Pairs as lines of JSON, and what the format could not say."""

    lines: list[str]
    left_out: list[Pair]  # no line for these: the format cannot hold them
    notes: list[str]  # what a reader of the file must know, with counts


def to_lines(pairs: Sequence[Pair], layout: str, *, chat: bool = True) -> Lines:
    """Pairs in another format. Texts stay as they are, byte for byte.

    Args:
        pairs: at least one.
        layout: `trl` (`prompt`, `chosen`, `rejected`, and `id`), `openai` or `together` (`input`, `preferred_output`,
            `non_preferred_output`).
        chat: for `trl`: messages, for a model with a chat template; else plain text, as a model without one sees it.

    Raises:
        WorkbenchError: an unknown layout, or no pair that it can hold.

    Source: TRL's dataset formats (conversational and standard preference), OpenAI's guide to direct preference
    optimisation, Together's guide to preference fine-tuning.
    """
    if layout not in LAYOUTS:
        raise WorkbenchError(f"`layout` must be one of {', '.join(LAYOUTS)}. Got {layout!r}. Choose one of these.")
    fit = [p for p in pairs if _problem(p) is None]
    notes = []
    for problem in dict.fromkeys(filter(None, map(_problem, pairs))):
        notes.append(f"left out: {_counted([p for p in pairs if _problem(p) == problem])}, {problem}")
    if not fit:
        raise WorkbenchError(f"A file of pairs must have rows. Got none that {layout} can hold: {'; '.join(notes)}.")
    if cut := [p for p in fit if not p.rejected_finished]:
        notes.append(f"{_counted(cut)} with a rejected answer cut at the token limit: read as if it ended there")
    if weighted := [p for p in fit if p.weight != 1.0]:
        notes.append(f"{_counted(weighted)} with a weight other than 1: not in the file, so all rows count alike")
    if layout == "openai" and len(fit) < OPENAI_MINIMUM:
        notes.append(f"OpenAI takes files of {OPENAI_MINIMUM} rows or more: this one has {len(fit)}")
    lines = [json.dumps(_row(p, layout, chat), ensure_ascii=False) for p in fit]
    for pair, line in zip(fit, lines, strict=True):
        read = read_line(line, layout)
        assert read == (_prompt(pair, layout, chat), pair.chosen, pair.rejected), f"{pair.id!r} did not survive"
    return Lines(lines, [p for p in pairs if _problem(p)], notes)


def read_line(line: str, layout: str) -> tuple[str, str, str]:
    """Prompt, chosen and rejected text of a line, which must be exactly what `layout` asks for.

    Raises:
        WorkbenchError: not JSON, a key missing or unknown, a wrong role, not one message, or no text; names it.
    """
    try:
        row = json.loads(line)
        if layout == "trl":
            prompt, chosen, rejected = _take(row, ("id", "prompt", "chosen", "rejected"))[1:]
            if isinstance(prompt, str):
                return _text(prompt), _text(chosen), _text(rejected)
        else:
            asked, chosen, rejected = _take(row, ("input", "preferred_output", "non_preferred_output"))
            tools = ("tools", "parallel_tool_calls") if layout == "openai" else ()
            prompt = _take(asked, ("messages", *tools))[0]
        return _message(prompt, "user"), _message(chosen, "assistant"), _message(rejected, "assistant")
    except (ValueError, RecursionError) as error:
        raise WorkbenchError(
            f"A line must hold one pair in {layout}'s format. Got {line[:60]!r} ({error}). Export it again."
        ) from error


def _row(pair: Pair, layout: str, chat: bool) -> dict[str, Any]:
    prompt, chosen, rejected = _prompt(pair, layout, chat), pair.chosen, pair.rejected
    if layout == "trl" and not chat:
        return {"id": pair.id, "prompt": prompt, "chosen": chosen, "rejected": rejected}
    asked = [{"role": "user", "content": prompt}]
    better, worse = ([{"role": "assistant", "content": text}] for text in (chosen, rejected))
    if layout == "trl":
        return {"id": pair.id, "prompt": asked, "chosen": better, "rejected": worse}
    tools = {"tools": [], "parallel_tool_calls": True} if layout == "openai" else {}
    return {"input": {"messages": asked, **tools}, "preferred_output": better, "non_preferred_output": worse}


def _prompt(pair: Pair, layout: str, chat: bool) -> str:
    return pair.prompt if chat or layout != "trl" else pair.prompt + "\n"  # as `Model.prompt_ids` puts it


def _problem(pair: Pair) -> str | None:
    """Why no format here can hold a pair, or None."""
    if pair.chosen.strip() == pair.rejected.strip():
        return "whose answers differ only in that the rejected one never ended"
    try:
        "".join((pair.prompt, pair.chosen, pair.rejected)).encode("utf-8")
    except UnicodeEncodeError:
        return "with half of a surrogate pair, which UTF-8 cannot hold"
    return None


def _counted(pairs: Sequence[Pair]) -> str:
    names = ", ".join(p.id for p in pairs[:4]) + (", ..." if len(pairs) > 4 else "")
    return f"{len(pairs)} pair{'s' if len(pairs) > 1 else ''} ({names})"


def _take(value: Any, keys: tuple[str, ...]) -> list[Any]:
    if not isinstance(value, dict) or set(value) != set(keys):
        raise ValueError(f"must be an object with {', '.join(keys)}")
    return [value[key] for key in keys]


def _message(value: Any, role: str) -> str:
    if not isinstance(value, list) or len(value) != 1:
        raise ValueError(f"must have exactly one {role} message")
    said, content = _take(value[0], ("role", "content"))
    if said != role:
        raise ValueError(f"the role must be {role}")
    return _text(content)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("texts must not be empty")
    return value
