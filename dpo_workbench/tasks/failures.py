"""Failures that any task can have: empty, loop, truncated, echo. Found by rules, before the task's verifier."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence

from dpo_workbench.common.errors import WorkbenchError

GENERIC = ("empty", "loop", "truncated", "echo")
_TAIL = 15  # characters; the rule of the founding paper's benchmark
_REPEATS = 4


def check_classes(classes: Sequence[str] | None, found: Iterable[str] = ()) -> None:
    """Raise where one name stands in place of a list (each of its letters would be taken for a class), or where no
    class is among those that were found."""
    if isinstance(classes, str):
        raise WorkbenchError(f"Failure classes must be a list. Got the text {classes!r}. Write [{classes!r}].")
    there = sorted(found)
    if classes and there and not set(classes) & set(there):
        raise WorkbenchError(
            f"Failure classes must be among those that were found: {', '.join(there)}. Got {', '.join(classes)}."
        )


def detect(answer: str, *, prompt: str = "", finished: bool = True) -> tuple[str, str] | None:
    """The generic failure of an answer and why, or None.

    Args:
        answer: the model's text.
        prompt: what it was asked, for `echo`.
        finished: False when generation hit the token limit. Only such an answer can be a loop or truncated.
    """
    if not answer.strip():
        return "empty", "the answer has no text"
    if not finished:
        why = loop_reason(answer)
        if why:
            return "loop", f"hit the token limit and {why}"
        return "truncated", "hit the token limit"
    if is_echo(answer, prompt):
        return "echo", "the answer repeats the prompt"
    return None


def loop_reason(text: str) -> str | None:
    """Why the end of `text` is a loop, or None. Four rules, the first that holds is named.

    Exact tail: the last 15 characters occur at least 4 times (the rule of the benchmark in arXiv 2604.14314).
    N-gram tail: the text ends in one unit of 1 to 200 characters, at least 4 times in a row and 40 characters in all.
    Counting: the same with each number masked, for a unit of 6 to 200 characters with a letter in it, at least 6 times
    and 150 characters: a counting slot hides such a loop from the exact rules.
    Compression: the last 600 characters shrink to less than 12 %.

    In the first three the repetition must reach the end of the text, where the last unit may be cut: equal rows with
    something after them are a document's own.
    """
    tail = text[-_TAIL:]
    if len(tail) == _TAIL and text.count(tail) >= _REPEATS:
        return f"its last {_TAIL} characters occur {text.count(tail)} times"
    unit = _repeated_unit(text[-1200:], _REPEATS, 1, 40)
    if unit.strip():
        return f"it ends in copies of {unit[:30]!r}"
    unit = _repeated_unit(re.sub(r"\d+", "0", text[-3000:]), 6, 6, 150)
    if re.search(r"[^\W\d_]", unit):
        return f"with digits masked, it ends in copies of {unit[:30]!r}"
    block = text[-600:].encode("utf-8", "replace")
    if len(block) >= 600 and len(zlib.compress(block, 9)) < 0.12 * len(block):
        return "its last 600 characters are almost all repetition"
    return None


def _repeated_unit(text: str, times: int, shortest: int, least: int) -> str:
    """The shortest unit that `text` ends in, `times` times in a row and `least` characters in all; "" if there is none.

    The end is made of copies of a unit of n characters where it equals itself moved by n: a cut last copy does not
    matter, since the copies may as well be counted from the end.
    """
    for n in range(1, 201):
        end = text[-max(times * n, least) :]
        if len(end) >= times * n and len(end) >= least and end[n:] == end[:-n]:
            return end[-n:] if n >= shortest else ""
    return ""


def is_echo(answer: str, prompt: str) -> bool:
    """True when the answer is, but for spaces, a copy of a long stretch (80 characters or more) of the prompt."""
    flat_answer, flat_prompt = " ".join(answer.split()), " ".join(prompt.split())
    if len(flat_answer) < 80:
        return bool(flat_prompt) and flat_answer == flat_prompt
    return flat_answer[: max(80, int(0.8 * len(flat_answer)))] in flat_prompt
