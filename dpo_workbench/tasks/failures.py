"""Failures that any task can have: empty, loop, truncated, echo. Rules find them before the verifier runs."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

from dpo_workbench.common.errors import WorkbenchError
from dpo_workbench.pairs.messages import Turns, messages_of

_TAIL = 15  # characters, as in the benchmark of arXiv 2604.14314
_REPEATS = 4
DEGENERATE = ("loop", "truncated")  # the answer never ended


def check_classes(classes: Sequence[str] | None, found: Iterable[str] = ()) -> None:
    """Raise if the classes that a user asks for are one text, or if none of them is among those found (if any)."""
    if isinstance(classes, str):
        raise WorkbenchError(f"Failure classes must be a list. Got the text {classes!r}. Write [{classes!r}].")
    known = sorted(found)
    if classes and known and not set(classes) & set(known):
        raise WorkbenchError(
            f"Failure classes must be among those that were found: {', '.join(known)}. Got {', '.join(classes)}."
        )


def check_harm(harm: Mapping[str, float]) -> None:
    """Raise if a severity is not a number from 0 upwards; all such classes are named."""
    bad = {k: v for k, v in harm.items() if not (isinstance(v, Real) and 0 <= v < math.inf)}  # NaN is bad, too
    if bad:
        raise WorkbenchError(f"The harm of a failure class must be a number, 0 or more. Got {bad}. Correct `harm`.")


def detect(answer: str, *, prompt: str | Turns = "", finished: bool = True) -> tuple[str, str] | None:
    """The generic failure of an answer to a prompt, and why; or None.

    Only an answer that reached the token limit (`finished` is False) can be a loop or truncated.
    """
    if not answer.strip():
        return "empty", "the answer has no text"
    if not finished:
        why = loop_reason(answer)
        if why:
            return "loop", f"hit the token limit and {why}"
        return "truncated", "hit the token limit"
    if any(is_echo(answer, m["content"]) for m in messages_of(prompt) if m["role"] == "user"):
        return "echo", "the answer repeats the prompt"
    return None


def loop_reason(text: str) -> str | None:
    """Why the end of a text is a loop, or None. The first of three rules that applies is named:

    1. The last 15 characters occur at least 4 times (the rule of the benchmark in arXiv 2604.14314).
    2. The text ends in at least 4 copies of a unit of 1 to 200 characters, 40 characters in all; the last copy may be
       cut off. Equal rows followed by something else are part of an ordinary document.
    3. The same with digits masked, which finds lists that only count up: at least 6 copies of a unit of 6 to 200
       characters with a letter in it, 150 characters in all.
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
    return None


def _repeated_unit(text: str, times: int, shortest: int, least: int) -> str:
    """The shortest unit that a text ends in, `times` times in a row and `least` characters in all; "" if there is none.

    A text ends in copies of a unit of n characters if its end equals itself shifted by n.
    """
    for n in range(1, 201):
        end = text[-max(times * n, least) :]
        if len(end) >= times * n and len(end) >= least and end[n:] == end[:-n]:
            return end[-n:] if n >= shortest else ""
    return ""


def is_echo(answer: str, prompt: str) -> bool:
    """Whether the answer is, apart from spaces, a copy of a long stretch (80 characters or more) of the prompt."""
    flat_answer, flat_prompt = " ".join(answer.split()), " ".join(prompt.split())
    if len(flat_answer) < 80:
        return bool(flat_prompt) and flat_answer == flat_prompt
    return flat_answer[: max(80, int(0.8 * len(flat_answer)))] in flat_prompt
