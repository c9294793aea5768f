"""Failures that any task can have: empty, loop, truncated, echo. Found by rules, before the task's verifier."""

from __future__ import annotations

import re
import zlib
from collections import Counter

GENERIC = ("empty", "loop", "truncated", "echo")
_TAIL = 15  # characters; the rule of the founding paper's benchmark
_REPEATS = 4


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
    """Why the tail of `text` is a loop, or None. Four rules, the first that holds is named.

    Exact tail: the last 15 characters occur at least 4 times (the rule of the benchmark in arXiv 2604.14314).
    N-gram tail: the text ends in one unit of 1 to 200 characters, at least 4 times in a row.
    Skeleton: with digits masked, one stretch between separators fills at least half of the last 400 characters
    and occurs at least 6 times: a counting slot hides such a loop from the exact rules.
    Compression: the last 600 characters shrink to less than 12 %.
    """
    tail = text[-_TAIL:]
    if len(tail) == _TAIL and text.count(tail) >= _REPEATS:
        return f"its last {_TAIL} characters occur {text.count(tail)} times"
    match = re.search(r"(.{1,200}?)\1{3,}.{0,200}\Z", text[-1200:], re.S)
    if match and len(match.group(0)) >= 40 and match.group(1).strip():
        unit = match.group(1)
        rest = match.group(0)[len(unit) * (match.group(0).count(unit)) :]
        if unit.startswith(rest):
            return f"it ends in {match.group(0).count(unit)} copies of {unit[:30]!r}"
    window = re.sub(r"\d", "0", text[-400:])
    units = Counter(u.strip() for u in re.split(r"[\n\]};]", window) if len(u.strip()) >= 6)
    if units:
        unit, n = units.most_common(1)[0]
        if n >= 6 and n * len(unit) >= 0.5 * len(window):
            return f"with digits masked, {unit[:30]!r} repeats {n} times"
    block = text[-600:].encode("utf-8", "replace")
    if len(block) >= 600 and len(zlib.compress(block, 9)) < 0.12 * len(block):
        return "its last 600 characters are almost all repetition"
    return None


def is_echo(answer: str, prompt: str) -> bool:
    """True when the answer is, but for spaces, a copy of a long stretch (80 characters or more) of the prompt."""
    flat_answer, flat_prompt = " ".join(answer.split()), " ".join(prompt.split())
    if len(flat_answer) < 80:
        return bool(flat_prompt) and flat_answer == flat_prompt
    return flat_answer[: max(80, int(0.8 * len(flat_answer)))] in flat_prompt
